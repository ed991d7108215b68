import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { ClusterError, isErrno } from "../../lib/errors/errors.ts";
import { PublishedPort } from "../../proto/gen/embassy/v1/stack.ts";
import type { Attachment } from "../plan/view.ts";
import { fullRestMs } from "./addresses.ts";

const format = 1;

/**
 * The attachments and resting addresses of this host, in one file that is replaced as a whole: after a SIGKILL at any
 * instant it holds one version or the next. It is written before what it says is used. Not synced to disk: after a crash
 * of the machine the namespaces it names are gone as well.
 */
export class Ledger {
  readonly #path: string;
  readonly attachments = new Map<string, Attachment>();
  /** When each address was released. */
  readonly resting = new Map<string, number>();
  #writing: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  /** Reads the file; none is an empty ledger. Throws `internal` when it cannot be understood. */
  async load(): Promise<void> {
    let text: string;
    try {
      text = await readFile(this.#path, "utf8");
    } catch (error) {
      if (isErrno(error, "ENOENT")) return;
      throw error;
    }
    try {
      const data = JSON.parse(text) as { format: number; attachments: Attachment[]; resting: [string, number][] };
      if (data.format !== format) throw new Error(`format ${data.format}`);
      for (const one of data.attachments) {
        // Read as the contract's JSON, so that fields added since have their defaults.
        const hostPorts = one.hostPorts.map((port) => PublishedPort.fromJSON(port));
        this.attachments.set(one.taskId, { ...one, hostPorts, resolvers: one.resolvers ?? [] });
      }
      for (const [address, sinceMs] of data.resting) this.resting.set(address, sinceMs);
    } catch (cause) {
      throw new ClusterError(`${this.#path} cannot be read`, {
        code: "internal",
        subject: this.#path,
        hint: "Stop this host's tasks, then move the file away.",
        cause,
      });
    }
  }

  /** Resolves when what the maps hold now is in the file. Calls during a write share the next one. */
  async save(): Promise<void> {
    this.#next ??= (async () => {
      await this.#writing?.catch(() => {});
      this.#next = undefined;
      this.#writing = this.#write();
      await this.#writing;
    })();
    await this.#next;
  }

  async #write(): Promise<void> {
    const nowMs = Date.now();
    for (const [address, sinceMs] of this.resting) if (nowMs - sinceMs >= fullRestMs) this.resting.delete(address);
    const attachments = [...this.attachments.values()].map((one) => ({
      ...one,
      hostPorts: one.hostPorts.map((port) => PublishedPort.toJSON(port)),
    }));
    const text = JSON.stringify({ format, attachments, resting: [...this.resting] });
    await mkdir(dirname(this.#path), { recursive: true, mode: 0o700 });
    const temporary = `${this.#path}.new`;
    await writeFile(temporary, text, { mode: 0o600 });
    await rename(temporary, this.#path);
  }
}
