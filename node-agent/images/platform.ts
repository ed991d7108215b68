import { ClusterError } from "../../lib/errors/errors.ts";

/** What an image is built for, in OCI names. */
export interface Platform {
  readonly os: string;
  readonly architecture: string;
  /** "v7"; empty: not told apart. */
  readonly variant: string;
}

/** This machine's platform. */
export function hostPlatform(arch: string = process.arch): Platform {
  const names: Record<string, readonly [string, string]> = {
    x64: ["amd64", ""],
    arm64: ["arm64", "v8"],
    arm: ["arm", "v7"],
    ia32: ["386", ""],
  };
  const [architecture, variant] = names[arch] ?? [arch, ""];
  return { os: "linux", architecture, variant };
}

/** Reads "os/arch[/variant]"; empty: this machine's. Throws `invalid`. */
export function parsePlatform(text: string): Platform {
  if (text === "") return hostPlatform();
  const [os = "", architecture = "", variant = "", ...rest] = text.split("/");
  if (os === "" || architecture === "" || rest.length > 0) {
    throw new ClusterError(`"${text}" is no platform`, {
      code: "invalid",
      hint: "Write os/arch[/variant], as linux/amd64.",
    });
  }
  return { os, architecture, variant };
}

export function formatPlatform({ os, architecture, variant }: Platform): string {
  return variant === "" ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`;
}

function variantNumber(platform: Platform): number {
  const fallback = platform.architecture === "arm64" ? 8 : platform.architecture === "arm" ? 7 : 1;
  return Number(/^v(\d+)$/.exec(platform.variant)?.[1] ?? fallback);
}

/**
 * Of what an image offers, the index of the best that runs on `wanted`: same os and architecture, and the highest variant
 * that is not above the wanted one. Undefined: none does.
 */
export function choosePlatform(offered: readonly Platform[], wanted: Platform): number | undefined {
  let best: number | undefined;
  let bestVariant = -1;
  for (const [index, platform] of offered.entries()) {
    if (platform.os !== wanted.os || platform.architecture !== wanted.architecture) continue;
    const variant = variantNumber(platform);
    if (variant <= variantNumber(wanted) && variant > bestVariant) {
      best = index;
      bestVariant = variant;
    }
  }
  return best;
}
