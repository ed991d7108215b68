import { shareAddress } from "../../../lib/net/host-ip.ts";
import type { HostPort } from "../types.ts";
import type { TaskRecord } from "./records.ts";

/** One number of a protocol, at one address or at all of them. */
export interface PortClaim {
  /** See `portKey`. */
  readonly key: number;
  /** Absent: every address. */
  readonly address: string | undefined;
}

interface Held {
  readonly task: TaskRecord;
  readonly address: string | undefined;
  /** Another of the same number: at another address, or of a task that others than the scheduler put here. */
  readonly next: Held | undefined;
}

/** The ports of one node that tasks have. */
export class HeldPorts {
  readonly #held = new Map<number, Held>();

  get size(): number {
    return this.#held.size;
  }

  take({ key, address }: PortClaim, task: TaskRecord): void {
    this.#held.set(key, { task, address, next: this.#held.get(key) });
  }

  /** Gives back what the task has of this number. */
  release(key: number, task: TaskRecord): void {
    const left = without(this.#held.get(key), task);
    if (left === undefined) this.#held.delete(key);
    else this.#held.set(key, left);
  }

  /** A task that is in the claim's way; undefined: none is. Those of `leaving` are not. */
  holder({ key, address }: PortClaim, leaving?: ReadonlySet<TaskRecord>): TaskRecord | undefined {
    for (let held = this.#held.get(key); held !== undefined; held = held.next) {
      if (shareAddress(held.address, address) && leaving?.has(held.task) !== true) return held.task;
    }
    return undefined;
  }
}

function without(held: Held | undefined, task: TaskRecord): Held | undefined {
  if (held === undefined) return undefined;
  const next = without(held.next, task);
  if (held.task === task) return next;
  return next === held.next ? held : { ...held, next };
}

/** One number for a port and its protocol. */
export function portKey(port: number, protocol: "tcp" | "udp"): number {
  return port * 2 + (protocol === "udp" ? 1 : 0);
}

/** What a port claims; of one without a number, with that which it was given. */
export function claimOf({ port, protocol, address }: HostPort, given = port): PortClaim {
  return { key: portKey(given, protocol), address };
}

/** Can only one of the two be had on a node? */
export function clash(a: PortClaim, b: PortClaim): boolean {
  return a.key === b.key && shareAddress(a.address, b.address);
}
