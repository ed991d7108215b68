import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { systemClock } from "../lib/clock/clock.ts";
import { silentLog } from "../lib/log/log.ts";
import { loadIdentity } from "../lib/pki/identity.ts";
import { Backup, Member, NodeSession, StackRecord, Task } from "../proto/gen/embassy/v1/state.ts";
import { makeBackup, readBackup, restoreBackup } from "./backup.ts";
import { EmbeddedEtcd } from "./embedded.ts";
import { initCluster } from "./pki/init.ts";
import { ClusterFileKeeper, parseStoreKey, readClusterFile, stateFiles } from "./pki/state-dir.ts";
import { claimCluster } from "./store/cluster.ts";
import { freePort, type TestEtcd, testEtcd } from "./store/etcd.testing.ts";
import { EtcdStore } from "./store/etcd.ts";
import { createCodecs } from "./store/schema.ts";
import { createBlobCodec } from "./store/seal.ts";

const signal = () => AbortSignal.timeout(30_000);
const deps = { log: silentLog, clock: systemClock };
const sha256 = "a".repeat(64);

let directory: string;
let etcd: TestEtcd;
let file: string;
let revision: number;
const first = () => stateFiles(join(directory, "first"));

async function optionsFor(name: string) {
  const [client, peer] = [await freePort(), await freePort()];
  const listens = { clientListen: `127.0.0.1:${client}`, peerListen: `127.0.0.1:${peer}` };
  const own = { kind: "embedded", binary: "etcd", ...listens, quotaBytes: 2 ** 28 } as const;
  return { stateDir: join(directory, name), member: "m9", advertise: "127.0.0.1:7400", etcd: own };
}

/** The state that a restored directory has. */
async function openRestored(options: Awaited<ReturnType<typeof optionsFor>>) {
  const stack = new AsyncDisposableStack();
  const files = stateFiles(options.stateDir);
  const keeper = await ClusterFileKeeper.open(files);
  const identity = await loadIdentity(files.etcd);
  const embedded = stack.use(
    await EmbeddedEtcd.start({ ...deps, config: options.etcd, files, keeper, identity: () => identity }, signal()),
  );
  await embedded.serving(signal());
  await claimCluster(embedded.client, keeper.value.clusterId, signal());
  const codecs = createCodecs(createBlobCodec(parseStoreKey(await readFile(files.storeKey, "utf8"))));
  const store = stack.use(await EtcdStore.open({ ...deps, client: embedded.client, codecs }, signal()));
  return Object.assign(stack, { view: store.view });
}

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "embassy-backup-"));
  file = join(directory, "backup");
  etcd = await testEtcd();
  await initCluster({ stateDir: first().directory, member: "m1", advertise: "127.0.0.1:7400", nowMs: Date.now() });
  const { clusterId } = await readClusterFile(first());
  using client = etcd.client();
  await claimCluster(client, clusterId, signal());
  const codecs = createCodecs(createBlobCodec(parseStoreKey(await readFile(first().storeKey, "utf8"))));
  await using store = await EtcdStore.open({ ...deps, client, codecs }, signal());
  const lease = await store.grantLease(60_000);
  await store.commit([
    { table: "stacks", id: "shop/1", value: StackRecord.create({ revision: 7 }) },
    { table: "blobs", id: `secret/${sha256}`, value: { kind: "secret", sha256, content: Buffer.from("very secret") } },
    { table: "members", id: "m1", value: Member.create({ name: "m1", instance: "i1" }) },
    { table: "sessions", id: "n1", value: NodeSession.create({ nodeId: "n1" }), lease },
  ]);
  for (let i = 0; i < 5; i++) {
    const tasks = Array.from({ length: 1_000 }, (_, n) => Task.create({ id: `t${i}-${n}`, nodeId: "n1", slot: n }));
    revision = await store.commit(tasks.map((value) => ({ table: "tasks", id: value.id, value })));
  }
  await makeBackup({ client, files: first(), clock: systemClock }, file, signal());
});
afterAll(async () => {
  await etcd[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
});

describe("a backup", () => {
  it("has what lasts, at one revision, and can be read by its owner alone", async () => {
    const { clusterId } = await readClusterFile(first());
    const backup = await readBackup(file);
    expect(backup).toMatchObject({ version: 1, clusterId, madeBy: "m1", revision });
    // Tasks, stack, secret and the cluster's id: neither the session nor the manager.
    expect(backup.entries).toHaveLength(5_003);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect((await readFile(file)).includes("very secret")).toBe(false);
  });

  it("that cannot be written leaves the earlier one", async () => {
    using client = etcd.client();
    const before = await readFile(file);
    const nowhere = join(file, "below");
    const made = makeBackup({ client, files: first(), clock: systemClock }, nowhere, signal());
    await expect(made).rejects.toMatchObject({ code: "denied", subject: nowhere });
    expect(await readFile(file)).toEqual(before);
  });

  it("is refused when it is damaged, cut short, of another format, or none", async () => {
    const whole = await readFile(file);
    const damaged = Buffer.from(whole);
    damaged[whole.length >> 1] = (damaged[whole.length >> 1] ?? 0) ^ 0xff;
    const zipped = async (backup: Partial<Backup>) =>
      await promisify(gzip)(Backup.encode(Backup.create(backup)).finish());
    const storeKey = randomBytes(32).toString("hex");
    const wrong: readonly (readonly [Buffer, RegExp])[] = [
      [damaged, /is no backup, or is damaged/],
      [whole.subarray(0, whole.length - 10), /is no backup, or is damaged/],
      [Buffer.alloc(0), /is no backup, or is damaged/],
      [randomBytes(5_000), /is no backup, or is damaged/],
      [await zipped({ version: 1 }), /the store key is not 64 hex digits/],
      [await zipped({ version: 2, storeKey }), /of format 2, and this clusterd reads format 1/],
    ];
    const bad = join(directory, "bad");
    for (const [bytes, message] of wrong) {
      await writeFile(bad, bytes);
      await expect(readBackup(bad)).rejects.toThrow(message);
    }
    await expect(readBackup(join(directory, "none"))).rejects.toMatchObject({ code: "not-found" });
  });
});

describe("a restore", () => {
  it("gives the cluster back, with the secrets, and without the managers of then", async () => {
    const options = await optionsFor("second");
    await restoreBackup(deps, await readBackup(file), options, signal());
    await using restored = await openRestored(options);
    const { view } = restored;
    expect([view.tasks.size, view.members.size, view.sessions.size]).toEqual([5_000, 0, 0]);
    expect(view.tasks.get("t3-77")).toEqual(Task.create({ id: "t3-77", nodeId: "n1", slot: 77 }));
    expect(view.stacks.get("shop/1")?.revision).toBe(7);
    expect(view.blobs.get(`secret/${sha256}`)?.content.toString()).toBe("very secret");
    const before = await readClusterFile(first());
    const after = await readClusterFile(stateFiles(options.stateDir));
    expect(after).toMatchObject({ clusterId: before.clusterId, member: "m9" });
    expect(after.restoring).toBeUndefined();
    expect(after.instance).not.toBe(before.instance);
    await expect(restoreBackup(deps, await readBackup(file), options, signal())).rejects.toMatchObject({
      code: "conflict",
      subject: options.stateDir,
    });
  });

  it("that is interrupted begins anew", async () => {
    const options = await optionsFor("third");
    const stop = new AbortController();
    const backup = await readBackup(file);
    // Ends with the first batch written, of six.
    let batches = 0;
    const entries = backup.entries;
    const cut = {
      ...backup,
      get entries() {
        if (batches++ === 0) setImmediate(() => stop.abort(new Error("killed")));
        return entries;
      },
    };
    await expect(restoreBackup(deps, cut, options, stop.signal)).rejects.toThrow();
    expect((await readClusterFile(stateFiles(options.stateDir))).restoring).toBe(true);
    await restoreBackup(deps, backup, options, signal());
    await using restored = await openRestored(options);
    expect(restored.view.tasks.size).toBe(5_000);
  });

  it("is refused while another one is under way", async () => {
    const options = await optionsFor("fourth");
    const backup = await readBackup(file);
    const both = await Promise.allSettled([1, 2].map(async () => await restoreBackup(deps, backup, options, signal())));
    expect(both.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    const refused = both.find(({ status }) => status === "rejected");
    expect(refused).toMatchObject({ reason: { code: "conflict", subject: options.stateDir } });
    await using restored = await openRestored(options);
    expect(restored.view.tasks.size).toBe(5_000);
  });

  it("leaves a cluster that is there alone", async () => {
    const before = await readFile(first().cluster);
    const options = { ...(await optionsFor("first")), stateDir: first().directory };
    const restoring = restoreBackup(deps, await readBackup(file), options, signal());
    await expect(restoring).rejects.toMatchObject({ code: "conflict" });
    expect(await readFile(first().cluster)).toEqual(before);
  });
});
