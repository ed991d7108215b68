import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Blob, BuiltImage } from "./image.ts";

/** Debian's docker-registry on a loopback port of its own. */
export interface TestRegistry extends AsyncDisposable {
  /** "127.0.0.1:PORT": the first part of its images' references. */
  readonly host: string;
  readonly url: string;
  /** Where it keeps its files. */
  readonly directory: string;
  /** Ends it at once; its files stay until it is disposed. */
  kill(): Promise<void>;
}

/** Starts a registry and waits until it listens. `address`: where; default a free port of 127.0.0.1. */
export async function startRegistry(options: { readonly address?: string } = {}): Promise<TestRegistry> {
  const directory = await mkdtemp(join(tmpdir(), "embassy-registry-"));
  const configFile = join(directory, "config.yml");
  await writeFile(
    configFile,
    [
      "version: 0.1",
      "log: { level: info, formatter: json, accesslog: { disabled: true } }",
      `storage: { filesystem: { rootdirectory: ${directory}/data }, delete: { enabled: true } }`,
      `http: { addr: "${options.address ?? "127.0.0.1:0"}" }`,
      "",
    ].join("\n"),
  );
  const child = spawn("docker-registry", ["serve", configFile], {
    stdio: ["ignore", "ignore", "pipe"],
    env: { PATH: process.env["PATH"], OTEL_TRACES_EXPORTER: "none" },
  });
  const host = await listening(child).catch(async (error: unknown) => {
    await rm(directory, { recursive: true, force: true });
    throw error;
  });
  const kill = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await gone;
  };
  return {
    host,
    url: `http://${host}`,
    directory,
    kill,
    [Symbol.asyncDispose]: async () => {
      await kill();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

async function listening(child: ChildProcess): Promise<string> {
  let words = "";
  return await new Promise((resolve, reject) => {
    child.on("error", (cause) =>
      reject(new Error("docker-registry does not start: apt-get install docker-registry", { cause })),
    );
    child.on("exit", (code) => reject(new Error(`docker-registry ended with ${code}: ${words}`)));
    child.stderr?.on("data", (chunk: Buffer) => {
      if (words.length < 100_000) words += chunk.toString();
      const address = /listening on ([0-9.]+:[0-9]+)/.exec(words)?.[1];
      if (address !== undefined) resolve(address);
    });
  });
}

async function expectStatus(response: Response, allowed: readonly number[], what: string): Promise<Response> {
  if (allowed.includes(response.status)) return response;
  throw new Error(`${what}: ${response.status} ${await response.text()}`);
}

/** Uploads content unless the registry has it. `url`: "http://HOST:PORT". */
export async function pushBlob(url: string, repository: string, blob: Blob): Promise<void> {
  const head = await fetch(`${url}/v2/${repository}/blobs/${blob.digest}`, { method: "HEAD" });
  if (head.ok) return;
  const start = await fetch(`${url}/v2/${repository}/blobs/uploads/`, { method: "POST" });
  await expectStatus(start, [202], `upload to ${repository}`);
  const location = new URL(start.headers.get("location") ?? "", url);
  location.searchParams.set("digest", blob.digest);
  const body = new Uint8Array(blob.bytes);
  await expectStatus(await fetch(location, { method: "PUT", body }), [201], `blob ${blob.digest} of ${repository}`);
}

/** Uploads a manifest under a tag. */
export async function pushManifest(url: string, repository: string, tag: string, manifest: Blob): Promise<void> {
  const put = await fetch(`${url}/v2/${repository}/manifests/${tag}`, {
    method: "PUT",
    headers: { "content-type": manifest.mediaType },
    body: new Uint8Array(manifest.bytes),
  });
  await expectStatus(put, [201], `manifest ${repository}:${tag}`);
}

/** Uploads an image and tags it. Returns its reference: "HOST:PORT/repository:tag". */
export async function pushImage(url: string, repository: string, tag: string, image: BuiltImage): Promise<string> {
  for (const blob of image.blobs) await pushBlob(url, repository, blob);
  await pushManifest(url, repository, tag, image.manifest);
  return `${new URL(url).host}/${repository}:${tag}`;
}
