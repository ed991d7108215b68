import { describe, expect, it } from "vitest";
import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { silentLog } from "../../lib/log/log.ts";
import { createMemoryStore, type MemoryStore } from "../store/memory.ts";
import { planVigil, type VigilStep, Vigils } from "./vigils.ts";

const leaseTtlMs = 5_000;

describe("what follows from a node's silence", () => {
  it.each<[string, number, number, boolean, VigilStep]>([
    ["heard lately", 1_000, 0, false, { kind: "wait", forMs: 1_500 }],
    ["heard lately, and still called quiet", 1_000, 0, true, { kind: "wait", forMs: 1_500 }],
    ["at half of its lease", 2_500, 0, false, { kind: "mark", forMs: 500 }],
    ["at half of its lease, by a timer that is hardly late", 2_600, 100, false, { kind: "mark", forMs: 500 }],
    ["at half of its lease, by a late timer", 2_601, 101, false, { kind: "wait", forMs: 100 }],
    ["quiet already", 3_000, 0, true, { kind: "wait", forMs: 500 }],
    ["quiet already, by a late timer", 3_500, 500, true, { kind: "wait", forMs: 500 }],
    ["for longer than its lease", 60_000, 0, false, { kind: "mark", forMs: 500 }],
  ])("%s", (_, silentMs, lateMs, quiet, step) => {
    expect(planVigil({ silentMs, lateMs, quiet }, leaseTtlMs)).toEqual(step);
  });
});

/** Time that passes when it is told to. */
class ManualClock implements Clock {
  #nowMs = 0;
  #sleepers: { readonly atMs: number; readonly wake: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  monotonicMs(): number {
    return this.#nowMs;
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    await new Promise<void>((wake, reject) => {
      this.#sleepers.push({ atMs: this.#nowMs + ms, wake });
      signal?.addEventListener("abort", () => reject(new Error("aborted")), { once: true });
    });
  }

  /** Lets that time pass, one sleeper after the other, and what they do happen. */
  async pass(ms: number): Promise<void> {
    const untilMs = this.#nowMs + ms;
    for (let n = 0; n < 1_000; n++) {
      const [next] = this.#sleepers.toSorted((a, b) => a.atMs - b.atMs);
      if (next === undefined || next.atMs > untilMs) break;
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      this.#wake(next);
      await settled();
    }
    this.#nowMs = untilMs;
  }

  /** The process is stopped for that long: then everybody wakes whose time has come. */
  async stop(ms: number): Promise<void> {
    this.#nowMs += ms;
    for (const sleeper of this.#sleepers.filter(({ atMs }) => atMs <= this.#nowMs)) this.#wake(sleeper);
    await settled();
  }

  #wake(sleeper: { readonly wake: () => void }): void {
    this.#sleepers = this.#sleepers.filter((one) => one !== sleeper);
    sleeper.wake();
  }
}

/** Everything that waits for nothing but its turn has happened. */
async function settled(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

async function watched() {
  const store: MemoryStore = createMemoryStore();
  const clock = new ManualClock();
  const trouble = { commits: 0 };
  const vigils = new Vigils({
    store: {
      view: store.view,
      commit: async (...args) => {
        if (trouble.commits-- > 0) throw new ClusterError("etcd does not answer", { code: "unavailable" });
        return await store.commit(...args);
      },
    },
    clock,
    log: silentLog,
    leaseTtlMs,
  });
  store.subscribe((changes) => {
    for (const change of changes) {
      if (change.table === "sessions") vigils.recordChanged(change.id, change.after?.sessionId);
    }
  });
  const register = async (sessionId: string) => {
    const lease = await store.grantLease(leaseTtlMs);
    const value = { nodeId: "a", sessionId, clusterd: "m", openedAtMs: 1, quiet: false };
    await store.commit([{ table: "sessions", id: "a", value, lease }]);
    return lease;
  };
  vigils.begin("a", "one", await register("one"));
  const session = () => store.view.sessions.get("a");
  const revision = () => store.view.sessions.revisionOf("a");
  return { store, trouble, clock, vigils, register, session, revision };
}

describe("a vigil", () => {
  it("calls a node quiet that was not heard for half of its lease, once, and under its lease", async () => {
    const { clock, session, vigils, store, revision } = await watched();
    await clock.pass(1_400);
    vigils.heard("a", "one");
    await clock.pass(2_499);
    expect(session()).toMatchObject({ sessionId: "one", quiet: false });
    await clock.pass(1);
    expect(session()).toMatchObject({ sessionId: "one", quiet: true });
    const at = revision();
    await clock.pass(20_000);
    expect(revision()).toBe(at);
    store.expireLease(1n);
    expect(session()).toBeUndefined();
    await clock.pass(20_000);
    expect(session()).toBeUndefined();
  });

  it("writes nothing of a node that is heard in time", async () => {
    const { clock, vigils, revision } = await watched();
    const at = revision();
    for (let n = 0; n < 20; n++) {
      await clock.pass(2_499);
      vigils.heard("a", "one");
    }
    expect(revision()).toBe(at);
  });

  it("takes its word back when a quiet node is heard, and begins anew", async () => {
    const { clock, session, vigils } = await watched();
    await clock.pass(4_999);
    expect(session()).toMatchObject({ quiet: true });
    vigils.heard("a", "one");
    await settled();
    expect(session()).toMatchObject({ quiet: false });
    await clock.pass(2_499);
    expect(session()).toMatchObject({ quiet: false });
    await clock.pass(501);
    expect(session()).toMatchObject({ quiet: true });
  });

  it("says again what the store did not take", async () => {
    const { clock, session, vigils, trouble } = await watched();
    trouble.commits = 2;
    await clock.pass(3_499);
    expect(session()).toMatchObject({ quiet: false });
    await clock.pass(1);
    expect(session()).toMatchObject({ quiet: true });
    trouble.commits = 1;
    vigils.heard("a", "one");
    await settled();
    expect(session()).toMatchObject({ quiet: true });
    vigils.heard("a", "one");
    await settled();
    expect(session()).toMatchObject({ quiet: false });
  });

  it("says nothing when it was this process that stood still", async () => {
    const { clock, session, vigils } = await watched();
    await clock.stop(4_000);
    expect(session()).toMatchObject({ quiet: false });
    // The heartbeats that had come meanwhile are read now.
    vigils.heard("a", "one");
    await clock.pass(2_400);
    expect(session()).toMatchObject({ quiet: false });
  });

  it("calls a node quiet that stays so after a standstill", async () => {
    const { clock, session } = await watched();
    await clock.stop(4_000);
    await clock.pass(99);
    expect(session()).toMatchObject({ quiet: false });
    await clock.pass(1);
    expect(session()).toMatchObject({ quiet: true });
  });

  it("leaves a session alone that the node has opened elsewhere, or anew", async () => {
    const { clock, session, vigils, register } = await watched();
    await register("elsewhere");
    vigils.heard("a", "one");
    await clock.pass(20_000);
    expect(session()).toMatchObject({ sessionId: "elsewhere", quiet: false });
    vigils.begin("a", "again", await register("again"));
    vigils.begin("a", "again", await register("again"));
    await clock.pass(2_499);
    expect(session()).toMatchObject({ sessionId: "again", quiet: false });
    await clock.pass(1);
    expect(session()).toMatchObject({ sessionId: "again", quiet: true });
  });

  it("ends with its member", async () => {
    const { clock, session, vigils } = await watched();
    vigils[Symbol.dispose]();
    await clock.pass(20_000);
    expect(session()).toMatchObject({ sessionId: "one", quiet: false });
  });
});
