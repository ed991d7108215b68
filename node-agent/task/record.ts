import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { isErrno } from "../../lib/errors/errors.ts";
import { isId } from "../../lib/ids/ids.ts";
import type { Log } from "../../lib/log/log.ts";
import { Assignment } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { Health, TaskAddress, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import type { Image } from "../images/types.ts";
import type { Outcome } from "./next-step.ts";

/** What netd gave a task. */
export interface TaskNet {
  readonly netnsPath: string;
  readonly addresses: readonly TaskAddress[];
  readonly dnsAddress: string;
}

/** What the node has done for a task and seen of it: what is needed to go on after a crash. */
export interface TaskRecord {
  readonly format: 1;
  /** The furthest state reached. */
  readonly state: TaskState;
  readonly message: string;
  readonly sequence: number;
  readonly observedAtMs: number;
  readonly image: Image | undefined;
  readonly network: TaskNet | undefined;
  /** 0: none. */
  readonly pid: number;
  /** 0: it never ran. */
  readonly startedAtMs: number;
  readonly health: Health;
  /** When it first ran and its health check, if it has one, had passed. 0 or absent: never. */
  readonly upAtMs?: number;
  /** What made it unhealthy, "unhealthy: ...". Absent otherwise, and in records of versions that did not know it. */
  readonly unhealthy?: string;
  readonly stopSentAtMs: number | undefined;
  readonly killedAtMs: number | undefined;
  readonly outcome: Outcome | undefined;
  readonly exitCode: number;
  readonly oomKilled: boolean;
  /** 0: it has not ended. */
  readonly finishedAtMs: number;
  readonly released: boolean;
}

export interface StoredTask {
  readonly assignment: Assignment;
  /** undefined: accepted, and nothing done yet. */
  readonly record: TaskRecord | undefined;
}

/**
 * Keeps tasks under one directory, `<id>/assignment.pb` and `<id>/record.json`, each replaced whole. Secrets' content is left
 * out: it is written to memory only. Not synced to disk: after a power cut the containers are gone too, and the control plane
 * says again what is wanted.
 */
export class RecordStore {
  readonly #directory: string;
  readonly #log: Log;

  constructor(directory: string, log: Log) {
    this.#directory = directory;
    this.#log = log;
  }

  directoryOf(taskId: string): string {
    return join(this.#directory, taskId);
  }

  async writeAssignment(assignment: Assignment): Promise<void> {
    const stored = {
      ...assignment,
      secrets: assignment.secrets.map(({ name }) => ({ name, content: Buffer.alloc(0) })),
    };
    await this.#write(assignment.taskId, "assignment.pb", Assignment.encode(stored).finish());
  }

  async writeRecord(taskId: string, record: TaskRecord): Promise<void> {
    await this.#write(taskId, "record.json", JSON.stringify(record));
  }

  async #write(taskId: string, name: string, content: Uint8Array | string): Promise<void> {
    const directory = this.directoryOf(taskId);
    const path = join(directory, name);
    const temporary = `${path}.tmp`;
    try {
      await writeFile(temporary, content, { mode: 0o600 });
    } catch (error) {
      if (!isErrno(error, "ENOENT")) throw error;
      await mkdir(directory, { recursive: true, mode: 0o700 });
      await writeFile(temporary, content, { mode: 0o600 });
    }
    await rename(temporary, path);
  }

  /** Every task that is whole, by id ascending; the directories of others are removed. */
  async load(): Promise<StoredTask[]> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const tasks: StoredTask[] = [];
    for (const taskId of (await readdir(this.#directory)).sort()) {
      const assignment = isId(taskId) ? await this.#readAssignment(taskId) : undefined;
      if (assignment === undefined || assignment.taskId !== taskId) {
        this.#log.warn("task forgotten: its record is incomplete", { taskId });
        await rm(this.directoryOf(taskId), { recursive: true, force: true });
        continue;
      }
      tasks.push({ assignment, record: await this.#readRecord(taskId) });
    }
    return tasks;
  }

  async #readAssignment(taskId: string): Promise<Assignment | undefined> {
    try {
      return Assignment.decode(await readFile(join(this.directoryOf(taskId), "assignment.pb")));
    } catch {
      return undefined;
    }
  }

  async #readRecord(taskId: string): Promise<TaskRecord | undefined> {
    try {
      const record: unknown = JSON.parse(await readFile(join(this.directoryOf(taskId), "record.json"), "utf8"));
      return typeof record === "object" && record !== null && "format" in record && record.format === 1
        ? (record as TaskRecord)
        : undefined;
    } catch (error) {
      if (!isErrno(error, "ENOENT")) this.#log.warn("task record is damaged", { taskId, error });
      return undefined;
    }
  }

  async remove(taskId: string): Promise<void> {
    await rm(this.directoryOf(taskId), { recursive: true, force: true });
  }
}
