import { chmod, chown, mkdir, readdir, rename, rm, stat, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { runOk } from "../../lib/process/run.ts";
import type { Assignment, Blob } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { BlobMount } from "../../proto/gen/embassy/v1/stack.ts";
import type { ContainerMount } from "../runtime/types.ts";

// statfs(2), TMPFS_MAGIC
const tmpfsMagic = 0x01021994;

/**
 * A task's configs and secrets as files. Both lie in memory: on the run directory's own tmpfs, or on one mounted below it.
 * The directory is for root only; in the container each file has the owner and mode that its service asks for.
 */
export class TaskFiles {
  readonly #directory: string;

  /** @param runDir What lasts until the next boot. */
  constructor(runDir: string) {
    this.#directory = join(runDir, "files");
  }

  /** Must be awaited before the others. */
  async prepareDirectory(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    if ((await statfs(this.#directory)).type === tmpfsMagic) return;
    try {
      await runOk("mount", ["-t", "tmpfs", "-o", "mode=0700,nosuid,nodev", "embassy-files", this.#directory]);
    } catch (cause) {
      throw new ClusterError(`cannot mount a tmpfs for secrets at ${this.#directory}: ${messageOf(cause)}`, {
        code: "internal",
        subject: this.#directory,
        hint: "Run noded as root, or put --run-dir on a tmpfs.",
        cause,
      });
    }
  }

  /**
   * Writes what the container mounts. Throws `unavailable` when the secrets' content is not known (it is not kept on disk) and
   * they were not written before.
   */
  async write(assignment: Assignment, secretsKnown: boolean): Promise<void> {
    for (const { kind, index, mount, blob } of wanted(assignment)) {
      const path = this.#path(assignment.taskId, kind, index);
      if (blob === undefined) {
        throw new ClusterError(`${kind} ${mount.source} was not delivered with the task`, {
          code: "invalid",
          subject: `task/${assignment.taskId}`,
        });
      }
      if (kind === "secret" && !secretsKnown) {
        if (await isThere(path)) continue;
        throw new ClusterError(`waits for the control plane to send secret ${mount.source} again`, {
          code: "unavailable",
          subject: `task/${assignment.taskId}`,
        });
      }
      await mkdir(join(this.#directory, assignment.taskId), { recursive: true, mode: 0o700 });
      const temporary = `${path}.tmp`;
      await rm(temporary, { force: true });
      await writeFile(temporary, blob.content, { mode: 0o600, flag: "wx" });
      await chown(temporary, mount.uid, mount.gid);
      await chmod(temporary, mount.mode === 0 ? 0o444 : mount.mode & 0o7777);
      await rename(temporary, path);
    }
  }

  /** How the runtime mounts them. */
  mounts(assignment: Assignment): ContainerMount[] {
    return wanted(assignment).map(({ kind, index, mount }) => ({
      type: "bind",
      source: this.#path(assignment.taskId, kind, index),
      target: mount.target,
      readOnly: true,
    }));
  }

  async remove(taskId: string): Promise<void> {
    await rm(join(this.#directory, taskId), { recursive: true, force: true });
  }

  /** Tasks that have files here, ascending. */
  async list(): Promise<string[]> {
    return (await readdir(this.#directory)).sort();
  }

  #path(taskId: string, kind: string, index: number): string {
    return join(this.#directory, taskId, `${kind}-${index}`);
  }
}

interface WantedFile {
  readonly kind: "config" | "secret";
  readonly index: number;
  readonly mount: BlobMount;
  readonly blob: Blob | undefined;
}

function wanted(assignment: Assignment): WantedFile[] {
  const of = (kind: WantedFile["kind"], mounts: readonly BlobMount[], blobs: readonly Blob[]) =>
    mounts.map((mount, index) => ({ kind, index, mount, blob: blobs.find((blob) => blob.name === mount.source) }));
  const { container } = assignment;
  return [
    ...of("config", container?.configs ?? [], assignment.configs),
    ...of("secret", container?.secrets ?? [], assignment.secrets),
  ];
}

async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}
