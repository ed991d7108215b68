import * as z from "zod/mini";
import en from "zod/v4/locales/en.js";
import { ClusterError } from "../../lib/errors/errors.ts";
import { choosePlatform, formatPlatform, type Platform } from "./platform.ts";
import type { ImageConfig } from "./types.ts";

/** Content as a manifest names it. */
export interface Descriptor {
  readonly digest: string;
  readonly size: number;
}

export type ParsedManifest =
  | { readonly kind: "image"; readonly config: Descriptor; readonly layers: readonly Descriptor[] }
  | { readonly kind: "index"; readonly entries: readonly (Descriptor & { readonly platform: Platform })[] };

const sha256 = z.string().check(z.regex(/^sha256:[0-9a-f]{64}$/));
const descriptor = z.object({
  mediaType: z._default(z.string(), ""),
  digest: sha256,
  size: z.int().check(z.nonnegative()),
});
const string = z.nullish(z.string());
const strings = z.nullish(z.array(z.string()));
const keys = z.nullish(z.record(z.string(), z.unknown()));

const imageManifest = z.object({ config: descriptor, layers: z.array(descriptor) });
const indexManifest = z.object({
  manifests: z.array(
    z.extend(descriptor, {
      platform: z.optional(z.object({ os: z.string(), architecture: z.string(), variant: z.optional(z.string()) })),
    }),
  ),
});
const imageConfig = z.object({
  os: z._default(z.string(), "linux"),
  architecture: z._default(z.string(), ""),
  variant: string,
  config: z.nullish(
    z.object({
      Entrypoint: strings,
      Cmd: strings,
      Env: strings,
      User: string,
      WorkingDir: string,
      ExposedPorts: keys,
      Volumes: keys,
      StopSignal: string,
      Labels: z.nullish(z.record(z.string(), z.string())),
      Healthcheck: z.nullish(
        z.object({
          Test: strings,
          Interval: z.optional(z.number()),
          Timeout: z.optional(z.number()),
          StartPeriod: z.optional(z.number()),
          StartInterval: z.optional(z.number()),
          Retries: z.optional(z.number()),
        }),
      ),
    }),
  ),
  rootfs: z.object({ diff_ids: z.array(sha256) }),
});

const layerTypes = [
  /^application\/vnd\.oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+gzip|\+zstd)?$/,
  /^application\/vnd\.docker\.image\.rootfs\.(diff|foreign\.diff)\.tar(\.gzip|\.zstd)?$/,
  /^application\/vnd\.docker\.image\.rootfs\.diff\.tar$/,
];

/** The small form of zod says only "invalid input" by itself; the whole of it would be an eighth of this program's memory. */
const words = en().localeError;

function read<T>(schema: z.ZodMiniType<T>, value: unknown, what: string): T {
  const result = schema.safeParse(value, { error: words });
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const where = issue?.path.join(".") ?? "";
  throw new ClusterError(`the ${what} is malformed${where === "" ? "" : ` at ${where}`}: ${issue?.message ?? ""}`, {
    code: "invalid",
  });
}

function readJson(bytes: Buffer, what: string): unknown {
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new ClusterError(`the ${what} is not JSON`, { code: "invalid", cause });
  }
}

/** Reads a manifest or a manifest list, of OCI or of Docker schema 2. Throws `invalid`. */
export function parseManifest(bytes: Buffer): ParsedManifest {
  const value = readJson(bytes, "manifest");
  if (typeof value !== "object" || value === null)
    throw new ClusterError("the manifest is no object", { code: "invalid" });
  if ("schemaVersion" in value && value.schemaVersion === 1) {
    throw new ClusterError("the image has only a manifest of Docker's schema 1, which has not been in use since 2017", {
      code: "invalid",
      hint: "Push the image again with a current tool.",
    });
  }
  if ("manifests" in value) {
    const { manifests } = read(indexManifest, value, "manifest list");
    const entries = manifests
      // Attestations stand in the list as images of platform unknown/unknown.
      .filter(({ platform }) => platform !== undefined && platform.os !== "unknown")
      .map(({ digest, size, platform }) => ({
        digest,
        size,
        platform: {
          os: platform?.os ?? "",
          architecture: platform?.architecture ?? "",
          variant: platform?.variant ?? "",
        },
      }));
    return { kind: "index", entries };
  }
  const { config, layers } = read(imageManifest, value, "manifest");
  for (const { mediaType } of layers) {
    if (mediaType !== "" && !layerTypes.some((known) => known.test(mediaType))) {
      throw new ClusterError(`a layer is of type ${mediaType}, which is no file system`, {
        code: "invalid",
        hint: "The reference names an artifact or an encrypted image, not one to run.",
      });
    }
  }
  const bare = ({ digest, size }: Descriptor): Descriptor => ({ digest, size });
  return { kind: "image", config: bare(config), layers: layers.map(bare) };
}

/** The list's entry for a platform. Throws `invalid` with the platforms there are. */
export function chooseEntry(manifest: Extract<ParsedManifest, { kind: "index" }>, wanted: Platform): Descriptor {
  const index = choosePlatform(
    manifest.entries.map((entry) => entry.platform),
    wanted,
  );
  const entry = index === undefined ? undefined : manifest.entries[index];
  if (entry !== undefined) return { digest: entry.digest, size: entry.size };
  throw foreign(
    wanted,
    manifest.entries.map((one) => one.platform),
  );
}

function foreign(wanted: Platform, offered: readonly Platform[]): ClusterError {
  const there = offered.length === 0 ? "no platform" : offered.map(formatPlatform).sort().join(", ");
  return new ClusterError(`the image is for ${there}, and not for ${formatPlatform(wanted)}`, {
    code: "invalid",
    hint: "Build the image for this platform, or keep the service off these nodes with placement.platforms.",
  });
}

/** Reads an image's configuration and the digests of its uncompressed layers. Throws `invalid`, also when it is for another platform. */
export function parseConfig(bytes: Buffer, wanted: Platform): { config: ImageConfig; diffIds: readonly string[] } {
  const raw = read(imageConfig, readJson(bytes, "image configuration"), "image configuration");
  const platform = { os: raw.os, architecture: raw.architecture, variant: raw.variant ?? "" };
  if (platform.architecture !== "" && choosePlatform([{ ...platform, variant: "" }], wanted) === undefined) {
    throw foreign(wanted, [platform]);
  }
  const run = raw.config ?? {};
  const health = run.Healthcheck;
  const milliseconds = (nanoseconds: number | undefined) => Math.round((nanoseconds ?? 0) / 1e6);
  return {
    diffIds: raw.rootfs.diff_ids,
    config: {
      os: raw.os,
      architecture: raw.architecture,
      entrypoint: run.Entrypoint ?? [],
      command: run.Cmd ?? [],
      environment: run.Env ?? [],
      user: run.User ?? "",
      workingDir: run.WorkingDir ?? "",
      exposedPorts: Object.keys(run.ExposedPorts ?? {}).sort(),
      volumes: Object.keys(run.Volumes ?? {}).sort(),
      stopSignal: run.StopSignal ?? "",
      labels: run.Labels ?? {},
      healthcheck:
        health === undefined || health === null || (health.Test ?? []).length === 0
          ? undefined
          : {
              test: health.Test ?? [],
              intervalMs: milliseconds(health.Interval),
              timeoutMs: milliseconds(health.Timeout),
              startPeriodMs: milliseconds(health.StartPeriod),
              startIntervalMs: milliseconds(health.StartInterval),
              retries: health.Retries ?? 0,
            },
    },
  };
}
