import { describe, expect, it } from "vitest";
import { systemClock } from "../../../lib/clock/clock.ts";
import type { Log } from "../../../lib/log/log.ts";
import { silentLog } from "../../../lib/log/log.ts";
import { DisruptionPolicy, UpdatePolicy } from "../../../proto/gen/embassy/v1/stack.ts";
import { Availability } from "../../../proto/gen/embassy/v1/state.ts";
import { stackProgress } from "../../domain/progress.ts";
import { aService, aStack, replicas } from "../../domain/testing.ts";
import { createControllers } from "../index.ts";
import { SteppedCluster } from "../testing.ts";

const settings = { rebalanceSettleMs: 300, rebalanceCooldownMs: 60_000 };
const update = UpdatePolicy.create({ parallelism: 1, monitorMs: 100 });
const disruption = DisruptionPolicy.create({ rebalance: true });

/** All controllers on the state in memory, and nodes that go on by themselves, until it is disposed of. */
class Running implements AsyncDisposable {
  readonly cluster = new SteppedCluster();
  readonly lines: { readonly message: string; readonly fields: Record<string, unknown> }[] = [];
  #stop = new AbortController();
  #leading: Promise<void> = Promise.resolve();
  #stepping = Promise.resolve();
  readonly #nodes = this.cluster.index.subscribe(() => this.step());

  async [Symbol.asyncDispose](): Promise<void> {
    await this.depose();
    this.#nodes[Symbol.dispose]();
    await this.#stepping;
    this.cluster[Symbol.dispose]();
  }

  step(): void {
    this.#stepping = this.#stepping.then(async () => {
      this.cluster.nowMs = Date.now();
      await this.cluster.stepNodes();
    });
  }

  lead(): void {
    const { index, store } = this.cluster;
    const note = (message: string, fields: Record<string, unknown> = {}) => void this.lines.push({ message, fields });
    const log: Log = { ...silentLog, info: note, warn: note };
    this.#stop = new AbortController();
    this.#leading = createControllers({ index, store, log, clock: systemClock, settings }).run(this.#stop.signal);
  }

  async depose(): Promise<void> {
    this.#stop.abort();
    await this.#leading;
  }

  /** Resolves when it holds after a change of the state; the test's own time is the limit. */
  async until(holds: () => boolean): Promise<void> {
    if (holds()) return;
    await new Promise<void>((resolve) => {
      const watch = this.cluster.index.subscribe(() => {
        if (!holds()) return;
        watch[Symbol.dispose]();
        resolve();
      });
    });
  }

  perNode(): number[] {
    const nodes = this.cluster.running("s", "web").map((one) => one.split("@")[1] ?? "");
    return ["a", "b", "c"].map((name) => nodes.filter((node) => node === name).length);
  }

  /** Of the moves that the log tells of. */
  said(message: string): Record<string, unknown>[] {
    return this.lines.filter((line) => line.message === message).map(({ fields }) => fields);
  }
}

/** Six tasks on two of three nodes, of which the third is active again. */
async function uneven(): Promise<Running> {
  const running = new Running();
  const { cluster } = running;
  await cluster.addNodes("a", "b", "c");
  await cluster.drain("c");
  running.lead();
  await cluster.deploy(aStack("s", [aService("web", { mode: replicas(6), disruption, update })]));
  await running.until(() => running.perNode().join() === "3,3,0" && stackProgress(cluster.index, "s").converged);
  const { id, version } = cluster.service("s", "web");
  await running.until(() => cluster.index.view.serviceStatuses.get(id)?.convergedVersion === version);
  await cluster.setAvailability("c", Availability.AVAILABILITY_ACTIVE);
  return running;
}

describe("the leader", () => {
  it("spreads a service again by itself, never with fewer tasks up, and says so in its log", async () => {
    await using running = await uneven();
    let least = 6;
    using _ = running.cluster.index.subscribe(() => {
      least = Math.min(least, running.cluster.running("s", "web").length);
    });
    const service = running.cluster.service("s", "web");
    const status = () => running.cluster.index.view.serviceStatuses.get(service.id)?.rebalance;
    await running.until(() => running.perNode().join() === "2,2,2" && status()?.taskId === "");
    expect(least).toBe(6);
    expect(running.said("task moves")).toHaveLength(2);
    expect(running.said("task moved")[0]).toMatchObject({
      service: "s_web",
      from: expect.stringMatching(/^[ab]$/),
      to: "c",
      why: expect.stringContaining("s_web has 3 tasks in"),
    });
  });

  it("that is deposed in the middle of a move leaves it to the next one", async () => {
    await using running = await uneven();
    const { cluster } = running;
    const marked = () => cluster.service("s", "web").moving.length;
    await running.until(() => marked() > 0);
    cluster.frozen = true;
    await running.depose();
    running.lead();
    cluster.frozen = false;
    running.step();
    await running.until(() => running.perNode().join() === "2,2,2" && marked() === 0);
    // Six at first, and no more than the two that moved.
    expect(cluster.tasks("s", "web")).toHaveLength(8);
  });
});
