import { describe, expect, it } from "vitest";
import { ClusterError } from "../../lib/errors/errors.ts";
import {
  BlobMount,
  BlobSpec,
  ContainerSpec,
  Link,
  NetworkSpec,
  Placement,
  ServiceNetwork,
  type StackSpec,
} from "../../proto/gen/embassy/v1/stack.ts";
import { planRevision } from "../controllers/revisions/plan.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { stackProgress } from "../domain/progress.ts";
import { aService, aStack, replicas, testPools, testSecretDigest } from "../domain/testing.ts";
import { planDeploy } from "./plan-deploy.ts";
import { keptRevision, listRevisions } from "./revisions.ts";
import { planScale } from "./scale.ts";

const on = (...networks: string[]) => networks.map((network) => ServiceNetwork.create({ network }));

/** Web mounts a config and a secret; each revision differs in everything a stack has. */
function stack(n: number): StackSpec {
  const container = ContainerSpec.create({
    image: `registry/web:${n}`,
    configs: [BlobMount.create({ source: "page", target: "/page" })],
    secrets: [BlobMount.create({ source: "key", target: "/key" })],
  });
  const networks = [NetworkSpec.create({ name: "default" }), NetworkSpec.create({ name: `back${n}` })];
  const links = n % 2 === 1 ? [Link.create({ service: `db${n}` })] : [];
  return aStack(
    "s",
    [
      aService("web", { container, mode: replicas(1), links, networks: on("default", `back${n}`) }),
      aService(`db${n}`, { mode: replicas(1), networks: on(`back${n}`) }),
    ],
    {
      networks,
      configs: [BlobSpec.create({ name: "page", content: Buffer.from(`page ${n}`) })],
      secrets: [BlobSpec.create({ name: "key", content: Buffer.from(`key ${n}`) })],
    },
  );
}

async function note(cluster: SteppedCluster, name: string): Promise<void> {
  const { writes } = planRevision(cluster.index, name, cluster.nowMs);
  if (writes.length > 0) await cluster.store.commit(writes);
}

/** Deploys, waits, and notes what became of it, as the leader does. */
async function deploy(cluster: SteppedCluster, spec: StackSpec, restores = 0): Promise<void> {
  const facts = { by: "t", nowMs: cluster.nowMs, mintId: mint, settings: testPools, secretDigest: testSecretDigest };
  const { writes, expect: expected } = planDeploy(cluster.index, spec, { ...facts, restores });
  await cluster.store.commit(writes, { expect: expected });
  await cluster.settleFor(10);
  await note(cluster, spec.name);
  expect(planRevision(cluster.index, spec.name, cluster.nowMs).writes).toEqual([]);
}
let minted = 0;
const mint = () => `id${minted++}`;

async function withRevisions(count: number): Promise<SteppedCluster> {
  const cluster = new SteppedCluster();
  await cluster.addNodes("a", "b");
  for (let n = 1; n <= count; n++) await deploy(cluster, stack(n));
  return cluster;
}

async function rollBack(cluster: SteppedCluster, revision = 0): Promise<number> {
  const kept = keptRevision(cluster.index, "s", revision);
  await deploy(cluster, kept.spec, kept.revision);
  return kept.revision;
}

describe("a stack that is brought back", () => {
  it("is all as it was: services, networks, links, and what was in its configs and secrets", async () => {
    using cluster = await withRevisions(3);
    expect(keptRevision(cluster.index, "s", 1).spec).toEqual(stack(1));
    expect(await rollBack(cluster, 1)).toBe(1);
    expect(cluster.index.stack("s")).toMatchObject({ revision: 4, restores: 1 });
    expect(cluster.index.stack("s")?.spec).toEqual(cluster.index.stackRevisions("s")[0]?.spec);
    const web = cluster.service("s", "web");
    const [task] = cluster.tasks("s", "web").filter(({ serviceVersion }) => serviceVersion === web.version);
    expect(Object.keys(task?.networkIds ?? {}).sort()).toEqual(["back1", "default"]);
    expect(task?.spec?.links).toEqual(stack(1).services[0]?.links);
    const held = Object.entries(task?.blobDigests ?? {}).map(([key, digest]) =>
      cluster.index.view.blobs.get(`${key.split("/")[0]}/${digest}`)?.content.toString(),
    );
    expect(held.toSorted((a = "", b = "") => a.localeCompare(b))).toEqual(["key 1", "page 1"]);
    expect(cluster.running("s", "web")).toHaveLength(1);
  });

  it("goes further back each time, and says when there is nothing more", async () => {
    using cluster = await withRevisions(3);
    expect([await rollBack(cluster), await rollBack(cluster)]).toEqual([2, 1]);
    expect(() => keptRevision(cluster.index, "s", 0)).toThrow("no revision of stack s before 1 is kept that ran as");
    expect(() => keptRevision(cluster.index, "s", 9)).toThrow("revision 9 of stack s is not kept");
    expect(() => keptRevision(cluster.index, "nope", 0)).toThrow("there is no stack nope");
  });

  it("passes over what is the same as now, and says when nothing else ran", async () => {
    using cluster = await withRevisions(2);
    cluster.crashing.add("db3");
    await deploy(cluster, stack(3));
    await deploy(cluster, stack(2));
    expect(await rollBack(cluster)).toBe(1);
    expect(() => keptRevision(cluster.index, "s", 0)).toThrow(ClusterError);

    using other = await withRevisions(1);
    other.crashing.add("db2");
    await deploy(other, stack(2));
    await deploy(other, stack(1));
    expect(() => keptRevision(other.index, "s", 0)).toThrow("ran as a whole and differs from the present one");
  });

  it("goes to the last that ran as a whole, and nowhere if none did", async () => {
    using cluster = await withRevisions(1);
    cluster.crashing.add("db2").add("db3").add("db4");
    await deploy(cluster, stack(2));
    await deploy(cluster, stack(3));
    expect(listRevisions(cluster.index, "s").map(({ convergedAtMs }) => convergedAtMs > 0)).toEqual([
      false,
      false,
      true,
    ]);
    expect(keptRevision(cluster.index, "s", 0).revision).toBe(1);

    using other = new SteppedCluster();
    await other.addNodes("a");
    other.crashing.add("db1").add("db2").add("db3");
    for (const n of [1, 2, 3]) await deploy(other, stack(n));
    expect(() => keptRevision(other.index, "s", 0)).toThrow("no revision of stack s before 3 is kept that ran as");
    expect(keptRevision(other.index, "s", 2).revision).toBe(2);
  });

  it("is one of the last ten, with its contents, which are swept with their last revision", async () => {
    using cluster = await withRevisions(12);
    expect(listRevisions(cluster.index, "s").map(({ revision }) => revision)).toEqual([
      12, 11, 10, 9, 8, 7, 6, 5, 4, 3,
    ]);
    const contents = [...cluster.index.view.blobs.values()].map(({ content }) => content.toString());
    // The history of a slot is five tasks long: the older ones are named by revisions alone.
    const kept = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12].flatMap((n) => [`page ${n}`, `key ${n}`]);
    expect(new Set(contents)).toEqual(new Set(kept));
    await cluster.removeStack("s");
    await cluster.settle();
    expect(cluster.index.view.blobs.size).toBe(0);
  });

  it("writes a content again that is there, so that a sweep which has not seen it named conflicts", async () => {
    using cluster = await withRevisions(2);
    const { spec } = keptRevision(cluster.index, "s", 1);
    const facts = { by: "t", nowMs: 0, mintId: mint, settings: testPools, secretDigest: testSecretDigest };
    const { writes } = planDeploy(cluster.index, spec, facts);
    expect(writes.filter(({ table }) => table === "blobs")).toHaveLength(2);
    const again = planDeploy(cluster.index, { ...stack(2), name: "s" }, facts);
    expect(again.writes.map(({ table }) => table)).toEqual([]);
  });

  it("fails in whole when a content is not there any more", async () => {
    using cluster = await withRevisions(2);
    for (const [id, { kind, content }] of cluster.index.view.blobs.entries()) {
      if (kind === "secret" && content.toString() === "key 1") {
        await cluster.store.commit([{ table: "blobs", id, value: undefined }]);
      }
    }
    expect(() => keptRevision(cluster.index, "s", 1)).toThrow("what secret key held at that revision is not kept");
  });
});

describe("a revision that ran", () => {
  const web = (count: number) => aStack("s", [aService("web", { mode: replicas(count) })]);
  const ran = (cluster: SteppedCluster) =>
    cluster.index.stackRevisions("s").map(({ convergedAtMs }) => convergedAtMs > 0);

  async function withWeb(count: number): Promise<SteppedCluster> {
    const cluster = new SteppedCluster();
    await cluster.addNodes("a", "b");
    await deploy(cluster, web(count));
    return cluster;
  }

  it("is one that another replaces as soon as `deploy` can say that it runs, and no sooner", async () => {
    using cluster = await withWeb(3);
    await cluster.deploy(web(2));
    // Its third task has to go first.
    expect(stackProgress(cluster.index, "s").converged).toBe(false);
    await note(cluster, "s");
    expect(ran(cluster)).toEqual([true, false]);
    await cluster.settle();
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    await cluster.deploy(web(4));
    expect(ran(cluster)).toEqual([true, true, false]);
    await cluster.settle();
    // What has just started may end at once.
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    expect(planRevision(cluster.index, "s", cluster.nowMs).wakeAtMs).toBe(cluster.nowMs + 1_000);
    await cluster.deploy(web(1));
    expect(ran(cluster)).toEqual([true, true, false, false]);
  });

  it("has had as many tasks as it declares, however it was scaled", async () => {
    using cluster = await withWeb(3);
    const scale = async (count: number) => {
      await cluster.store.commit(planScale(cluster.index, "web", count, cluster.nowMs).writes);
      await cluster.settleFor(2);
      await note(cluster, "s");
    };
    await cluster.deploy(web(4));
    await scale(2);
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    expect(ran(cluster)).toEqual([true, false]);
    await scale(5);
    expect(ran(cluster)).toEqual([true, true]);
    await cluster.deploy(web(6));
    await cluster.settleFor(2);
    await scale(1);
    expect(ran(cluster)).toEqual([true, true, true]);
  });

  it("is one whose global service has no node to run on, as nothing is missing", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a");
    const placement = Placement.create({ constraints: ["node.hostname == b"] });
    await deploy(cluster, aStack("s", [aService("web", { mode: { $case: "global", value: {} }, placement })]));
    expect(stackProgress(cluster.index, "s").converged).toBe(true);
    expect(ran(cluster)).toEqual([true]);
  });
});

describe("the list of revisions", () => {
  it("says what each changed", async () => {
    using cluster = await withRevisions(2);
    const [second, first] = listRevisions(cluster.index, "s");
    expect(first?.changed).toEqual([
      "config/page",
      "network/back1",
      "network/default",
      "secret/key",
      "service/db1",
      "service/web",
    ]);
    expect(second).toMatchObject({
      newest: true,
      changed: [
        "config/page",
        "network/back1",
        "network/back2",
        "secret/key",
        "service/db1",
        "service/db2",
        "service/web",
      ],
      rolledBack: [],
      updates: [],
    });
  });
});
