import { mkdir, readdir, rm, statfs, symlink, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { newId } from "../../lib/ids/ids.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Spawner } from "../../lib/process/spawner.ts";
import { preparedDevice } from "../kernel/observe.ts";
import { gatewayMac } from "../plan/items.ts";

/** A network namespace with one end of a veth pair in it, waiting for a task. */
export interface PreparedNamespace {
  /** Pins the namespace. */
  readonly path: string;
  /** The host's end of the pair. */
  readonly device: string;
}

export interface NamespacesDeps {
  /** Folder of the pins, on a file system that a reboot empties. */
  readonly directory: string;
  readonly log: Log;
  readonly spawner: Spawner;
  /** Runs `ip` commands on the host; resolves to those that failed. */
  readonly ip: (commands: readonly string[]) => Promise<readonly { command: string; message: string }[]>;
  /** Namespaces kept ready. */
  readonly size: number;
}

const nsfsMagic = 0x6e736673;

/*
 * Every group may ping, ports below 1024 need no capability (a container's user is root of nothing but the container),
 * and there is no IPv6 on devices to come.
 */
const settings = {
  "net/ipv4/ping_group_range": "0 2147483647",
  "net/ipv4/ip_unprivileged_port_start": "0",
  "net/ipv6/conf/default/disable_ipv6": "1",
};

/**
 * Network namespaces pinned by bind mounts of their own, so that they outlive every process, and a few prepared ahead:
 * making one takes some milliseconds, giving one out none.
 */
export class Namespaces implements AsyncDisposable {
  readonly #deps: NamespacesDeps;
  readonly #ready: PreparedNamespace[] = [];
  #filling: Promise<void> | undefined;
  #stopped = false;

  constructor(deps: NamespacesDeps) {
    this.#deps = deps;
  }

  /** Removes every pin that is not named, and prepared devices of an earlier run; then starts to fill the pool. */
  async start(kept: ReadonlySet<string>): Promise<void> {
    await mkdir(this.#deps.directory, { recursive: true, mode: 0o755 });
    const gone: string[] = [];
    for (const name of await readdir(this.#deps.directory)) {
      const path = join(this.#deps.directory, name);
      if (!kept.has(path) && !name.startsWith("task-")) gone.push(path);
    }
    await this.remove(gone);
    this.#fill();
  }

  /** A namespace for a task: one of the pool's, or a new one when it is empty. */
  async take(): Promise<PreparedNamespace> {
    const ready = this.#ready.shift();
    if (ready === undefined) return await this.#prepare();
    this.#fill();
    return ready;
  }

  /** Does the pin hold a namespace? Not after a reboot. */
  async exists(path: string): Promise<boolean> {
    try {
      return (await statfs(path)).type === nsfsMagic;
    } catch {
      return false;
    }
  }

  /** Lets the namespaces go; each ends when its last process has. Those that are gone already are no error. */
  async remove(paths: readonly string[]): Promise<void> {
    for (const path of paths) {
      if (!(await this.exists(path))) continue;
      await this.#deps.spawner.unmount(path).catch((error: unknown) => {
        this.#deps.log.warn("a network namespace was not unmounted", { error });
      });
    }
    // Removing the file also lets go of copies of the mount in other mount namespaces.
    for (const path of paths) await rm(path, { force: true });
  }

  /** Makes the namespace of a task easy to find for people. */
  async name(taskId: string, path: string): Promise<void> {
    await rm(this.#alias(taskId), { force: true });
    await symlink(basename(path), this.#alias(taskId));
  }

  async unname(taskId: string): Promise<void> {
    await rm(this.#alias(taskId), { force: true });
  }

  #alias(taskId: string): string {
    return join(this.#deps.directory, `task-${taskId}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    await this.#filling;
    const ready = this.#ready.splice(0);
    await this.remove(ready.map(({ path }) => path));
  }

  #fill(): void {
    this.#filling ??= (async () => {
      try {
        while (!this.#stopped && this.#ready.length < this.#deps.size) this.#ready.push(await this.#prepare());
      } catch (error) {
        this.#deps.log.warn("no network namespace could be prepared", { error });
      } finally {
        this.#filling = undefined;
      }
    })();
  }

  async #prepare(): Promise<PreparedNamespace> {
    const id = newId();
    const path = join(this.#deps.directory, id);
    await writeFile(path, "");
    const device = preparedDevice(id);
    try {
      await this.#deps.spawner.network(path, settings);
      const [failure] = await this.#deps.ip([
        `link add ${device} address ${gatewayMac} type veth peer name eth0 netns ${path}`,
      ]);
      if (failure !== undefined) throw new Error(`${failure.command}: ${failure.message}`);
      return { path, device };
    } catch (error) {
      await this.remove([path]);
      throw error;
    }
  }
}
