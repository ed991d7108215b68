import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  heartbeatDelayMs,
  managerOf,
  nextState,
  retryDelayMs,
  type SessionEvent,
  type SessionState,
} from "./machine.ts";

const half = { random: () => 0.5 };
const welcome: SessionEvent = { kind: "welcomed", sessionId: "s1", heartbeatIntervalMs: 1_500 };

describe("the session's machine", () => {
  it("tries the managers in turn, waiting longer each time", () => {
    let state: SessionState = { kind: "waiting", turn: 0, failures: 0, forMs: 0 };
    const tried: string[] = [];
    const waits: number[] = [];
    for (let i = 0; i < 10; i++) {
      state = nextState(state, { kind: "waited" }, half);
      if (state.kind === "connecting") tried.push(managerOf(state.turn, ["a", "b"]));
      state = nextState(state, { kind: "lost", why: "refused" }, half);
      if (state.kind === "waiting") waits.push(state.forMs);
    }
    expect(tried).toEqual(["a", "b", "a", "b", "a", "b", "a", "b", "a", "b"]);
    expect(waits).toEqual([150, 300, 600, 750, 750, 750, 750, 750, 3_750, 3_750]);
  });

  it("goes back to the member it lost first, at once", () => {
    const state = nextState({ kind: "connecting", turn: 1, failures: 7 }, welcome, half);
    expect(state).toMatchObject({ kind: "established", turn: 1, sessionId: "s1", heartbeatIntervalMs: 1_500 });
    expect(nextState(state, { kind: "lost", why: "cut" }, half)).toEqual({
      kind: "waiting",
      turn: 1,
      failures: 0,
      forMs: 75,
    });
  });

  it("ignores what means nothing, and never leaves `stopped` and `removed`", () => {
    const waiting: SessionState = { kind: "waiting", turn: 0, failures: 0, forMs: 5 };
    expect(nextState(waiting, welcome, half)).toBe(waiting);
    const stopped = nextState(waiting, { kind: "stop" }, half);
    expect(nextState(stopped, welcome, half)).toEqual({ kind: "stopped" });
    const removed = nextState(nextState(waiting, { kind: "waited" }, half), { kind: "removed" }, half);
    for (const event of [welcome, { kind: "stop" }, { kind: "waited" }] as const) {
      expect(nextState(removed, event, half)).toEqual({ kind: "removed" });
    }
  });

  it("waits at most 5 s and beats at most an interval apart, whatever the chance", () => {
    const below = (n: number) => fc.double({ min: 0, max: n, maxExcluded: true, noNaN: true });
    fc.assert(
      fc.property(below(1), fc.nat(1_000), fc.integer({ min: 50, max: 60_000 }), (random, failures, interval) => {
        const chance = { random: () => random };
        const retry = retryDelayMs(failures, chance);
        expect(retry).toBeGreaterThanOrEqual(50);
        expect(retry).toBeLessThanOrEqual(5_000);
        const beat = heartbeatDelayMs(interval, chance);
        expect(beat).toBeGreaterThanOrEqual(Math.floor(interval * 0.8));
        expect(beat).toBeLessThanOrEqual(interval);
      }),
      { seed: 21 },
    );
  });
});
