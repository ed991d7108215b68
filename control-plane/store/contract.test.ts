import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Election } from "./election.ts";
import { type TestEtcd, testEtcd } from "./etcd.testing.ts";
import { createMemoryStore } from "./memory.ts";
import { node, session, task } from "./testing.ts";
import type { Change, Store, StoredBlob } from "./types.ts";

interface Opened extends AsyncDisposable {
  readonly store: Store;
  /** Makes it lose the election key, or win it. */
  setLeading(leading: boolean): Promise<void>;
}

let etcd: TestEtcd;
beforeAll(async () => {
  etcd = await testEtcd();
});
afterAll(async () => {
  await etcd[Symbol.asyncDispose]();
});

async function openOnEtcd(): Promise<Opened> {
  await etcd.clear();
  const client = etcd.client();
  const store = await etcd.store(client);
  const election = new Election(
    { client, store, clock: systemClock, log: silentLog },
    { member: "m1", instance: "i1", ttlMs: 5_000 },
  );
  let resign = new AbortController();
  let running: Promise<void> = Promise.resolve();
  const setLeading = async (leading: boolean) => {
    if (!leading) {
      resign.abort();
      await running;
      return;
    }
    resign = new AbortController();
    const won = Promise.withResolvers<void>();
    running = election.run(async (deposed) => {
      won.resolve();
      await new Promise((resolve) => deposed.addEventListener("abort", resolve, { once: true }));
    }, resign.signal);
    await won.promise;
  };
  return {
    store,
    setLeading,
    [Symbol.asyncDispose]: async () => {
      await setLeading(false);
      await store[Symbol.asyncDispose]();
      client[Symbol.dispose]();
    },
  };
}

const backends: readonly { readonly name: string; readonly open: () => Promise<Opened> }[] = [
  {
    name: "memory",
    open: async () => {
      const store = createMemoryStore();
      return {
        store,
        setLeading: async (leading) => {
          store.leading = leading;
          await Promise.resolve();
        },
        [Symbol.asyncDispose]: async () => await Promise.resolve(),
      };
    },
  },
  { name: "etcd", open: openOnEtcd },
];

function blob(kind: StoredBlob["kind"], text: string): StoredBlob {
  const content = Buffer.from(text);
  return { kind, content, sha256: createHash("sha256").update(content).digest("hex") };
}

function record(store: Store): { readonly batches: { changes: readonly Change[]; revision: number }[] } & Disposable {
  const batches: { changes: readonly Change[]; revision: number }[] = [];
  const subscription = store.subscribe((changes, revision) => batches.push({ changes, revision }));
  return { batches, [Symbol.dispose]: () => subscription[Symbol.dispose]() };
}

describe.each(backends)("the store's contract, $name", ({ open }) => {
  it("a commit is in the view when it resolves, with its revision", async () => {
    await using opened = await open();
    const { store } = opened;
    const before = store.view.revision;
    const revision = await store.commit([
      { table: "nodes", id: "n1", value: node("n1") },
      { table: "tasks", id: "t1", value: task("t1", { nodeId: "n1" }) },
    ]);
    expect(revision).toBeGreaterThan(before);
    expect(store.view.revision).toBeGreaterThanOrEqual(revision);
    expect(store.view.nodes.get("n1")).toEqual(node("n1"));
    expect(store.view.nodes.revisionOf("n1")).toBe(revision);
    expect(store.view.tasks.revisionOf("t1")).toBe(revision);
    expect([...store.view.nodes.entries()]).toEqual([["n1", node("n1")]]);
    expect([...store.view.tasks.values()]).toHaveLength(1);
    expect(store.view.tasks.size).toBe(1);
    expect(store.view.nodes.get("n2")).toBeUndefined();
    expect(store.view.nodes.revisionOf("n2")).toBe(0);
  });

  it("a commit of nothing compares all the same, and changes nothing", async () => {
    await using opened = await open();
    const { store } = opened;
    const revision = await store.commit([{ table: "nodes", id: "n1", value: node("n1") }]);
    const expectAbsent = async (id: string) =>
      await store.commit([], { expect: [{ table: "nodes", id, revision: 0 }] });
    expect(await expectAbsent("n2")).toBe(revision);
    await expect(expectAbsent("n1")).rejects.toMatchObject({ code: "conflict", subject: "nodes/n1" });
    expect(store.view.revision).toBe(revision);
  });

  it("takes a value's row from an author who has it, and finds another one that is there meanwhile", async () => {
    await using opened = await open();
    const { store } = opened;
    await store.commit([{ table: "tasks", id: "t1", value: task("t1") }]);
    const row = store.view.tasks.row("t1");
    const move = async (nodeId: string) =>
      await store.commit([{ table: "tasks", id: "t1", value: task("t1", { nodeId }), row }]);
    const moved = await move("n1");
    expect(row).toMatchObject({ value: task("t1", { nodeId: "n1" }), revision: moved });
    await store.commit([{ table: "tasks", id: "t1", value: undefined }]);
    expect(store.view.tasks.row("t1")).toBeUndefined();
    for (const nodeId of ["n2", "n3"]) {
      const revision = await move(nodeId);
      expect(store.view.tasks.row("t1")).toMatchObject({ value: task("t1", { nodeId }), revision });
    }
    await store.commit([{ table: "tasks", id: "t1", value: undefined, row }]);
    expect(store.view.tasks.size).toBe(0);
  });

  it("one commit is one batch of changes, seen before it resolves", async () => {
    await using opened = await open();
    const { store } = opened;
    await store.commit([{ table: "nodes", id: "n1", value: node("n1") }]);
    using seen = record(store);
    const revision = await store.commit([
      { table: "nodes", id: "n1", value: node("n1", { name: "renamed" }) },
      { table: "nodes", id: "n2", value: node("n2") },
    ]);
    const removed = await store.commit([{ table: "nodes", id: "n1", value: undefined }]);
    expect(seen.batches).toEqual([
      {
        revision,
        changes: [
          { table: "nodes", id: "n1", before: node("n1"), after: node("n1", { name: "renamed" }) },
          { table: "nodes", id: "n2", before: undefined, after: node("n2") },
        ],
      },
      {
        revision: removed,
        changes: [{ table: "nodes", id: "n1", before: node("n1", { name: "renamed" }), after: undefined }],
      },
    ]);
    expect(store.view.nodes.size).toBe(1);
  });

  it("commits all of it or nothing when a value has changed since it was read", async () => {
    await using opened = await open();
    const { store } = opened;
    const first = await store.commit([{ table: "nodes", id: "n1", value: node("n1") }]);
    await store.commit([{ table: "nodes", id: "n1", value: node("n1", { name: "second" }), ifRevision: first }]);
    const stale = store.commit([
      { table: "tasks", id: "t1", value: task("t1") },
      { table: "nodes", id: "n1", value: node("n1", { name: "third" }), ifRevision: first },
    ]);
    await expect(stale).rejects.toMatchObject({ code: "conflict", subject: "nodes/n1" });
    expect(store.view.tasks.size).toBe(0);
    expect(store.view.nodes.get("n1")?.name).toBe("second");
  });

  it("creates only where nothing is with ifRevision 0", async () => {
    await using opened = await open();
    const { store } = opened;
    await store.commit([{ table: "nodes", id: "n1", value: node("n1"), ifRevision: 0 }]);
    const again = store.commit([{ table: "nodes", id: "n1", value: node("n1"), ifRevision: 0 }]);
    await expect(again).rejects.toMatchObject({ code: "conflict", subject: "nodes/n1" });
  });

  it("conflicts when something that was only read has changed", async () => {
    await using opened = await open();
    const { store } = opened;
    const read = await store.commit([{ table: "nodes", id: "n1", value: node("n1") }]);
    const expectN1 = [{ table: "nodes", id: "n1", revision: read }] as const;
    await store.commit([{ table: "tasks", id: "t1", value: task("t1") }], { expect: expectN1 });
    await store.commit([{ table: "nodes", id: "n1", value: undefined }]);
    const stale = store.commit([{ table: "tasks", id: "t2", value: task("t2") }], { expect: expectN1 });
    await expect(stale).rejects.toMatchObject({ code: "conflict", subject: "nodes/n1" });
    await store.commit([{ table: "tasks", id: "t2", value: task("t2") }], {
      expect: [{ table: "nodes", id: "n1", revision: 0 }],
    });
  });

  it("of racing commits that read the same revision exactly one wins", async () => {
    await using opened = await open();
    const { store } = opened;
    const read = await store.commit([{ table: "nodes", id: "n1", value: node("n1") }]);
    const results = await Promise.allSettled(
      Array.from({ length: 8 }, (_, i) =>
        store.commit([{ table: "nodes", id: "n1", value: node("n1", { name: `racer-${i}` }), ifRevision: read }]),
      ),
    );
    const won = results.flatMap(({ status }, i) => (status === "fulfilled" ? [`racer-${i}`] : []));
    expect(won).toEqual([store.view.nodes.get("n1")?.name]);
  });

  it("a commit that changes nothing resolves, without a change event", async () => {
    await using opened = await open();
    const { store } = opened;
    using seen = record(store);
    await store.commit([]);
    await store.commit([{ table: "nodes", id: "nobody", value: undefined }]);
    expect(seen.batches).toEqual([]);
  });

  it("refuses two writes to one place", async () => {
    await using opened = await open();
    const { store } = opened;
    const twice = store.commit([
      { table: "nodes", id: "n1", value: node("n1") },
      { table: "nodes", id: "n1", value: undefined },
    ]);
    await expect(twice).rejects.toMatchObject({ code: "internal", subject: "nodes/n1" });
  });

  it("values go with their lease, in one batch, and the lease says so", async () => {
    await using opened = await open();
    const { store } = opened;
    const lease = await store.grantLease(5_000);
    expect(await store.keepAlive(lease)).toBe(true);
    await store.commit([
      { table: "sessions", id: "n1", value: session("n1"), lease },
      { table: "sessions", id: "n2", value: session("n2"), lease },
      { table: "sessions", id: "n3", value: session("n3") },
    ]);
    const gone = Promise.withResolvers<readonly Change[]>();
    using _ = store.subscribe((changes) => gone.resolve(changes));
    await store.revokeLease(lease);
    expect((await gone.promise).map(({ id, after }) => ({ id, after }))).toEqual([
      { id: "n1", after: undefined },
      { id: "n2", after: undefined },
    ]);
    expect(store.view.sessions.size).toBe(1);
    expect(await store.keepAlive(lease)).toBe(false);
    const late = store.commit([{ table: "sessions", id: "n1", value: session("n1"), lease }]);
    await expect(late).rejects.toMatchObject({ code: "conflict", subject: `lease/${lease}` });
  });

  it("a value that is written again without the lease stays when the lease goes", async () => {
    await using opened = await open();
    const { store } = opened;
    const lease = await store.grantLease(5_000);
    await store.commit([
      { table: "sessions", id: "n1", value: session("n1"), lease },
      { table: "sessions", id: "n2", value: session("n2"), lease },
    ]);
    await store.commit([{ table: "sessions", id: "n1", value: session("n1") }]);
    const gone = Promise.withResolvers<readonly Change[]>();
    using _ = store.subscribe((changes) => gone.resolve(changes));
    await store.revokeLease(lease);
    expect((await gone.promise).map(({ id }) => id)).toEqual(["n2"]);
    expect(store.view.sessions.get("n1")).toBeDefined();
  });

  it("lets only the leader make fenced commits", async () => {
    await using opened = await open();
    const { store } = opened;
    const write = [{ table: "tasks", id: "t1", value: task("t1") }] as const;
    await opened.setLeading(false);
    await expect(store.commit(write, { fenced: true })).rejects.toMatchObject({ code: "conflict", subject: "leader" });
    expect(store.view.tasks.size).toBe(0);
    await opened.setLeading(true);
    await store.commit(write, { fenced: true });
    expect(store.view.tasks.size).toBe(1);
  });

  it("keeps configs and secrets by kind and digest", async () => {
    await using opened = await open();
    const { store } = opened;
    const config = blob("config", "listen 80");
    const secret = blob("secret", "hunter2");
    await store.commit([
      { table: "blobs", id: `config/${config.sha256}`, value: config },
      { table: "blobs", id: `secret/${secret.sha256}`, value: secret },
    ]);
    expect(store.view.blobs.get(`config/${config.sha256}`)).toEqual(config);
    expect(store.view.blobs.get(`secret/${secret.sha256}`)).toEqual(secret);
  });

  it("throws the signal's reason when it is aborted before", async () => {
    await using opened = await open();
    const { store } = opened;
    const aborted = store.commit([{ table: "nodes", id: "n1", value: node("n1") }], {
      signal: AbortSignal.abort(new Error("no longer wanted")),
    });
    await expect(aborted).rejects.toThrow("no longer wanted");
    expect(store.view.nodes.size).toBe(0);
  });
});
