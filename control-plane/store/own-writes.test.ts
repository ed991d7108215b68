import { randomInt } from "node:crypto";
import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Block, TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import { DeleteRangeRequest, PutRequest } from "../../proto/gen/etcd/rpc.ts";
import { EtcdClient } from "./client.ts";
import { Election } from "./election.ts";
import { type OpenStore, openStore, type TestEtcd, testEtcd, untilView, wireTo } from "./etcd.testing.ts";
import type { EtcdStore } from "./etcd.ts";
import { OwnWrites } from "./own-writes.ts";
import { keyOf, leaderKey, tasksPrefix } from "./schema.ts";
import { node, task } from "./testing.ts";
import type { CommitOptions, View, Write } from "./types.ts";
import type { Entry } from "./view.ts";
import type { WatchAnswer } from "./watch-response.ts";

describe("OwnWrites", () => {
  const entries = (revision: number): Entry[] => [{ table: "tasks", id: `t${revision}`, value: undefined }];

  it("applies each revision once and in order, however they are told", () => {
    const order = fc
      .integer({ min: 1, max: 30 })
      .chain((count) => fc.shuffledSubarray(numbers(count), { minLength: count, maxLength: count }));
    fc.assert(
      fc.property(order, (told) => {
        let revision = 0;
        const applied: number[] = [];
        const apply = (what: readonly Entry[], next: number) => {
          expect(what).toEqual(entries(next));
          applied.push(next);
          revision = next;
        };
        using own = new OwnWrites({ revision: () => revision, apply, onGap: () => undefined });
        for (const one of told) {
          own.add(one, entries(one));
          own.add(one, []);
        }
        expect(applied).toEqual(numbers(told.length));
      }),
    );
  });

  it("tells of a gap that stays, and of none that is filled", () => {
    vi.useFakeTimers();
    try {
      let revision = 0;
      const onGap = vi.fn();
      using own = new OwnWrites({ revision: () => revision, apply: (_, next) => (revision = next), onGap });
      own.add(2, entries(2));
      vi.advanceTimersByTime(400);
      own.add(1, entries(1));
      vi.advanceTimersByTime(10_000);
      expect(onGap).not.toHaveBeenCalled();
      own.add(5, entries(5));
      vi.advanceTimersByTime(400);
      own.add(6, entries(6));
      vi.advanceTimersByTime(400);
      expect(onGap).toHaveBeenCalledOnce();
      expect(revision).toBe(2);
    } finally {
      vi.useRealTimers();
    }
  });
});

function numbers(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i + 1);
}

let etcd: TestEtcd;
beforeAll(async () => {
  etcd = await testEtcd();
});
afterAll(async () => {
  await etcd[Symbol.asyncDispose]();
});
beforeEach(async () => {
  await etcd.clear();
});

/** A client of which transactions can be held up, and answers be lost, and which tells what its watch brings. */
class Meddling extends EtcdClient {
  /** Awaited before a transaction is sent. */
  before: () => Promise<void> = async () => undefined;
  losesAnswers = false;
  readonly watched: string[] = [];
  #held: { readonly answer: WatchAnswer; readonly listener: (answer: WatchAnswer) => void }[] | undefined;

  override async call<Request, Response>(
    pick: Parameters<typeof EtcdClient.prototype.call<Request, Response>>[0],
    request: Request,
    options?: Parameters<typeof EtcdClient.prototype.call<Request, Response>>[2],
  ): Promise<Response> {
    const isCommit = Buffer.isBuffer(request);
    if (isCommit) await this.before();
    const answer = await super.call(pick, request, options);
    if (isCommit && this.losesAnswers) throw new ClusterError("the answer is lost", { code: "unavailable" });
    return answer;
  }

  override watch() {
    const stream = super.watch();
    const on = stream.on.bind(stream);
    stream.on = (event: string, listener: (...args: never[]) => void) =>
      on(event, (...args: unknown[]) => {
        if (event === "data") this.#tell(args[0] as WatchAnswer, listener as (answer: WatchAnswer) => void);
        else listener(...(args as never[]));
      });
    return stream;
  }

  /** Keeps back what the watch brings until the release, which tells it as one answer. */
  holdWatch(): void {
    this.#held = [];
  }

  releaseWatch(): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    const last = held.at(-1);
    last?.listener({ ...last.answer, events: held.flatMap(({ answer }) => answer.events) });
  }

  #tell(answer: WatchAnswer, listener: (answer: WatchAnswer) => void): void {
    for (const { key } of answer.events) this.watched.push(key);
    if (this.#held !== undefined && answer.events.length > 0) this.#held.push({ answer, listener });
    else listener(answer);
  }
}

type Member = OpenStore<Meddling>;

async function member(endpoint = etcd.directory.settings.clientListen): Promise<Member> {
  const { identity } = etcd.directory;
  return await openStore(etcd, new Meddling({ endpoints: [endpoint], identity, log: silentLog }));
}

type Leading = AsyncDisposable & { readonly deposed: AbortSignal };

/** Makes it the leader, until it is disposed of. */
async function lead({ client, store }: Member, name: string): Promise<Leading> {
  const deps = { client, store, clock: systemClock, log: silentLog };
  const election = new Election(deps, { member: name, instance: "1", ttlMs: 30_000 });
  const stop = new AbortController();
  const led = Promise.withResolvers<AbortSignal>();
  const running = election.run(async (deposed) => {
    led.resolve(deposed);
    await new Promise((resolve) => deposed.addEventListener("abort", resolve, { once: true }));
  }, stop.signal);
  return {
    deposed: await led.promise,
    [Symbol.asyncDispose]: async () => {
      stop.abort(new Error("stopped"));
      await running;
    },
  };
}

function contentOf(view: View): unknown {
  const { revision: _, ...tables } = view;
  return Object.entries(tables).map(([name, table]) => [
    name,
    [...table.entries()]
      .map(([id, value]) => [id, value, table.revisionOf(id)])
      .sort(([a], [b]) => String(a).localeCompare(String(b))),
  ]);
}

const block = (n: number): Write => {
  const value = Block.create({ networkId: "n", cidr: `10.96.${n}.0/27`, nodeId: "a" });
  return { table: "blocks", id: `n/10.96.${n}.0-27`, value };
};
const status = (id: string, sequence: number): Write => ({
  table: "taskStatuses",
  id,
  value: TaskStatus.create({ taskId: id, sequence }),
});
const put = (id: string, slot = 0): Write => ({ table: "tasks", id, value: task(id, { slot }) });
const fenced: CommitOptions = { fenced: true };

describe("a store that leads", () => {
  it("hears nothing of tasks, and its view is that of everybody, revision for revision", async () => {
    await using own = await member();
    await using other = await member();
    await using _ = await lead(own, "a");
    own.client.watched.length = 0;
    const from = own.store.view.revision;
    const seen: number[] = [];
    using _seen = own.store.subscribe((_changes, revision) => seen.push(revision));
    const choices: readonly (() => readonly Write[])[] = [
      () => [put(`t${randomInt(20)}`, randomInt(1_000))],
      () => [put(`t${randomInt(20)}`, randomInt(1_000)), block(randomInt(5))],
      () => [block(randomInt(5)), put("t1", randomInt(1_000)), status("t1", randomInt(1_000))],
      () => [{ table: "tasks", id: `t${randomInt(20)}`, value: undefined }],
      () => [{ table: "blocks", id: `n/10.96.${randomInt(5)}.0-27`, value: undefined }, put("t2", randomInt(1_000))],
      () => [status(`t${randomInt(20)}`, randomInt(1_000))],
    ];
    let left = 400;
    const write = async (store: EtcdStore, pick: () => readonly Write[], options?: CommitOptions) => {
      while (left-- > 0) await store.commit(pick(), options);
    };
    await Promise.all([
      ...Array.from({ length: 4 }, async () =>
        write(own.store, () => (choices[randomInt(choices.length)] as () => readonly Write[])(), fenced),
      ),
      ...Array.from({ length: 4 }, async () =>
        write(other.store, () => [randomInt(2) === 0 ? status(`t${randomInt(20)}`, 7) : block(randomInt(5))]),
      ),
    ]);
    const last = await own.store.commit([{ table: "nodes", id: "last", value: node("last") }]);
    expect(seen).toEqual(numbers(last - from).map((n) => from + n));
    expect(own.client.watched.filter((key) => key.startsWith(tasksPrefix))).toEqual([]);
    await using fresh = await member();
    expect(contentOf(own.store.view)).toEqual(contentOf(fresh.store.view));
    await untilView(other.store, "the last commit", (view) => view.nodes.size > 0);
    expect(contentOf(other.store.view)).toEqual(contentOf(fresh.store.view));
  });

  it("sees what the next leader writes", async () => {
    await using a = await member();
    await using b = await member();
    {
      await using _ = await lead(a, "a");
      await a.store.commit([put("t1", 1)], fenced);
    }
    await using _ = await lead(b, "b");
    await b.store.commit([put("t1", 2), put("t2")], fenced);
    await untilView(
      a.store,
      "the next leader's tasks",
      (view) => view.tasks.get("t1")?.slot === 2 && view.tasks.size === 2,
    );
  });

  it("sees what the next leader writes when it hears of all that at once, and late", async () => {
    await using a = await member();
    await using b = await member();
    await using first = await lead(a, "a");
    a.client.watched.length = 0;
    a.client.holdWatch();
    await b.client.call(
      ({ kv }) => kv.deleteRange.bind(kv),
      DeleteRangeRequest.create({ key: Buffer.from(leaderKey) }),
    );
    await using _ = await lead(b, "b");
    await b.store.commit([put("t1")], fenced);
    await b.store.commit([{ table: "nodes", id: "n1", value: node("n1") }]);
    while (!a.client.watched.includes(keyOf("nodes", "n1"))) await new Promise((resolve) => setImmediate(resolve));
    a.client.releaseWatch();
    await untilView(a.store, "the node", (view) => view.nodes.size === 1);
    expect(first.deposed.aborted).toBe(true);
    expect(a.store.view.tasks.get("t1")).toEqual(task("t1"));
  });

  it("sees a commit of which it never got the answer", async () => {
    await using own = await member();
    await using _ = await lead(own, "a");
    own.client.losesAnswers = true;
    await expect(own.store.commit([put("t1"), block(1)], fenced)).rejects.toMatchObject({ code: "unavailable" });
    own.client.losesAnswers = false;
    await untilView(own.store, "the task", (view) => view.tasks.size === 1 && view.blocks.size === 1);
    await own.store.commit([{ ...put("t1", 5), ifRevision: own.store.view.tasks.revisionOf("t1") } as Write], fenced);
  });

  it("sees what somebody else writes of tasks all the same", async () => {
    await using own = await member();
    await using other = await member();
    await using _ = await lead(own, "a");
    await own.store.commit([put("t1")], fenced);
    const known = own.store.view.tasks.revisionOf("t1");
    await untilView(other.store, "the task", (view) => view.tasks.size === 1);
    await other.store.commit([put("t1", 9)]);
    // Nothing has told it so; the refusal does.
    await expect(own.store.commit([{ ...put("t1", 3), ifRevision: known } as Write], fenced)).rejects.toMatchObject({
      code: "conflict",
      subject: "tasks/t1",
    });
    await untilView(own.store, "the other's task", (view) => view.tasks.get("t1")?.slot === 9);
  });

  it("sees another's write that it took for a part of its own commit, which is refused", async () => {
    await using own = await member();
    await using other = await member();
    await using _ = await lead(own, "a");
    const made = await own.store.commit([block(1)]);
    await untilView(other.store, "the block", (view) => view.blocks.size === 1);
    const waits = Promise.withResolvers<void>();
    own.client.before = async () => await waits.promise;
    const commit = own.store.commit([put("t1"), { ...block(1), ifRevision: made } as Write], fenced);
    own.client.watched.length = 0;
    const moved = { ...block(1), value: Block.create({ networkId: "n", cidr: "10.96.1.0/27", nodeId: "b" }) } as Write;
    await other.store.commit([moved]);
    while (own.client.watched.length === 0) await new Promise((resolve) => setImmediate(resolve));
    waits.resolve();
    await expect(commit).rejects.toMatchObject({ code: "conflict", subject: "blocks/n/10.96.1.0-27" });
    await untilView(own.store, "the moved block", (view) => view.blocks.get("n/10.96.1.0-27")?.nodeId === "b");
    expect(own.store.view.tasks.size).toBe(0);
  });

  it("goes on where others have keys in the same etcd", async () => {
    await using own = await member();
    await using _ = await lead(own, "a");
    const foreign = PutRequest.create({ key: Buffer.from("/somebody/else"), value: Buffer.from("x") });
    await own.client.call(({ kv }) => kv.put.bind(kv), foreign);
    await own.store.commit([put("t1")], fenced);
    expect(own.store.view.tasks.size).toBe(1);
    await own.client.call(({ kv }) => kv.put.bind(kv), foreign);
    await own.store.commit([put("t2"), block(1)], fenced);
    expect([own.store.view.tasks.size, own.store.view.blocks.size]).toEqual([2, 1]);
  });

  it("misses nothing when its connection is cut", async () => {
    await using wire = await wireTo(etcd.directory.settings.clientListen);
    await using own = await member(wire.endpoint);
    await using other = await member();
    await using leading = await lead(own, "a");
    for (let round = 0; round < 3; round++) {
      const commits = Array.from({ length: 8 }, async (_, i) => {
        await own.store.commit([put(`r${round}t${i}`), block(i)], fenced).catch(() => undefined);
      });
      wire.cut();
      await other.store.commit([status(`r${round}`, 1)]);
      wire.heal();
      await Promise.all(commits);
    }
    expect(leading.deposed.aborted).toBe(false);
    await own.store.commit([{ table: "nodes", id: "last", value: node("last") }], fenced);
    await using fresh = await member();
    expect(contentOf(own.store.view)).toEqual(contentOf(fresh.store.view));
  });
});
