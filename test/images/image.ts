import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { promisify } from "node:util";
import { gzip, zstdCompress } from "node:zlib";

/** Content and its address. */
export interface Blob {
  readonly digest: string;
  readonly bytes: Buffer;
  readonly mediaType: string;
}

export interface Layer {
  readonly blob: Blob;
  /** Of the uncompressed tar. */
  readonly diffId: string;
}

export interface BuiltImage {
  readonly manifest: Blob;
  readonly blobs: readonly Blob[];
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string | undefined;
}

/** The part of an image's configuration that says how to run it; names as in the OCI image specification. */
export interface RunConfig {
  readonly Entrypoint?: readonly string[];
  readonly Cmd?: readonly string[];
  readonly Env?: readonly string[];
  readonly User?: string;
  readonly WorkingDir?: string;
  readonly ExposedPorts?: Readonly<Record<string, object>>;
  readonly Volumes?: Readonly<Record<string, object>>;
  readonly Labels?: Readonly<Record<string, string>>;
  readonly StopSignal?: string;
  readonly Healthcheck?: object;
}

export interface ImageOptions {
  readonly layers: readonly Layer[];
  readonly config?: RunConfig;
  readonly os?: string;
  /** Default: this machine's. */
  readonly architecture?: string;
  readonly variant?: string;
  /** Default "oci". */
  readonly format?: "oci" | "docker";
}

export type Compression = "none" | "gzip" | "zstd";

const mediaTypes = {
  oci: {
    manifest: "application/vnd.oci.image.manifest.v1+json",
    index: "application/vnd.oci.image.index.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
  },
  docker: {
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    index: "application/vnd.docker.distribution.manifest.list.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
  },
} as const;

const layerTypes: Record<Compression, string> = {
  none: "application/vnd.oci.image.layer.v1.tar",
  gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  zstd: "application/vnd.oci.image.layer.v1.tar+zstd",
};

export function digestOf(bytes: Buffer): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

/** The OCI name of this machine's architecture. */
export function hostArchitecture(): string {
  return process.arch === "x64" ? "amd64" : process.arch;
}

/** A layer of a tar archive. */
export async function layerOfTar(tar: Buffer, compression: Compression = "gzip"): Promise<Layer> {
  const bytes =
    compression === "none"
      ? tar
      : await (compression === "gzip" ? promisify(gzip)(tar, { level: 1 }) : promisify(zstdCompress)(tar));
  return { diffId: digestOf(tar), blob: { digest: digestOf(bytes), bytes, mediaType: layerTypes[compression] } };
}

/**
 * A layer of everything under a directory: owners, modes, hard links, devices and extended attributes kept, names and
 * times fixed, so that the same tree gives the same digest. `owner`: who owns all of it instead, "uid:gid".
 */
export async function layerOfDirectory(
  directory: string,
  options: { readonly compression?: Compression; readonly owner?: string } = {},
): Promise<Layer> {
  const [uid, gid] = options.owner?.split(":") ?? [];
  const fixed =
    "--format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f --sort=name --mtime=@0 --numeric-owner --xattrs --xattrs-include=*";
  const owned = uid === undefined ? [] : [`--owner=${uid}`, `--group=${gid ?? uid}`];
  const args = [...fixed.split(" "), ...owned, "-C", directory, "-cf", "-", "."];
  return await layerOfTar(await output("tar", args), options.compression);
}

async function output(program: string, args: readonly string[]): Promise<Buffer> {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  const chunks: Buffer[] = [];
  let words = "";
  child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => (words += chunk.toString()));
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", resolve);
  });
  if (code !== 0) throw new Error(`${program} ended with ${code}: ${words}`);
  return Buffer.concat(chunks);
}

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

/** Configuration and manifest over the layers. */
export function buildImage(options: ImageOptions): BuiltImage {
  const types = mediaTypes[options.format ?? "oci"];
  const os = options.os ?? "linux";
  const architecture = options.architecture ?? hostArchitecture();
  const configBytes = json({
    created: "1970-01-01T00:00:00Z",
    os,
    architecture,
    ...(options.variant === undefined ? {} : { variant: options.variant }),
    config: options.config ?? {},
    rootfs: { type: "layers", diff_ids: options.layers.map((layer) => layer.diffId) },
  });
  const config: Blob = { digest: digestOf(configBytes), bytes: configBytes, mediaType: types.config };
  const layerType = (type: string) =>
    options.format === "docker" && type === layerTypes.gzip
      ? "application/vnd.docker.image.rootfs.diff.tar.gzip"
      : type;
  const describe = (blob: Blob) => ({ mediaType: blob.mediaType, digest: blob.digest, size: blob.bytes.length });
  const manifestBytes = json({
    schemaVersion: 2,
    mediaType: types.manifest,
    config: describe(config),
    layers: options.layers.map(({ blob }) => ({ ...describe(blob), mediaType: layerType(blob.mediaType) })),
  });
  return {
    manifest: { digest: digestOf(manifestBytes), bytes: manifestBytes, mediaType: types.manifest },
    blobs: [config, ...options.layers.map((layer) => layer.blob)],
    os,
    architecture,
    variant: options.variant,
  };
}

/** A manifest that lists one image per platform. */
export function buildIndex(images: readonly BuiltImage[], format: "oci" | "docker" = "oci"): Blob {
  const bytes = json({
    schemaVersion: 2,
    mediaType: mediaTypes[format].index,
    manifests: images.map(({ manifest, os, architecture, variant }) => ({
      mediaType: manifest.mediaType,
      digest: manifest.digest,
      size: manifest.bytes.length,
      platform: { os, architecture, ...(variant === undefined ? {} : { variant }) },
    })),
  });
  return { digest: digestOf(bytes), bytes, mediaType: mediaTypes[format].index };
}

/** Names of the commands in this machine's static busybox. */
export async function busyboxApplets(): Promise<readonly string[]> {
  const { stdout } = await promisify(execFile)("/bin/busybox", ["--list"]);
  return stdout.split("\n").filter((name) => name !== "" && name !== "busybox");
}
