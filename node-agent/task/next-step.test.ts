import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DesiredState } from "../../proto/gen/embassy/v1/state.ts";
import { type ContainerFact, nextStep, type Observed, type Outcome, type Step, type Wanted } from "./next-step.ts";

const { DESIRED_STATE_READY, DESIRED_STATE_RUNNING, DESIRED_STATE_SHUTDOWN, DESIRED_STATE_REMOVED } = DesiredState;
const desiredStates = [DESIRED_STATE_READY, DESIRED_STATE_RUNNING, DESIRED_STATE_SHUTDOWN, DESIRED_STATE_REMOVED];

const fresh: Observed = {
  image: false,
  network: false,
  files: false,
  mounted: false,
  container: { kind: "none" },
  started: false,
  unhealthy: false,
  predecessorStops: false,
  roomIsTaken: false,
  stopSentAtMs: undefined,
  killedAtMs: undefined,
  outcome: undefined,
  released: false,
  nowMs: 100_000,
};
const prepared: Observed = { ...fresh, image: true, network: true, files: true };
const created: Observed = { ...prepared, mounted: true, container: { kind: "created" } };
const running: Observed = { ...created, container: { kind: "running" }, started: true };
const exited = (exitCode: number): Observed => ({ ...running, container: { kind: "exited", exitCode } });
const wanted = (desired: DesiredState): Wanted => ({ desired, stopGraceMs: 10_000 });

function step(desired: DesiredState, seen: Observed): Partial<Step> {
  const { why, ...rest } = nextStep(wanted(desired), seen);
  expect(why).not.toBe("");
  return rest;
}

describe("nextStep", () => {
  it.each<[string, DesiredState, Observed, object]>([
    [
      "prepares everything at once",
      DESIRED_STATE_RUNNING,
      fresh,
      { kind: "prepare", image: true, network: true, files: true },
    ],
    [
      "prepares what is missing",
      DESIRED_STATE_READY,
      { ...prepared, network: false },
      { kind: "prepare", image: false, network: true, files: false },
    ],
    ["mounts when prepared", DESIRED_STATE_RUNNING, prepared, { kind: "mount" }],
    ["creates when mounted", DESIRED_STATE_READY, { ...prepared, mounted: true }, { kind: "create" }],
    ["waits for leave to start", DESIRED_STATE_READY, created, { kind: "wait" }],
    [
      "waits while the one before it stops",
      DESIRED_STATE_RUNNING,
      { ...created, predecessorStops: true },
      { kind: "wait" },
    ],
    [
      "waits while what makes room for it is there",
      DESIRED_STATE_RUNNING,
      { ...created, roomIsTaken: true },
      { kind: "wait" },
    ],
    ["starts when it may", DESIRED_STATE_RUNNING, created, { kind: "start" }],
    ["stops what is unhealthy", DESIRED_STATE_RUNNING, { ...running, unhealthy: true }, { kind: "signal" }],
    [
      "gives what is unhealthy its grace",
      DESIRED_STATE_RUNNING,
      { ...running, unhealthy: true, stopSentAtMs: 94_000 },
      { kind: "wait", forMs: 4_000 },
    ],
    [
      "kills what is unhealthy and does not stop",
      DESIRED_STATE_RUNNING,
      { ...running, unhealthy: true, stopSentAtMs: 90_000 },
      { kind: "kill" },
    ],
    [
      "has failed when it was unhealthy, whatever its exit code",
      DESIRED_STATE_RUNNING,
      { ...exited(0), unhealthy: true },
      { kind: "settle", outcome: "failed", exitCode: 0 },
    ],
    [
      "was stopped as asked though it was unhealthy",
      DESIRED_STATE_SHUTDOWN,
      { ...exited(0), unhealthy: true },
      { kind: "settle", outcome: "shutdown", exitCode: 0 },
    ],
    ["leaves alone what runs", DESIRED_STATE_RUNNING, running, { kind: "wait" }],
    ["tells success", DESIRED_STATE_RUNNING, exited(0), { kind: "settle", outcome: "complete", exitCode: 0 }],
    ["tells failure", DESIRED_STATE_RUNNING, exited(137), { kind: "settle", outcome: "failed", exitCode: 137 }],
    ["tells an unknown end", DESIRED_STATE_RUNNING, exited(-1), { kind: "settle", outcome: "failed", exitCode: -1 }],
    [
      "never makes a container again that ran",
      DESIRED_STATE_RUNNING,
      { ...fresh, started: true },
      { kind: "settle", outcome: "failed", exitCode: -1 },
    ],
    [
      "makes one again that never ran",
      DESIRED_STATE_RUNNING,
      { ...fresh, started: false },
      { kind: "prepare", image: true, network: true, files: true },
    ],
    ["stops kindly first", DESIRED_STATE_SHUTDOWN, running, { kind: "signal" }],
    [
      "gives it its grace",
      DESIRED_STATE_SHUTDOWN,
      { ...running, stopSentAtMs: 94_000 },
      { kind: "wait", forMs: 4_000 },
    ],
    ["kills after its grace", DESIRED_STATE_SHUTDOWN, { ...running, stopSentAtMs: 90_000 }, { kind: "kill" }],
    [
      "waits after the kill",
      DESIRED_STATE_SHUTDOWN,
      { ...running, stopSentAtMs: 80_000, killedAtMs: 99_500 },
      { kind: "wait", forMs: 1_500 },
    ],
    [
      "kills again what is still there",
      DESIRED_STATE_REMOVED,
      { ...running, stopSentAtMs: 80_000, killedAtMs: 98_000 },
      { kind: "kill" },
    ],
    [
      "waits no longer than its grace though the clock was set back",
      DESIRED_STATE_SHUTDOWN,
      { ...running, stopSentAtMs: 900_000 },
      { kind: "wait", forMs: 10_000 },
    ],
    [
      "stops what was never started",
      DESIRED_STATE_SHUTDOWN,
      created,
      { kind: "settle", outcome: "shutdown", exitCode: 0 },
    ],
    [
      "tells the exit code of what was stopped",
      DESIRED_STATE_SHUTDOWN,
      exited(143),
      { kind: "settle", outcome: "shutdown", exitCode: 143 },
    ],
    [
      "takes everything away at the end",
      DESIRED_STATE_RUNNING,
      { ...exited(0), outcome: "complete" },
      { kind: "release" },
    ],
    [
      "keeps record and log of what has ended",
      DESIRED_STATE_SHUTDOWN,
      { ...exited(0), outcome: "shutdown", released: true },
      { kind: "wait" },
    ],
    [
      "forgets when nobody asks any more",
      DESIRED_STATE_REMOVED,
      { ...exited(0), outcome: "failed", released: true },
      { kind: "forget" },
    ],
  ])("%s", (_, desired, seen, expected) => {
    expect(step(desired, seen)).toEqual(expected);
  });
});

// ---- a model of the host: what each step does, and what may come in between

interface Model {
  seen: Observed;
  forgotten: boolean;
  /** How often the container's program was run: a task is one attempt. */
  runs: number;
}

function apply(model: Model, taken: Step): Model {
  const { seen } = model;
  const become = (patch: Partial<Observed>): Model => ({ ...model, seen: { ...seen, ...patch } });
  switch (taken.kind) {
    case "prepare":
      return become({ image: true, network: true, files: true });
    case "mount":
      return become({ mounted: true });
    case "create":
      return become({ container: { kind: "created" } });
    case "start":
      return { ...become({ container: { kind: "running" }, started: true }), runs: model.runs + 1 };
    case "signal":
      return become({ stopSentAtMs: seen.nowMs });
    case "kill":
      return become({ killedAtMs: seen.nowMs, container: { kind: "exited", exitCode: 137 } });
    case "settle":
      return become({ outcome: taken.outcome });
    case "release":
      return become({ released: true, container: { kind: "none" }, mounted: false });
    case "forget":
      return { ...model, forgotten: true };
    case "wait":
      return become({ nowMs: seen.nowMs + (taken.forMs ?? 0) });
    default:
      return taken satisfies never;
  }
}

/** noded is killed and starts again: what it knew only by itself is gone, and a container that never ran is deleted. */
function restart(model: Model): Model {
  const container: ContainerFact = model.seen.container.kind === "created" ? { kind: "none" } : model.seen.container;
  const lost = { image: false, network: false, files: false, mounted: false };
  return { ...model, seen: { ...model.seen, ...lost, container } };
}

function isSettled(desired: DesiredState, model: Model): boolean {
  const { seen } = model;
  switch (desired) {
    case DESIRED_STATE_READY:
      return seen.container.kind === "created" || seen.container.kind === "running" || seen.released;
    case DESIRED_STATE_RUNNING:
      return seen.container.kind === "running" || seen.released;
    case DESIRED_STATE_SHUTDOWN:
      return seen.released;
    default:
      return model.forgotten;
  }
}

function settle(desired: DesiredState, start: Model): { model: Model; steps: number } {
  let model = start;
  for (let steps = 0; steps < 30; steps++) {
    if (model.forgotten) return { model, steps };
    const taken = nextStep(wanted(desired), model.seen);
    if (taken.kind === "wait" && taken.forMs === undefined) return { model, steps };
    model = apply(model, taken);
  }
  throw new Error(`no end: ${JSON.stringify(model.seen)}`);
}

type Event =
  | { readonly kind: "step" }
  | { readonly kind: "restart" }
  | { readonly kind: "exit"; readonly exitCode: number }
  | { readonly kind: "reject" }
  | { readonly kind: "want"; readonly desired: DesiredState }
  | { readonly kind: "clock"; readonly byMs: number };

const event = fc.oneof(
  { weight: 6, arbitrary: fc.constant<Event>({ kind: "step" }) },
  { weight: 2, arbitrary: fc.constant<Event>({ kind: "restart" }) },
  fc.constantFrom(0, 1, 137, -1).map((exitCode): Event => ({ kind: "exit", exitCode })),
  fc.constant<Event>({ kind: "reject" }),
  fc.constantFrom(...desiredStates).map((desired): Event => ({ kind: "want", desired })),
  fc.integer({ min: -100_000, max: 100_000 }).map((byMs): Event => ({ kind: "clock", byMs })),
);

describe("nextStep, whatever happens", () => {
  it("brings the task to what is wanted, runs it at most once, and then rests", () => {
    fc.assert(
      fc.property(fc.array(event, { maxLength: 40 }), fc.constantFrom(...desiredStates), (events, last) => {
        let desired: DesiredState = DESIRED_STATE_READY;
        let model: Model = { seen: fresh, forgotten: false, runs: 0 };
        let outcome: Outcome | undefined;
        for (const happened of events) {
          const { seen } = model;
          if (model.forgotten) break;
          if (happened.kind === "want") desired = Math.max(desired, happened.desired) as DesiredState;
          else if (happened.kind === "restart") model = restart(model);
          else if (happened.kind === "clock")
            model = { ...model, seen: { ...seen, nowMs: seen.nowMs + happened.byMs } };
          else if (happened.kind === "step") model = apply(model, nextStep(wanted(desired), seen));
          else if (happened.kind === "reject") {
            if (seen.container.kind === "none" && !seen.started)
              model = { ...model, seen: { ...seen, outcome: seen.outcome ?? "rejected" } };
          } else if (seen.container.kind === "running") {
            model = { ...model, seen: { ...seen, container: { kind: "exited", exitCode: happened.exitCode } } };
          }
          if (outcome !== undefined) expect(model.seen.outcome).toBe(outcome);
          outcome = model.seen.outcome;
        }
        desired = Math.max(desired, last) as DesiredState;
        const { model: end } = settle(desired, model);
        expect(isSettled(desired, end)).toBe(true);
        expect(end.runs).toBeLessThanOrEqual(1);
        if (!end.forgotten) expect(settle(desired, end).steps).toBe(0);
      }),
      { seed: 20, numRuns: 3_000 },
    );
  });
});
