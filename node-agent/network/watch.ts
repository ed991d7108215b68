import type { Clock } from "../../lib/clock/clock.ts";
import { messageOf } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import type { NetworkState } from "./client.ts";

const intervalMs = 1_500;
/** A netd that is started again is away for less. */
const timesInARow = 3;

/** Asks netd again and again how it is, so that the cluster can show a host whose netd is dead, frozen, or cannot do its work. */
export class NetworkWatch {
  readonly #deps: { readonly log: Log; readonly clock: Clock; readonly network: NetworkState };
  #problem = "";
  #times = 0;

  constructor(deps: { readonly log: Log; readonly clock: Clock; readonly network: NetworkState }) {
    this.#deps = deps;
  }

  /** What is wrong with netd, and has been for some seconds; empty: nothing. */
  get problem(): string {
    return this.#problem;
  }

  /** Asks until the signal is aborted. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.ask();
      await this.#deps.clock.sleep(intervalMs, signal).catch(() => undefined);
    }
  }

  /** Asks once. */
  async ask(): Promise<void> {
    const problem = await this.#look();
    this.#times = problem === "" ? 0 : this.#times + 1;
    const told = this.#times === 0 || this.#times >= timesInARow ? problem : this.#problem;
    if ((told === "") !== (this.#problem === "")) this.#deps.log.warn("netd", { problem: told || "none any more" });
    this.#problem = told;
  }

  async #look(): Promise<string> {
    try {
      const { connected, lastError } = await this.#deps.network.status();
      if (lastError !== "") return `netd cannot apply the network: ${lastError}`;
      return connected ? "" : "netd has no connection to the control plane";
    } catch (error) {
      return messageOf(error).replace("waits for the network: ", "");
    }
  }
}
