import { randomUUID } from "node:crypto";
import { chmod, chown, lstat, mkdir, mkdtemp, readdir, readlink, rename, rm, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import { run, runOk } from "../../lib/process/run.ts";
import { type Mount, MountType } from "../../proto/gen/embassy/v1/stack.ts";
import type { ContainerMount } from "../runtime/types.ts";

const nameRule = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/;

/** Of directories that were volumes; no volume can be called so. */
const removedPrefix = ".removed-";

/** Named volumes of this node: directories `<name>/_data`, kept when tasks end. */
export class Volumes {
  readonly #directory: string;
  readonly #making = new Map<string, Promise<void>>();
  readonly #removing = new Map<string, Promise<void>>();

  constructor(directory: string) {
    this.#directory = directory;
  }

  /**
   * Makes sure that the mount's source exists, and says how the runtime mounts it. A volume that is new takes what the image
   * has at the target, with its owner and mode. Throws `invalid` when it cannot be mounted.
   */
  async resolve(mount: Mount, rootfs: string): Promise<ContainerMount> {
    const { target, readOnly } = mount;
    switch (mount.type) {
      case MountType.MOUNT_TYPE_TMPFS:
        return { type: "tmpfs", target, readOnly, sizeBytes: mount.tmpfsBytes, mode: mount.tmpfsMode };
      case MountType.MOUNT_TYPE_BIND:
        return { type: "bind", source: await this.#bind(mount), target, readOnly };
      case MountType.MOUNT_TYPE_VOLUME:
        return { type: "bind", source: await this.#volume(mount, rootfs), target, readOnly };
      default:
        return mount.type satisfies never;
    }
  }

  async #bind(mount: Mount): Promise<string> {
    try {
      await stat(mount.source);
    } catch (cause) {
      if (!isErrno(cause, "ENOENT")) throw cause;
      if (!mount.createHostPath) {
        throw new ClusterError(`${mount.source} does not exist on this node`, {
          code: "invalid",
          subject: `mount ${mount.target}`,
          hint: "Make it on every node that may run the service, set create_host_path, or use a named volume.",
          cause,
        });
      }
      await mkdir(mount.source, { recursive: true, mode: 0o755 });
    }
    return mount.source;
  }

  async #volume(mount: Mount, rootfs: string): Promise<string> {
    const name = mount.source;
    requireName(name, `mount ${mount.target}`);
    await this.#removing.get(name)?.catch(() => undefined);
    const data = join(this.#directory, name, "_data");
    if (await exists(data)) return data;
    // Two tasks that start at once make it once.
    const making = this.#making.get(name) ?? this.#make(data, rootfs, mount.target);
    this.#making.set(name, making);
    try {
      await making;
    } finally {
      this.#making.delete(name);
    }
    return data;
  }

  /** Names of the volumes there are, ascending. */
  async list(): Promise<string[]> {
    const names = await readdir(this.#directory).catch((error: unknown) => {
      if (isErrno(error, "ENOENT")) return [];
      throw error;
    });
    const isVolume = async (name: string) =>
      nameRule.test(name) && (await exists(join(this.#directory, name, "_data")));
    const found = await Promise.all(names.map(async (name) => ((await isVolume(name)) ? name : undefined)));
    return found.filter((name) => name !== undefined).toSorted();
  }

  /**
   * How many bytes the volumes take on the disk, by name, one after the other, as each is a walk through all of its files: without those
   * that were not counted when the signal is aborted.
   */
  async sizes(names: readonly string[], signal: AbortSignal): Promise<Record<string, number>> {
    const sizes: Record<string, number> = {};
    for (const name of names) {
      const counting = run("du", ["-s", "-x", "--block-size=1", "--", join(this.#directory, name)], { signal });
      // A file that goes while it is counted makes du fail, with the sum of the rest.
      const { stdout } = await counting.catch(() => ({ stdout: "" }));
      const bytes = Number.parseInt(stdout, 10);
      if (Number.isSafeInteger(bytes)) sizes[name] = bytes;
      if (signal.aborted) break;
    }
    return sizes;
  }

  /**
   * Removes a volume that nothing mounts. It is gone at once, and what was in it is deleted while `emptied` is pending; a crash
   * leaves the rest to `sweep`. Throws `not-found`, `invalid` for what can be no name.
   */
  async remove(name: string): Promise<{ readonly emptied: Promise<void> }> {
    requireName(name, `volume/${name}`);
    const gone = join(this.#directory, `${removedPrefix}${randomUUID()}`);
    const moving = rename(join(this.#directory, name), gone);
    this.#removing.set(name, moving);
    try {
      await moving;
    } catch (cause) {
      if (!isErrno(cause, "ENOENT")) throw cause;
      throw new ClusterError(`there is no volume ${name}`, { code: "not-found", subject: `volume/${name}`, cause });
    } finally {
      this.#removing.delete(name);
    }
    return { emptied: rm(gone, { recursive: true, force: true }) };
  }

  /** Deletes what is left of volumes that were removed when the process before this one ended. */
  async sweep(): Promise<void> {
    for (const name of await readdir(this.#directory).catch(() => [])) {
      if (name.startsWith(removedPrefix)) await rm(join(this.#directory, name), { recursive: true, force: true });
    }
  }

  /** Under another name first, so that a crash leaves no half-filled volume. */
  async #make(data: string, rootfs: string, target: string): Promise<void> {
    await mkdir(dirname(data), { recursive: true, mode: 0o711 });
    for (const left of await readdir(dirname(data))) {
      if (left.startsWith("new-")) await rm(join(dirname(data), left), { recursive: true, force: true });
    }
    const fresh = await mkdtemp(join(dirname(data), "new-"));
    await chmod(fresh, 0o755);
    const source = await insideRoot(rootfs, target);
    const found = source === undefined ? undefined : await stat(source).catch(() => undefined);
    if (source !== undefined && found?.isDirectory() === true) {
      try {
        await runOk("cp", ["-a", "--", `${source}/.`, fresh]);
      } catch (cause) {
        throw new ClusterError(`a new volume could not take the image's ${target}: ${messageOf(cause)}`, {
          code: "internal",
          subject: `mount ${target}`,
          cause,
        });
      }
      await chown(fresh, found.uid, found.gid);
      await chmod(fresh, found.mode & 0o7777);
    }
    await rename(fresh, data);
  }
}

function requireName(name: string, subject: string): void {
  if (nameRule.test(name)) return;
  throw new ClusterError(`${JSON.stringify(name)} cannot be the name of a volume`, { code: "invalid", subject });
}

async function exists(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => true,
    () => false,
  );
}

const maxLinks = 40;

/**
 * Where the container's absolute path is on the host: symbolic links are followed as the container would see them, so that
 * none leads out of its root. undefined: not there, or a loop.
 */
export async function insideRoot(rootfs: string, path: string): Promise<string | undefined> {
  let rest = path.split("/").filter((part) => part !== "");
  let at = "/";
  for (let links = 0; rest.length > 0; ) {
    const [part = "", ...others] = rest;
    // Both as the container sees them: ".." of its root is its root.
    const next = resolve(at, part);
    const found = await lstat(join(rootfs, next)).catch(() => undefined);
    if (found === undefined) return undefined;
    if (found.isSymbolicLink()) {
      if (++links > maxLinks) return undefined;
      const to = await readlink(join(rootfs, next));
      if (to.startsWith("/")) at = "/";
      rest = [...to.split("/").filter((one) => one !== ""), ...others];
    } else {
      at = next;
      rest = others;
    }
  }
  return join(rootfs, at);
}
