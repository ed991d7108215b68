import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isErrno, messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { NetworkState } from "../../proto/gen/embassy/v1/dispatcher.ts";

/** Where the last state is kept, in netd's state directory. */
export function stateFilePath(stateDir: string): string {
  return join(stateDir, "network-state.bin");
}

/** A write that takes longer is one of a large state. */
const largeMs = 10;
const maxRestMs = 5_000;

/**
 * The last network state, so that a netd that starts while the control plane is away serves and mends by it. Writing
 * starts at once and one at a time: a burst of changes is two writes. A large state is written less often, so that writing
 * takes a twentieth of the time at most, whatever the cluster's size.
 */
export class StateFile {
  readonly #path: string;
  readonly #log: Log;
  #writing: Promise<void> | undefined;
  #again: (() => NetworkState) | undefined;
  #wake: (() => void) | undefined;
  #stopping = false;

  constructor(path: string, log: Log) {
    this.#path = path;
    this.#log = log;
  }

  /** The state kept, or undefined: none, or one that cannot be read, which the control plane then replaces. */
  async load(): Promise<NetworkState | undefined> {
    try {
      return NetworkState.decode(await readFile(this.#path));
    } catch (error) {
      if (!isErrno(error, "ENOENT"))
        this.#log.warn("the last network state cannot be read", { error: messageOf(error) });
      return undefined;
    }
  }

  /** Has the state written; asks for it when its turn has come. */
  save(state: () => NetworkState): void {
    this.#again = state;
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
    });
  }

  /** Writes what is still to be written, without delay, and resolves when it is. */
  async idle(): Promise<void> {
    this.#stopping = true;
    this.#wake?.();
    await this.#writing;
  }

  async #rest(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    this.#wake = resolve;
    await promise;
    clearTimeout(timer);
    this.#wake = undefined;
  }

  async #write(): Promise<void> {
    while (this.#again !== undefined) {
      const startMs = performance.now();
      const bytes = NetworkState.encode(this.#again()).finish();
      this.#again = undefined;
      try {
        await mkdir(dirname(this.#path), { recursive: true, mode: 0o700 });
        await writeFile(`${this.#path}.new`, bytes, { mode: 0o600 });
        await rename(`${this.#path}.new`, this.#path);
      } catch (error) {
        this.#log.warn("the network state was not saved", { error });
      }
      const tookMs = performance.now() - startMs;
      if (tookMs > largeMs && !this.#stopping) await this.#rest(Math.min(maxRestMs, tookMs * 20));
    }
  }
}
