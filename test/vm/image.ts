import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { delimiter, join } from "node:path";

/** A Debian system that boots: files. */
export interface Image {
  readonly kernel: string;
  readonly initrd: string;
  /** ext4, labelled "root". */
  readonly disk: string;
}

/** A program and what it needs around it, when it was not installed but only unpacked. */
export interface Tool {
  readonly command: string;
  readonly args: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
}

const release = "bookworm";
// Beside what a node needs: a machine that boots.
const machinePackages = ["systemd-sysv", "udev", "kmod", "linux-image-cloud-amd64"];

const unit = `[Unit]
Description=Tests of Embassy
RequiresMountsFor=/srv/embassy
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=exec
WorkingDirectory=/srv/embassy
Environment=HOME=/root LANG=C.UTF-8
ExecStart=/bin/sh -c 'exec node_modules/node/bin/node test/vm/guest.ts >/dev/virtio-ports/embassy 2>&1'
`;

function must(command: string, args: readonly string[], environment: NodeJS.ProcessEnv = {}): void {
  const result = spawnSync(command, args, { encoding: "utf8", env: { ...process.env, ...environment } });
  if (result.status === 0) return;
  const why = result.error?.message ?? `${result.stdout}${result.stderr}`.trim();
  throw new Error(`${[command, ...args].join(" ")} failed: ${why}`);
}

/** The emulator, as this machine has it, else unpacked into the cache from Debian's packages: nothing is installed. */
export function ensureEmulator(cache: string): Tool {
  const name = "qemu-system-x86_64";
  if (isInstalled(name)) return { command: name, args: [], environment: process.env };
  const folder = ensureUnpacked("qemu-system-x86", cache);
  return {
    command: join(folder, "usr/bin", name),
    args: ["qemu", "seabios"].flatMap((data) => ["-L", join(folder, "usr/share", data)]),
    environment: {
      ...process.env,
      LD_LIBRARY_PATH: ["usr/lib", "lib"].map((lib) => join(folder, lib, "x86_64-linux-gnu")).join(delimiter),
    },
  };
}

function isInstalled(program: string): boolean {
  return (process.env["PATH"] ?? "").split(delimiter).some((folder) => existsSync(join(folder, program)));
}

/** A package and those of its dependencies that this machine lacks, unpacked into a folder of their own. */
function ensureUnpacked(name: string, cache: string): string {
  const folder = join(cache, name);
  if (existsSync(folder)) return folder;
  console.log(`==> fetching ${name}`);
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, "unpack-"));
  try {
    const archives = join(work, "archives");
    mkdirSync(join(archives, "partial"), { recursive: true });
    const options = ["-qq", "-o", `Dir::Cache::archives=${archives}`, "-o", "APT::Sandbox::User=root"];
    // Old lists name packages that are gone; without a network they have to do.
    spawnSync("apt-get", ["update", ...options]);
    must("apt-get", ["install", "--yes", "--download-only", "--no-install-recommends", ...options, name]);
    const root = join(work, "root");
    for (const file of readdirSync(archives)) {
      if (file.endsWith(".deb")) must("dpkg-deb", ["--extract", join(archives, file), root]);
    }
    renameSync(root, folder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return folder;
}

/**
 * Debian with systemd, its kernel for virtual machines and those packages, and with a unit that runs `test/vm/guest.ts` and turns
 * the machine off. Made once and kept in the cache until what it is made of changes.
 */
export function ensureImage(packages: readonly string[], cache: string): Image {
  const all = [...machinePackages, ...packages].sort();
  const hash = createHash("sha256")
    .update(all.join(" "))
    .update(readFileSync(import.meta.filename));
  const folder = join(cache, `image-${hash.digest("hex").slice(0, 12)}`);
  if (!existsSync(folder)) makeImage(all, folder, cache);
  return { kernel: join(folder, "vmlinuz"), initrd: join(folder, "initrd"), disk: join(folder, "root.ext4") };
}

function makeImage(packages: readonly string[], folder: string, cache: string): void {
  const tools = isInstalled("mmdebstrap") ? [] : [join(ensureUnpacked("mmdebstrap", cache), "usr/bin")];
  console.log(`==> making a Debian system of ${packages.length} packages and what they depend on`);
  for (const old of readdirSync(cache)) if (old.startsWith("image-")) rmSync(join(cache, old), { recursive: true });
  const work = mkdtempSync(join(cache, "make-"));
  try {
    const root = join(work, "root");
    const unread = ["doc", "man", "locale", "info"].map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`);
    const include = `--include=${packages.join(",")}`;
    const environment = { PATH: [...tools, process.env["PATH"]].join(delimiter) };
    must("mmdebstrap", ["--quiet", "--variant=minbase", include, ...unread, release, root], environment);
    furnish(root);
    const made = join(work, "made");
    mkdirSync(made);
    for (const file of readdirSync(join(root, "boot"))) {
      if (file.startsWith("vmlinuz-")) renameSync(join(root, "boot", file), join(made, "vmlinuz"));
      if (file.startsWith("initrd.img-")) renameSync(join(root, "boot", file), join(made, "initrd"));
    }
    makeDisk(join(made, "root.ext4"), "root", root, "6G");
    renameSync(made, folder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function furnish(root: string): void {
  mkdirSync(join(root, "srv/embassy"));
  writeFileSync(join(root, "etc/hostname"), "vm\n");
  writeFileSync(join(root, "etc/hosts"), "127.0.0.1 localhost vm\n");
  writeFileSync(join(root, "etc/fstab"), "LABEL=root / ext4 rw 0 1\nLABEL=embassy /srv/embassy ext4 rw 0 2\n");
  const units = join(root, "etc/systemd/system");
  writeFileSync(join(units, "embassy-tests.service"), unit);
  const wanted = join(units, "multi-user.target.wants");
  symlinkSync("../embassy-tests.service", join(wanted, "embassy-tests.service"));
  // Debian starts what it installs; Embassy starts its own.
  for (const service of ["etcd", "docker-registry"]) rmSync(join(wanted, `${service}.service`), { force: true });
}

/** A disk with an ext4 file system of a folder's content. It takes up what is in it, not its size. */
export function makeDisk(file: string, label: string, content: string, size: string): void {
  must("mkfs.ext4", ["-q", "-L", label, "-d", content, file, size]);
}
