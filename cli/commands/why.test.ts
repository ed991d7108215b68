import { describe, expect, it } from "vitest";
import { SimulateResponse, WhyResponse } from "../../proto/gen/embassy/v1/api.ts";
import { DesiredState, TaskState } from "../../proto/gen/embassy/v1/state.ts";
import type { Screen } from "../render/style.ts";
import { foretoldText } from "./simulate.ts";
import { whyText } from "./why.ts";

const screen = (columns: number): Screen => ({ isTerminal: true, columns, colours: false, write: () => undefined });

function task(slot: number, nodeName: string, state: TaskState = TaskState.TASK_STATE_RUNNING) {
  return {
    task: {
      stack: "shop",
      serviceName: "web",
      slot,
      nodeId: nodeName,
      desired: DesiredState.DESIRED_STATE_RUNNING,
    },
    status: { state, exitCode: 1 },
    nodeName,
  };
}

const score = (nodeName: string, terms: Record<string, number>) => ({
  nodeId: nodeName,
  nodeName,
  cost: Object.values(terms).reduce((sum, points) => sum + points, 0),
  terms: Object.entries(terms).map(([name, points]) => ({ name, points })),
});

const ran = {
  service: "shop_web",
  subject: "shop_web.2",
  tasks: [task(2, "host-3")],
  nodes: 4,
  fitting: 3,
  candidates: [
    score("host-3", { load: 3 }),
    score("host-2", { load: 509 }),
    score("host-1", { service: 1_000, load: 9 }),
  ],
  refusals: [
    { kind: "availability", why: "node is drained", nodes: 1, classes: [{ name: "linux/amd64 worker", nodes: 1 }] },
  ],
  present: { score: score("host-3", { load: 3 }) },
};
const text = (response: Parameters<typeof WhyResponse.fromPartial>[0], columns = 80) =>
  whyText(screen(columns), WhyResponse.fromPartial(response));

describe("why", () => {
  it("shows where a task runs, what other nodes would cost by what differs, and which would not take it", () => {
    expect(text(ran)).toBe(`shop_web.2 is on host-3, running.

3 of 4 nodes would take shop_web.2 now, its own place counted as free. Best first:
NODE          COST  SERVICE  LOAD  WHY NOT FIRST
host-3  here     3        0     3
host-2         509        0   509  is fuller
host-1        1009     1000     9  has more of the service, is fuller

1 would not:
NODES  WHY NOT          WHICH
    1  node is drained  1 × linux/amd64 worker
`);
  });

  it("fits a narrow terminal", () => {
    const names = ["service", "load", "failures", "spread", "links", "image"];
    const wide = (node: string, factor: number) =>
      score(node, Object.fromEntries(names.map((name, n) => [name, factor * 10 ** n])));
    const candidates = [wide("a-host-with-a-long-name", 1), wide("b", 2), wide("c", 3)];
    for (const columns of [40, 60, 80]) {
      const table = text({ ...ran, candidates }, columns).split("\n\n")[1] ?? "";
      for (const line of table.split("\n").slice(1)) expect(line.length).toBeLessThanOrEqual(columns);
      expect(table).toContain("COST");
    }
  });

  it("says why a task waits, what the nearest node lacks, and what would mend it", () => {
    const waits = {
      service: "shop_web",
      subject: "shop_web.1",
      tasks: [task(1, "", TaskState.TASK_STATE_PENDING)],
      nodes: 1,
      why: "1 node: 2 CPU needed, 1 free",
      refusals: [{ kind: "resources", why: "2 CPU needed, 1 free", nodes: 1 }],
      nearest: {
        score: score("host-1", {}),
        reasons: [{ kind: "resources", why: "2 CPU needed, 1 free", fix: "Free 1 CPU on node host-1." }],
      },
    };
    expect(text(waits)).toBe(`shop_web.1 waits: 1 node: 2 CPU needed, 1 free.

Nearest is host-1:
  2 CPU needed, 1 free. Free 1 CPU on node host-1.
`);
    // Asked for that node, it is said once.
    expect(text({ ...waits, asked: waits.nearest })).toBe(`shop_web.1 waits: 1 node: 2 CPU needed, 1 free.

host-1 would not take shop_web.1:
  2 CPU needed, 1 free. Free 1 CPU on node host-1.
`);
    const service = { ...waits, tasks: [...waits.tasks, task(2, "", TaskState.TASK_STATE_PENDING), task(3, "host-1")] };
    expect(text(service)).toMatch(
      /^shop_web has 3 tasks: 1 on host-1, 2 waiting\.\nshop_web\.1 and 1 more wait: 1 node: 2 CPU needed, 1 free\.\n\n/,
    );
  });

  it("says of a service how its tasks ended, the last three first", () => {
    const failed = (slot: number, finishedAtMs: number) => {
      const view = task(slot, "host-3", TaskState.TASK_STATE_REJECTED);
      return { ...view, status: { ...view.status, finishedAtMs, message: `port 909${slot} is in use` } };
    };
    const ended = [failed(2, 20), failed(3, 40), failed(4, 10), failed(5, 30)];
    const response = {
      ...ran,
      subject: "",
      tasks: [task(1, "host-1"), ...ended],
      nodes: 0,
      fitting: 0,
      candidates: [],
    };
    expect(text({ ...response, refusals: [], present: undefined }, 200)).toContain(
      "shop_web has 5 tasks: 1 on host-1, 4 ended.\nshop_web.3 has ended on host-3, rejected: port 9093 is in use.\nshop_web.5 has ended on host-3, rejected: port 9095 is in use.\nshop_web.2 has ended on host-3, rejected: port 9092 is in use.\n",
    );
  });

  it("has one sentence for a task that has ended", () => {
    const ended = { service: "shop_web", tasks: [task(2, "host-3", TaskState.TASK_STATE_FAILED)] };
    expect(text(ended)).toBe("shop_web.2 has ended on host-3, failed (1).\n");
  });

  it("says when the node where a task runs would not take it now, and of equals that the draw decides", () => {
    const drained = { ...ran, present: { ...ran.present, reasons: [{ why: "node is drained", fix: "Activate it." }] } };
    expect(text(drained)).toContain("host-3 itself would not take it now:\n  node is drained. Activate it.\n");
    const equal = { ...ran, candidates: [score("host-1", {}), score("host-2", {})], present: undefined };
    expect(text(equal)).toMatch(/\nNODE +COST {2}WHY NOT FIRST\nhost-1 +0\nhost-2 +0 {2}as good: the draw decides\n/);
  });
});

describe("what is foretold", () => {
  it("is a line a task, and once what would mend it for those that wait", () => {
    const wait = {
      from: "host-3",
      why: "2 nodes: 2 CPU needed, 1 free",
      nearest: { score: score("host-1", {}), reasons: [{ fix: "Free 1 CPU on node host-1." }] },
    };
    const response = SimulateResponse.fromPartial({
      moves: [
        { taskName: "shop_web.1", from: "host-3", to: "host-1", why: "its node is drained" },
        { taskName: "shop_web.4", to: "host-2", why: "its slot is empty" },
      ],
      stops: [{ taskName: "shop_agent.host-3", node: "host-3", why: "its node is drained" }],
      waits: [
        { taskName: "shop_db.1", ...wait },
        { taskName: "shop_db.2", ...wait },
        { taskName: "shop_old.1", already: true, why: "no room" },
      ],
    });
    expect(foretoldText(screen(80), response)).toBe(`TASK               FROM    TO       WHY
shop_web.1         host-3  host-1   its node is drained
shop_web.4         -       host-2   its slot is empty
shop_agent.host-3  host-3  (ends)   its node is drained
shop_db.1          host-3  (waits)  2 nodes: 2 CPU needed, 1 free
shop_db.2          host-3  (waits)  2 nodes: 2 CPU needed, 1 free
shop_db.1 and 1 more: nearest is host-1. Free 1 CPU on node host-1.
`);
    expect(foretoldText(screen(80), SimulateResponse.create())).toBe("");
    const stays = [{ taskId: "t", taskName: "shop_web.1", stack: "shop", node: "host-3", why: "shop_web has 2" }];
    expect(foretoldText(screen(80), SimulateResponse.fromPartial({ stays }))).toBe(`TASK        FROM    TO       WHY
shop_web.1  host-3  (stays)  shop_web has 2
With --force the drain takes tasks that stay all the same.
`);
  });
});
