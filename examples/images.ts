/**
 * `npm run images -- EXAMPLE [REGISTRY]`: makes an example's images from Debian packages and pushes them. REGISTRY is
 * "HOST:PORT"; that of the lab that is up when none is given.
 */
import { spawnSync } from "node:child_process";
import { chmod, cp, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type BuiltImage, buildImage, type Layer, layerOfDirectory, type RunConfig } from "../test/images/image.ts";
import { pushImage } from "../test/images/registry.ts";
import { images as counter } from "./counter/images.ts";
import { fetchDebianPackages, unpackDebianPackages } from "./debian.ts";

/** One image of an example: Debian packages, files of the example's own, and how to run it. */
export interface ExampleImage {
  readonly repository: string;
  readonly tag: string;
  /** Beside those that every image has: libc, getent and busybox. */
  readonly packages: readonly string[];
  /** Path in the image -> path in the repository. */
  readonly files: Readonly<Record<string, string>>;
  readonly config: RunConfig;
}

const examples: Readonly<Record<string, readonly ExampleImage[]>> = { counter };
const basePackages = ["libc6", "libc-bin", "libgcc-s1", "libstdc++6", "zlib1g", "busybox-static"];
// Nobody reads these in a container.
const unread = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"];

const root = join(import.meta.dirname, "..");
const cache = join(root, "dist/debian-packages");

async function layer(fill: (directory: string) => Promise<void>): Promise<Layer> {
  const directory = await mkdtemp(join(tmpdir(), "embassy-image-"));
  try {
    await fill(directory);
    for (const path of unread) await rm(join(directory, path), { recursive: true, force: true });
    return await layerOfDirectory(directory, { owner: "0:0" });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Users, name lookup by files and DNS, and a shell: what programs expect of any system. */
async function baseLayer(say: Say): Promise<Layer> {
  return await layer(async (directory) => {
    unpackDebianPackages(basePackages, directory, cache, say);
    for (const path of ["tmp", "etc", "proc", "sys", "dev", "run", "root"]) {
      await mkdir(join(directory, path), { recursive: true });
      // Not by mkdir, which takes away what the umask forbids.
      await chmod(join(directory, path), path === "tmp" ? 0o1777 : 0o755);
    }
    await writeFile(
      join(directory, "etc/passwd"),
      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    );
    await writeFile(join(directory, "etc/group"), "root:x:0:\nnogroup:x:65534:\n");
    await writeFile(join(directory, "etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n");
    const applets = ["sh", "cat", "echo", "env", "grep", "ls", "nc", "ps", "sleep", "sort", "wget", "kill", "hostname"];
    for (const applet of applets) await symlink("busybox", join(directory, "bin", applet));
  });
}

async function image(example: ExampleImage, base: Layer, say: Say): Promise<BuiltImage> {
  const own = await layer(async (directory) => {
    unpackDebianPackages(example.packages, directory, cache, say);
    for (const [target, source] of Object.entries(example.files)) {
      await mkdir(dirname(join(directory, target)), { recursive: true });
      await cp(join(root, source), join(directory, target));
    }
  });
  const config = { Env: ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"], ...example.config };
  return buildImage({ layers: [base, own], config });
}

/** Is told what is being done, where that takes its time. */
type Say = (text: string) => void;

/** Makes the images of an example and pushes them to the registry. Returns their references. */
export async function pushExample(name: string, registry: string, say: Say = () => {}): Promise<string[]> {
  const example = examples[name];
  if (example !== undefined) return await pushImages(example, registry, say);
  throw new Error(`there is no example ${name}; there is ${Object.keys(examples).join(", ")}`);
}

/** Downloads what an example's images are made of: they can be made without a network then. */
export function fetchExample(name: string, say: Say = () => {}): void {
  fetchDebianPackages([...basePackages, ...(examples[name] ?? []).flatMap(({ packages }) => packages)], cache, say);
}

/** Makes images of Debian packages and pushes them to the registry. Returns their references. */
export async function pushImages(
  images: readonly ExampleImage[],
  registry: string,
  say: Say = () => {},
): Promise<string[]> {
  const base = await baseLayer(say);
  const references: string[] = [];
  for (const one of images) {
    say(`making ${one.repository}:${one.tag}`);
    references.push(await pushImage(`http://${registry}`, one.repository, one.tag, await image(one, base, say)));
  }
  return references;
}

/** The address of the registry of the lab that is meant when none is named, as clusterctl knows it. */
function registryOfLab(): string {
  const status = spawnSync(join(root, "bin/clusterctl"), ["lab", "status", "--output", "json"], { encoding: "utf8" });
  if (status.status !== 0) {
    // What clusterctl goes on with are options that only it has.
    const [why = ""] = status.stderr.split("\n");
    const wayOut = "Give REGISTRY: `clusterctl lab status --name NAME` prints that of a lab.";
    throw new Error(`no registry to push to: ${why.replace(/^error: /, "")}\n${wayOut}`);
  }
  return (JSON.parse(status.stdout) as { registry: string }).registry;
}

if (import.meta.main) {
  const [name = "", registry] = process.argv.slice(2);
  try {
    const pushed = await pushExample(name, registry ?? registryOfLab(), (text) => console.log(`    ${text}`));
    for (const reference of pushed) console.log(`pushed ${reference}`);
  } catch (error) {
    console.error(
      `${error instanceof Error ? error.message : String(error)}\nUsage: npm run images -- EXAMPLE [REGISTRY]`,
    );
    process.exitCode = 1;
  }
}
