import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { RangeRequest } from "../../proto/gen/etcd/rpc.ts";
import { etcdHostName } from "../etcd/arguments.ts";
import { EtcdClient } from "./client.ts";
import { claimCluster } from "./cluster.ts";
import { Election } from "./election.ts";
import { type OpenStore, openStore, type TestEtcd, testEtcd, untilView as until, wireTo } from "./etcd.testing.ts";
import { EtcdStore } from "./etcd.ts";
import { maintainOnce } from "./maintenance.ts";
import { createCodecs, keyOf } from "./schema.ts";
import { createBlobCodec } from "./seal.ts";
import { encoded, node, session, task } from "./testing.ts";
import type { Change, Store } from "./types.ts";
import type { WatchAnswer } from "./watch-response.ts";

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

const open = async (endpoint?: string): Promise<OpenStore> => await openStore(etcd, etcd.client(endpoint));

async function compact(client: EtcdClient, revision: number): Promise<void> {
  await client.call(({ kv }) => kv.compact.bind(kv), { revision: BigInt(revision), physical: true });
}

const names = (store: Store) => [...store.view.nodes.values()].map(({ name }) => name).sort();

describe("the view", () => {
  it("gets each change once and in order when the connection is lost in a backlog", async () => {
    await using wire = await wireTo(etcd.directory.settings.clientListen);
    await using near = await open(wire.endpoint);
    await using far = await open();
    const revisions: number[] = [];
    using _ = near.store.subscribe((_changes, revision) => revisions.push(revision));
    wire.cut();
    const made: number[] = [];
    for (let i = 0; i < 300; i++) {
      made.push(await far.store.commit([{ table: "tasks", id: `t${i}`, value: task(`t${i}`) }]));
    }
    wire.heal();
    // And once more in the middle of catching up.
    await until(near.store, "first of the backlog", (view) => view.tasks.size > 0);
    wire.cut();
    wire.heal();
    await until(near.store, "all 300", (view) => view.tasks.size === 300);
    expect(revisions).toEqual(made);
  });

  it("gets the difference as one batch when the revisions it missed are compacted", async () => {
    await using wire = await wireTo(etcd.directory.settings.clientListen);
    await using near = await open(wire.endpoint);
    await using far = await open();
    await far.store.commit([
      { table: "nodes", id: "kept", value: node("kept") },
      { table: "nodes", id: "changed", value: node("changed") },
      { table: "nodes", id: "removed", value: node("removed") },
    ]);
    await until(near.store, "three nodes", (view) => view.nodes.size === 3);
    const batches: { changes: readonly Change[]; revision: number }[] = [];
    using _ = near.store.subscribe((changes, revision) => batches.push({ changes, revision }));
    wire.cut();
    await far.store.commit([{ table: "nodes", id: "fleeting", value: node("fleeting") }]);
    await far.store.commit([{ table: "nodes", id: "fleeting", value: undefined }]);
    await far.store.commit([{ table: "nodes", id: "changed", value: node("changed", { name: "new" }) }]);
    await far.store.commit([{ table: "nodes", id: "removed", value: undefined }]);
    const last = await far.store.commit([{ table: "nodes", id: "added", value: node("added") }]);
    await compact(far.client, last);
    wire.heal();
    await until(near.store, "the node added", (view) => view.nodes.get("added") !== undefined);
    expect(batches).toHaveLength(1);
    expect(batches[0]?.revision).toBe(last);
    expect(batches[0]?.changes.map(({ id, before, after }) => [id, before !== undefined, after !== undefined])).toEqual(
      [
        ["removed", true, false],
        ["added", false, true],
        ["changed", true, true],
      ],
    );
    // And the watch goes on from there.
    await far.store.commit([{ table: "nodes", id: "later", value: node("later") }]);
    await until(near.store, "the node after", (view) => view.nodes.get("later") !== undefined);
  });

  it("goes on when etcd is killed, twice", async () => {
    await using opened = await open();
    const { store } = opened;
    for (const id of ["n1", "n2"]) {
      const { pid } = etcd.supervisor;
      const ended = etcd.supervisor.ended();
      process.kill(pid, "SIGKILL");
      await ended;
      let made = false;
      while (!made) {
        made = await store.commit([{ table: "nodes", id, value: node(id) }]).then(
          () => true,
          () => store.view.nodes.get(id) !== undefined,
        );
      }
      expect(etcd.supervisor.pid).not.toBe(pid);
      expect(store.view.nodes.get(id)).toEqual(node(id));
    }
    expect(store.view.nodes.size).toBe(2);
  });

  it("becomes that of an etcd which went back in time", async () => {
    await using broken = await testEtcd({}, etcd.directory);
    await using restored = await testEtcd({}, etcd.directory);
    await using wire = await wireTo(broken.directory.settings.clientListen);
    const identity = etcd.directory.identity;
    using client = new EtcdClient({ endpoints: [wire.endpoint], log: silentLog, identity });
    using other = new EtcdClient({ endpoints: [restored.directory.settings.clientListen], log: silentLog, identity });
    await using store = await etcd.store(client);
    await using elsewhere = await etcd.store(other);
    // The same place at the same revision, with another value.
    const [one, two] = await Promise.all([
      store.commit([{ table: "nodes", id: "n1", value: node("n1", { name: "broken" }) }]),
      elsewhere.commit([{ table: "nodes", id: "n1", value: node("n1", { name: "restored" }) }]),
    ]);
    expect(one).toBe(two);
    for (let i = 0; i < 20; i++)
      await store.commit([{ table: "nodes", id: "n2", value: node("n2", { name: `v${i}` }) }]);
    wire.cut();
    wire.heal(restored.directory.settings.clientListen);
    await until(store, "as restored", (view) => view.nodes.size === 1);
    expect(names(store)).toEqual(["restored"]);
    await store.commit([{ table: "nodes", id: "n3", value: node("n3") }]);
    expect(names(store)).toEqual(["host-n3", "restored"]);
  });

  it("takes transactions of thousands of values and of many megabytes", async () => {
    await using near = await open();
    await using far = await open();
    const batches: number[] = [];
    using _ = near.store.subscribe((changes) => batches.push(changes.length));
    const many = Array.from(
      { length: 5_000 },
      (_, i) => ({ table: "tasks", id: `t${i}`, value: task(`t${i}`) }) as const,
    );
    await far.store.commit(many);
    await until(near.store, "5,000 tasks", (view) => view.tasks.size === 5_000);
    const content = randomBytes(1_000_000);
    const big = Array.from({ length: 6 }, (_, i) => {
      const sha256 = `${i}`.padStart(64, "0");
      return { table: "blobs", id: `secret/${sha256}`, value: { kind: "secret", sha256, content } } as const;
    });
    await far.store.commit(big);
    await until(near.store, "6 secrets", (view) => view.blobs.size === 6);
    expect([...near.store.view.blobs.values()].every((blob) => blob.content.equals(content))).toBe(true);
    expect(batches).toEqual([5_000, 6]);
  });

  it("lists again when the watch has lost an event", async () => {
    let lossy = true;
    using client = filtered(({ events }, pass) => {
      if (!lossy || events.length === 0) pass();
      else lossy = false;
    });
    await using store = await etcd.store(client, { verifyIntervalMs: 50 });
    await using far = await open();
    await far.store.commit([{ table: "nodes", id: "lost", value: node("lost") }]);
    await far.store.commit([{ table: "nodes", id: "seen", value: node("seen") }]);
    await until(store, "the event that was lost", (view) => view.nodes.get("lost") !== undefined);
    expect(lossy).toBe(false);
    expect(names(store)).toEqual(["host-lost", "host-seen"]);
  });
});

/** A client of which each response on a watch goes through `filter`. */
function filtered(filter: (response: WatchAnswer, pass: () => void) => void): EtcdClient {
  const { identity, settings } = etcd.directory;
  class Filtered extends EtcdClient {
    override watch() {
      const stream = super.watch();
      const on = stream.on.bind(stream);
      stream.on = (event: string, listener: (...args: never[]) => void) =>
        on(event, (...args: unknown[]) => {
          const pass = () => listener(...(args as never[]));
          if (event === "data") filter(args[0] as WatchAnswer, pass);
          else pass();
        });
      return stream;
    }
  }
  return new Filtered({ endpoints: [settings.clientListen], log: silentLog, identity });
}

describe("a commit", () => {
  it("resolves when the view has it and not before", async () => {
    const held: (() => void)[] = [];
    let holding = true;
    using client = filtered(({ events }, pass) => {
      if (holding && events.length > 0) held.push(pass);
      else pass();
    });
    await using store = await etcd.store(client);
    await using far = await open();
    let resolved = false;
    const commit = store.commit([{ table: "nodes", id: "n1", value: node("n1") }]).then(() => {
      resolved = true;
    });
    await until(far.store, "the node", (view) => view.nodes.size === 1);
    // By now etcd has answered: a later call over the same connection has its answer.
    await store.grantLease(5_000);
    expect(resolved).toBe(false);
    holding = false;
    for (const pass of held) pass();
    await commit;
    expect(names(store)).toEqual(["host-n1"]);
  });

  it("leaves its author's own values in the view, and other members read the same", async () => {
    await using opened = await open();
    await using far = await open();
    const { store } = opened;
    const large = node("n2", { labels: { note: "x".repeat(20_000) } });
    const values = [node("n1"), large, node("n3", { name: "größer" })];
    await store.commit([{ table: "sessions", id: "gone", value: session("gone") }]);
    const lease = await store.grantLease(60_000);
    const revision = await store.commit([
      ...values.map((value) => ({ table: "nodes", id: value.id, value, lease }) as const),
      { table: "sessions", id: "never", value: undefined },
      { table: "sessions", id: "gone", value: undefined },
      { table: "tasks", id: "t1", value: task("t1") },
    ]);
    for (const value of values) expect(store.view.nodes.get(value.id)).toBe(value);
    for (const id of ["n1", "n2", "n3"]) expect(store.view.nodes.revisionOf(id)).toBe(revision);
    expect(store.view.sessions.size).toBe(0);
    await until(far.store, "the commit", (view) => view.revision >= revision);
    expect([...far.store.view.nodes.values()]).toEqual(values);
    expect(far.store.view.tasks.get("t1")).toEqual(task("t1"));
    expect(far.store.view.sessions.size).toBe(0);
  });

  it("is `unavailable` when etcd is not reached", async () => {
    await using wire = await wireTo(etcd.directory.settings.clientListen);
    await using near = await open(wire.endpoint);
    wire.cut();
    const failed = near.store.commit([{ table: "nodes", id: "n1", value: node("n1") }]);
    await expect(failed).rejects.toMatchObject({ code: "unavailable" });
    wire.heal();
    await near.store.commit([{ table: "nodes", id: "n2", value: node("n2") }]);
    expect(names(near.store)).toEqual(["host-n2"]);
  });

  it("is `exhausted` when etcd is full, with what to do", async () => {
    await using small = await testEtcd({ quotaBytes: 2 ** 20 });
    using client = small.client();
    await using store = await small.store(client);
    const fill = async () => {
      for (let i = 0; i < 100; i++) {
        const sha256 = `${i}`.padStart(64, "0");
        const content = randomBytes(200_000);
        await store.commit([{ table: "blobs", id: `config/${sha256}`, value: { kind: "config", sha256, content } }]);
      }
    };
    await expect(fill()).rejects.toMatchObject({ code: "exhausted", hint: expect.stringContaining("--etcd-quota") });
    // What can be removed without a write makes room.
    await store.commit([...store.view.blobs.entries()].map(([id]) => ({ table: "blobs", id, value: undefined })));
    await maintainOnce({ client, clock: systemClock, log: silentLog }, AbortSignal.timeout(20_000));
    await store.commit([{ table: "nodes", id: "n1", value: node("n1") }]);
  });
});

describe("large commits", () => {
  it("leave no memory for the collector to find", async () => {
    await using opened = await open();
    const name = "x".repeat(600_000);
    const commit = async () => await opened.store.commit([{ table: "nodes", id: "n1", value: node("n1", { name }) }]);
    await commit();
    const frames = vi.spyOn(Buffer, "allocUnsafe");
    const requests = vi.spyOn(Buffer, "allocUnsafeSlow");
    await commit();
    const large = (of: typeof frames) =>
      of.mock.results.filter((_, i) => (of.mock.calls[i]?.[0] ?? 0) > name.length).map(({ value }) => value as Buffer);
    expect(large(frames).map(({ length }) => length)).toEqual([0]);
    expect(large(requests)).toEqual([]);
    vi.restoreAllMocks();
  });

  it("that are refused or end without an answer do not get into the next", async () => {
    await using wire = await wireTo(etcd.directory.settings.clientListen);
    await using near = await open(wire.endpoint);
    await using far = await open();
    const large = (id: string, letter: string) =>
      ({ table: "nodes", id, value: node(id, { name: letter.repeat(200_000) }) }) as const;
    await near.store.commit([large("a", "a")]);
    await expect(near.store.commit([{ ...large("a", "b"), ifRevision: 1 }])).rejects.toMatchObject({
      code: "conflict",
    });
    wire.cut();
    const signal = AbortSignal.timeout(100);
    await expect(near.store.commit([large("c", "c")], { signal })).rejects.toThrow();
    wire.heal();
    await Promise.all(["d", "e", "f", "g", "h"].map(async (id) => await near.store.commit([large(id, id)])));
    for (const id of ["a", "d", "e", "f", "g", "h"]) {
      await until(far.store, id, (view) => view.nodes.get(id)?.name === id.repeat(200_000));
    }
  });
});

describe("secrets", () => {
  it("do not lie in etcd as they are, and open with no other key and at no other place", async () => {
    await using opened = await open();
    const sha256 = "a".repeat(64);
    const content = Buffer.from("a very secret thing");
    const id = `secret/${sha256}`;
    await opened.store.commit([{ table: "blobs", id, value: { kind: "secret", sha256, content } }]);
    const key = Buffer.from(keyOf("blobs", id));
    const { kvs } = await opened.client.call(({ kv }) => kv.range.bind(kv), RangeRequest.create({ key }));
    const stored = kvs[0]?.value ?? Buffer.alloc(0);
    expect(stored.length).toBeGreaterThan(content.length);
    expect(stored.includes(content)).toBe(false);
    const storeKey = randomBytes(32);
    const codec = createBlobCodec(storeKey);
    const sealed = encoded(codec, { kind: "secret", sha256, content }, id);
    expect(codec.decode(sealed, key.toString()).content).toEqual(content);
    expect(() => createBlobCodec(randomBytes(32)).decode(sealed, key.toString())).toThrow(/cannot be decrypted/);
    expect(() => codec.decode(sealed, keyOf("blobs", `secret/${"b".repeat(64)}`))).toThrow(/cannot be decrypted/);
  });

  it("of another store key keep a member from starting, with why", async () => {
    await using opened = await open();
    const sha256 = "a".repeat(64);
    const value = { kind: "secret", sha256, content: Buffer.from("x") } as const;
    await opened.store.commit([{ table: "blobs", id: `secret/${sha256}`, value }]);
    const codecs = createCodecs(createBlobCodec(randomBytes(32)));
    const deps = { client: opened.client, codecs, log: silentLog, clock: systemClock };
    await expect(EtcdStore.open(deps, AbortSignal.timeout(5_000))).rejects.toMatchObject({
      code: "denied",
      hint: expect.stringContaining("store.key"),
    });
  });
});

describe("a lease that nobody renews", () => {
  it("takes its values with it, and says that it is gone", async () => {
    await using opened = await open();
    const { store } = opened;
    const lease = await store.grantLease(1_000);
    await store.commit([{ table: "sessions", id: "n1", value: session("n1"), lease }]);
    await until(store, "no session", (view) => view.sessions.size === 0);
    expect(await store.keepAlive(lease)).toBe(false);
  });
});

describe("a client of several members", () => {
  it("leaves one that hangs for the next, with its watch", async () => {
    await using wire = await wireTo(etcd.directory.settings.clientListen);
    const { identity, settings } = etcd.directory;
    using client = new EtcdClient({ endpoints: [wire.endpoint, settings.clientListen], identity, log: silentLog });
    await using store = await etcd.store(client);
    await using far = await open();
    wire.hang();
    const commit = async (id: string) => await store.commit([{ table: "nodes", id, value: node(id) }]);
    await expect(commit("n1")).rejects.toMatchObject({ code: "unavailable" });
    await expect(commit("n1")).rejects.toMatchObject({ code: "unavailable" });
    await commit("n2");
    await far.store.commit([{ table: "nodes", id: "n3", value: node("n3") }]);
    await until(store, "what others wrote", (view) => view.nodes.get("n3") !== undefined);
    const lease = await store.grantLease(5_000);
    expect(await store.keepAlive(lease)).toBe(true);
  });
});

describe("the embedded etcd", () => {
  it("lets in no node, no administrator and no stranger, though they have certificates of the same CA", async () => {
    const { authority, settings } = etcd.directory;
    const nowMs = Date.now();
    const range = async (identity: TlsIdentity) => {
      using client = new EtcdClient({ endpoints: [settings.clientListen], identity, log: silentLog });
      const request = RangeRequest.create({ key: Buffer.from(keyOf("nodes", "n1")) });
      return await client.call(({ kv }) => kv.range.bind(kv), request, { deadlineMs: 500 });
    };
    const named = { hosts: [etcdHostName], nowMs };
    await range(await authority.issue({ commonName: "m2", role: "manager", ...named }));
    for (const role of ["node", "admin", "manager"] as const) {
      const identity = await authority.issue({ commonName: "x", role, nowMs });
      await expect(range(identity)).rejects.toMatchObject({ code: "unavailable" });
    }
    const pair = await createAuthority("stranger", nowMs);
    const stranger = await (await Authority.load(pair.certificate, pair.key)).issue({
      commonName: "m1",
      role: "manager",
      ...named,
    });
    await expect(range({ ...stranger, ca: authority.certificate })).rejects.toMatchObject({ code: "unavailable" });
  });
});

describe("claimCluster", () => {
  it("takes an empty etcd, knows it again, and refuses another cluster's", async () => {
    using client = etcd.client();
    const signal = AbortSignal.timeout(5_000);
    await claimCluster(client, "aaaaaaaaaaaa", signal);
    await claimCluster(client, "aaaaaaaaaaaa", signal);
    await expect(claimCluster(client, "bbbbbbbbbbbb", signal)).rejects.toMatchObject({ code: "conflict" });
  });
});

describe("an election", () => {
  interface Candidate {
    readonly election: Election;
    readonly terms: AbortSignal[];
    /** Resolves when it leads for the nth time, from 1. */
    leads(term: number): Promise<AbortSignal>;
    stop(): Promise<void>;
  }
  function candidate({ store, client }: OpenStore, member: string, instance = member, ttlMs = 2_000): Candidate {
    const clock = systemClock;
    const election = new Election({ store, client, clock, log: silentLog }, { member, instance, ttlMs });
    const stop = new AbortController();
    const terms: AbortSignal[] = [];
    let wake = Promise.withResolvers<void>();
    const running = election.run(async (deposed) => {
      terms.push(deposed);
      wake.resolve();
      wake = Promise.withResolvers();
      await new Promise((resolve) => deposed.addEventListener("abort", resolve, { once: true }));
    }, stop.signal);
    return {
      election,
      terms,
      leads: async (term) => {
        for (;;) {
          const signal = terms[term - 1];
          if (signal !== undefined) return signal;
          await wake.promise;
        }
      },
      stop: async () => {
        stop.abort(new Error("stopped"));
        await running;
      },
    };
  }
  const aborted = async (signal: AbortSignal) => {
    if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  };
  const write = (id: string) => [{ table: "tasks", id, value: task(id) } as const];

  it("has one winner, and the next leads when it resigns", async () => {
    await using a = await open();
    await using b = await open();
    const first = candidate(a, "a");
    await first.leads(1);
    const second = candidate(b, "b");
    await until(b.store, "sees the leader", () => b.store.leader !== undefined);
    expect(second.election.leader()).toBe("a");
    expect(second.terms).toHaveLength(0);
    await first.stop();
    await second.leads(1);
    expect(second.election.leader()).toBe("b");
    await second.stop();
  });

  it("deposes a leader that is cut off, by its own clock, and its writes are fenced when it is back", async () => {
    await using wire = await wireTo(etcd.directory.settings.clientListen);
    await using a = await open(wire.endpoint);
    await using b = await open();
    // A third of it is the margin that this test has on a busy machine.
    const first = candidate(a, "a", "a", 6_000);
    const lost = await first.leads(1);
    const fence = a.store.leader?.createRevision;
    await a.store.commit(write("before"), { fenced: true });
    const second = candidate(b, "b");
    wire.cut();
    await aborted(lost);
    // The lease still runs in etcd: it stepped down before anybody else could lead.
    expect(b.store.leader?.createRevision).toBe(fence);
    await second.leads(1);
    wire.heal();
    await until(a.store, "sees the new leader", () => first.election.leader() === "b");
    await expect(a.store.commit(write("after"), { fenced: true })).rejects.toMatchObject({
      code: "conflict",
      subject: "leader",
    });
    // Even one that still holds its old fence cannot write.
    a.store.setFence(fence);
    await expect(a.store.commit(write("after"), { fenced: true })).rejects.toMatchObject({
      code: "conflict",
      subject: "leader",
    });
    expect(b.store.view.tasks.size).toBe(1);
    await b.store.commit(write("after"), { fenced: true });
    await first.stop();
    await second.stop();
  });

  it("gives a member that was killed its office back at once", async () => {
    await using a = await open();
    const lease = await a.store.grantLease(600_000);
    await a.client.call(({ kv }) => kv.put.bind(kv), {
      key: Buffer.from("/embassy/v1/leader"),
      value: Buffer.from("a/instance"),
      lease,
      prevKv: false,
      ignoreValue: false,
      ignoreLease: false,
    });
    const again = candidate(a, "a", "instance");
    await again.leads(1);
    await again.stop();
  });
});
