import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { defaultPorts } from "../../lib/net/ports.ts";
import {
  Affinity,
  BlobMount,
  BlobSpec,
  ContainerSpec,
  Dependency,
  DisruptionPolicy,
  ExposedPort,
  Link,
  Mount,
  NetworkSpec,
  Placement,
  Protocol,
  PublishedPort,
  PublishMode,
  ResourceAmount,
  Resources,
  RestartPolicy,
  ServiceNetwork,
  type ServiceSpec,
  SpreadRule,
  type StackSpec,
  Toleration,
  UpdatePolicy,
} from "../../proto/gen/embassy/v1/stack.ts";
import { Member, VolumeHome } from "../../proto/gen/embassy/v1/state.ts";
import { aService, aStack, mounting, replicas, TestCluster, testPools, testSecretDigest } from "../domain/testing.ts";
import { planDeploy } from "./plan-deploy.ts";
import { checkReplicas, validateStack } from "./validate.ts";

let minted = 0;
const facts = {
  by: "test",
  nowMs: 1_000,
  mintId: () => `id${minted++}`,
  settings: testPools,
  secretDigest: testSecretDigest,
};
const plan = (cluster: TestCluster, spec: StackSpec) => planDeploy(cluster.index, spec, facts);
const container = (over: Partial<ContainerSpec>) => ContainerSpec.create({ image: "registry/web:1", ...over });
const port = (published: number, over: Partial<PublishedPort> = {}) =>
  PublishedPort.create({ target: 80, published, ...over });

describe("a deploy", () => {
  it("of what is there already changes nothing", async () => {
    using cluster = new TestCluster();
    const services = () => [aService("web", { labels: { a: "1", b: "2" } }), aService("db")];
    await cluster.deploy(aStack("s", services()));
    const again = plan(cluster, aStack("s", [aService("web", { labels: { b: "2", a: "1" } }), aService("db")]));
    expect(again).toMatchObject({
      revision: 1,
      writes: [],
      unchanged: ["network/default", "service/db", "service/web"],
    });
  });

  it("says what becomes of configs and secrets", async () => {
    using cluster = new TestCluster();
    const stack = (contents: Record<string, string>): StackSpec => ({
      ...aStack("s", [aService("web")]),
      configs: Object.entries(contents).map(([name, text]) => BlobSpec.create({ name, content: Buffer.from(text) })),
      secrets: [BlobSpec.create({ name: "key", content: Buffer.from(contents["page"] ?? "") })],
    });
    const first = stack({ page: "1", same: "2", gone: "3" });
    expect(plan(cluster, first).created).toEqual([
      "config/gone",
      "config/page",
      "config/same",
      "network/default",
      "secret/key",
      "service/web",
    ]);
    await cluster.deploy(first);
    expect(plan(cluster, stack({ page: "4", same: "2", fresh: "3" }))).toMatchObject({
      created: ["config/fresh"],
      updated: ["config/page", "secret/key"],
      removed: ["config/gone"],
      unchanged: ["config/same", "network/default", "service/web"],
    });
  });

  it("gives each service an address on each of its networks at once, which stays", async () => {
    using cluster = new TestCluster();
    await cluster.deploy(aStack("s", [aService("web"), aService("db")]));
    const vips = () =>
      ["web", "db"].map((name) => cluster.index.view.serviceStatuses.get(cluster.service("s", name).id)?.vips);
    const before = vips();
    expect(new Set(before.flatMap((one) => Object.values(one ?? {}))).size).toBe(2);
    await cluster.deploy(
      aStack("s", [aService("web", { container: container({ image: "registry/web:2" }) }), aService("db")]),
    );
    expect(vips()).toEqual(before);
  });

  const changes: readonly (readonly [string, Partial<ServiceSpec>, boolean])[] = [
    ["replicas", { mode: replicas(9) }, false],
    ["the restart policy", { restart: RestartPolicy.create({ maxAttempts: 1 }) }, false],
    ["how an update goes back", { rollback: UpdatePolicy.create({ parallelism: 2 }) }, false],
    ["labels of the service", { labels: { a: "b" } }, false],
    ["a port on every host", { ports: [port(80)] }, false],
    ["what is exposed to links", { exposed: [ExposedPort.create({ port: 1 })] }, false],
    ["the image", { container: container({ image: "registry/web:2" }) }, true],
    ["a variable", { container: container({ environment: { A: "1" } }) }, true],
    ["a port of the task's host", { ports: [port(80, { mode: PublishMode.PUBLISH_MODE_HOST })] }, true],
    ["a link", { links: [Link.create({ service: "db" })] }, true],
    ["its priority", { priority: 5 }, false],
    ["its disruption budget", { disruption: DisruptionPolicy.create({ minAvailable: 1 }) }, false],
    ["that it is spread by itself", { disruption: DisruptionPolicy.create({ rebalance: true }) }, false],
    ["that its name is a container's", { mode: replicas(1), containerName: "x" }, false],
    ["a constraint", { placement: Placement.create({ constraints: ["node.id != x"] }) }, true],
  ];
  it.each(changes)("that changes %s replaces tasks: %s %s", async (_, over, replaces) => {
    using cluster = new TestCluster();
    await cluster.deploy(aStack("s", [aService("web"), aService("db")]));
    const changed = aStack("s", [aService("web", over), aService("db")]);
    expect(plan(cluster, changed)).toMatchObject({ revision: 2, updated: ["service/web"] });
    await cluster.deploy(changed);
    expect(cluster.service("s", "web").version).toBe(replaces ? 2 : 1);
    expect(cluster.service("s", "db").version).toBe(1);
  });

  it("with other contents of a config replaces only its users, and keeps contents out of the record", async () => {
    using cluster = new TestCluster();
    const mounts = { container: container({ configs: [BlobMount.create({ source: "conf", target: "/conf" })] }) };
    const spec = (content: string) =>
      aStack("s", [aService("web", mounts), aService("db")], {
        networks: [NetworkSpec.create({ name: "default" })],
        configs: [BlobSpec.create({ name: "conf", content: Buffer.from(content) })],
      });
    await cluster.deploy(spec("one"));
    await cluster.deploy(spec("two"));
    expect([cluster.service("s", "web").version, cluster.service("s", "db").version]).toEqual([2, 1]);
    const kept = cluster.index.stack("s")?.spec?.configs[0]?.content;
    expect(Buffer.from(kept ?? "").toString()).not.toBe("two");
    expect(cluster.index.view.blobs.size).toBe(2);
  });

  it("that lost a race conflicts, and so does one that would take the same address", async () => {
    using cluster = new TestCluster();
    await cluster.deploy(aStack("s", [aService("web")]));
    const one = plan(cluster, aStack("s", [aService("web", { mode: replicas(1) })]));
    const two = plan(cluster, aStack("s", [aService("web", { mode: replicas(2) })]));
    const other = plan(cluster, aStack("other", [aService("web")]));
    const third = plan(cluster, aStack("third", [aService("web")]));
    await cluster.store.commit(one.writes, { expect: one.expect });
    await expect(cluster.store.commit(two.writes, { expect: two.expect })).rejects.toMatchObject({ code: "conflict" });
    await cluster.store.commit(other.writes, { expect: other.expect });
    await expect(cluster.store.commit(third.writes, { expect: third.expect })).rejects.toMatchObject({
      code: "conflict",
    });
  });

  it("is refused a port that another stack has, whose it is, until that is removed", async () => {
    using cluster = new TestCluster();
    await cluster.deploy(aStack("one", [aService("web", { ports: [port(8080)] })]));
    const two = aStack("two", [aService("api", { ports: [port(8080)] })]);
    expect(() => plan(cluster, two)).toThrow(
      expect.objectContaining({ code: "conflict", message: expect.stringContaining("8080/tcp is taken by one_web") }),
    );
    await cluster.removeStack("one");
    expect(plan(cluster, two).created).toContain("service/api");
  });

  it("may publish a port at another address than another stack, and at none of its addresses", async () => {
    using cluster = new TestCluster();
    await cluster.deploy(aStack("one", [aService("web", { ports: [port(8080, { hostIp: "10.0.0.5" })] })]));
    const at = (hostIp: string) => () =>
      plan(cluster, aStack("two", [aService("api", { ports: [port(8080, { hostIp })] })]));
    expect(at("10.0.0.6")().created).toContain("service/api");
    for (const hostIp of ["10.0.0.5", "", "0.0.0.0"]) expect(at(hostIp)).toThrow("8080/tcp is taken by one_web");
  });

  const udp = Protocol.PROTOCOL_UDP;
  const host = PublishMode.PUBLISH_MODE_HOST;
  const own: readonly (readonly [PublishedPort, string])[] = [
    ...Object.values(defaultPorts).flatMap((one): (readonly [PublishedPort, string])[] => {
      const protocol = one.protocol === "udp" ? udp : Protocol.PROTOCOL_TCP;
      const says = `port ${one.port}/${one.protocol} is taken by ${one.by}`;
      return [
        [port(one.port, { protocol }), says],
        [port(one.port, { protocol, mode: host }), says],
        [port(one.port, { protocol, hostIp: "127.0.0.1" }), says],
      ];
    }),
    [port(8400), "port 8400/tcp is taken by clusterd (--listen)"],
    [port(9410, { mode: host }), "port 9410/tcp is taken by noded (--agent-listen)"],
    [port(8443), "port 8443/tcp is taken by clusterd of manager m2"],
  ];
  it.each(own)(
    "is refused a port that the cluster itself listens on: $published $mode $hostIp",
    async (one, message) => {
      using cluster = await withOwnPorts();
      expect(() => planHere(cluster, aStack("s", [aService("web", { ports: [one] })]))).toThrow(
        expect.objectContaining({
          code: "conflict",
          subject: "services.web.ports",
          message,
          hint: expect.stringContaining("Publish another port"),
        }),
      );
    },
  );

  it.each([port(7400, { protocol: udp }), port(4789), port(7403, { mode: host }), port(0)])(
    "may publish what is next to the cluster's own ports: $published $protocol",
    async (one) => {
      using cluster = await withOwnPorts();
      const { created } = planHere(cluster, aStack("s", [aService("web", { ports: [one] })]));
      expect(created).toContain("service/web");
    },
  );

  it("is not given a port that the cluster itself listens on", async () => {
    using cluster = await withOwnPorts();
    const { writes } = planHere(cluster, aStack("s", [aService("web", { ports: [port(0)] })]));
    const given = writes.flatMap((write) => (write.table === "serviceStatuses" ? (write.value?.ports ?? []) : []));
    expect(given.map(({ published }) => published)).toEqual([49_001]);
  });

  /** A cluster with a node whose agent, and with a manager whose clusterd, has a port of its own. */
  async function withOwnPorts(): Promise<TestCluster> {
    const cluster = new TestCluster();
    await cluster.addNodes("a");
    const status = cluster.index.nodeStatus("a");
    if (status?.description === undefined) throw new Error("the node has no description");
    const description = { ...status.description, agentAddress: "192.0.2.1:9410" };
    const member = Member.create({ name: "m2", address: "192.0.2.2:8443" });
    await cluster.store.commit([
      { table: "nodeStatuses", id: "a", value: { ...status, description } },
      { table: "members", id: "m2", value: member },
    ]);
    return cluster;
  }

  function planHere(cluster: TestCluster, spec: StackSpec) {
    const listenedPorts = [8_400, 49_000].map((port) => ({ ...defaultPorts.main, port }));
    return planDeploy(cluster.index, spec, { ...facts, settings: { ...testPools, listenedPorts } });
  }

  it("gives ports that ask for none, each once, and leaves them", async () => {
    using cluster = new TestCluster();
    const services = [
      aService("a", { ports: [port(0), port(0, { target: 81 })] }),
      aService("b", { ports: [port(0)] }),
    ];
    await cluster.deploy(aStack("s", services));
    const given = () =>
      [...cluster.index.view.serviceStatuses.values()].flatMap(({ ports }) => ports.map(({ published }) => published));
    const before = given();
    expect(new Set(before).size).toBe(3);
    expect(before.every((one) => one >= 49_000 && one <= 49_900)).toBe(true);
    await cluster.deploy(aStack("s", [...services, aService("c")]));
    expect(given()).toEqual(before);
  });

  it("is refused a subnet that overlaps another network's, or the virtual addresses", async () => {
    using cluster = new TestCluster();
    const withSubnet = (name: string, subnet: string) =>
      aStack(name, [aService("web")], { networks: [NetworkSpec.create({ name: "default", subnet })] });
    await cluster.deploy(withSubnet("one", "10.50.0.0/16"));
    expect(() => plan(cluster, withSubnet("two", "10.50.8.0/24"))).toThrow(/overlaps .*one_default/);
    expect(() => plan(cluster, withSubnet("two", "10.112.4.0/24"))).toThrow(/overlaps/);
    await cluster.deploy(withSubnet("two", "10.51.0.0/16"));
  });

  it("is refused an external volume that no other stack makes or has made", async () => {
    using cluster = new TestCluster();
    const mounts = (external: boolean) => [Mount.create({ source: "infra_files", target: "/files", external })];
    const web = aStack("s", [aService("web", { container: container({ mounts: mounts(true) }) })]);
    const home = VolumeHome.create({ volume: "other", slot: 1, nodeId: "a" });
    await cluster.store.commit([{ table: "volumeHomes", id: "other/1", value: home }]);
    expect(() => plan(cluster, web)).toThrow(
      expect.objectContaining({
        code: "not-found",
        message: "external volume infra_files does not exist",
        hint: "There is only other. Deploy the stack that makes it first.",
      }) as Error,
    );
    await cluster.deploy(aStack("infra", [aService("nfs", { container: container({ mounts: mounts(false) }) })]));
    expect(plan(cluster, web).created).toContain("service/web");
    await cluster.removeStack("infra");
    expect(() => plan(cluster, web)).toThrow("does not exist");
    const made = VolumeHome.create({ volume: "infra_files", slot: 1, nodeId: "a" });
    await cluster.store.commit([{ table: "volumeHomes", id: "infra_files/1", value: made }]);
    await cluster.deploy(web);
    // Whose it is makes no other task.
    const own = aStack("s", [aService("web", { container: container({ mounts: mounts(false) }) })]);
    await cluster.deploy(own);
    expect(cluster.service("s", "web").version).toBe(1);
  });

  it("removes what is no longer in it", async () => {
    using cluster = new TestCluster();
    const back = [ServiceNetwork.create({ network: "back" })];
    await cluster.deploy(aStack("s", [aService("web"), aService("db", { networks: back })]));
    const next = aStack("s", [aService("web")]);
    expect(plan(cluster, next)).toMatchObject({
      removed: ["network/back", "service/db"],
      unchanged: ["network/default", "service/web"],
    });
  });
});

describe("a stack is refused", () => {
  const refused: readonly (readonly [string, () => StackSpec, string, RegExp])[] = [
    ["without services", () => aStack("s", []), "services", /no service/],
    ["with a name that is none", () => aStack("S!", [aService("web")]), "name", /S!/],
    [
      "with a service on a network that it does not declare",
      () => aStack("s", [aService("web")], { networks: [] }),
      "services.web.networks",
      /default/,
    ],
    [
      "with a link to a service that is not there",
      () => aStack("s", [aService("web", { links: [Link.create({ service: "db" })] })]),
      "services.web.links[0]",
      /db/,
    ],
    [
      "with a link between services that share no network",
      () =>
        aStack("s", [
          aService("web", { links: [Link.create({ service: "db" })] }),
          aService("db", { networks: [ServiceNetwork.create({ network: "back" })] }),
        ]),
      "services.web.links[0]",
      /share no network/,
    ],
    [
      "with an alias used twice",
      () =>
        aStack("s", [
          aService("web", { links: [Link.create({ service: "db" }), Link.create({ service: "web", alias: "db" })] }),
          aService("db"),
        ]),
      "services.web.links[1]",
      /db is used twice/,
    ],
    [
      "with a port published twice",
      () => aStack("s", [aService("a", { ports: [port(80)] }), aService("b", { ports: [port(80)] })]),
      "services.b.ports",
      /80 is published twice/,
    ],
    [
      "with a port published at one address and at every address",
      () =>
        aStack("s", [
          aService("a", { ports: [port(80, { hostIp: "10.0.0.5" }), port(80, { hostIp: "10.0.0.6" })] }),
          aService("b", { ports: [port(80)] }),
        ]),
      "services.b.ports",
      /80 is published twice, by a and b/,
    ],
    [
      "with more tasks than a service can have",
      () => aStack("s", [aService("web", { mode: replicas(100_001) })]),
      "services.web",
      /a whole number from 0 to 100000, and found the number 100001/,
    ],
    [
      "with two tasks of one container's name",
      () => aStack("s", [aService("web", { mode: replicas(2), containerName: "x" })]),
      "services.web",
      /one name cannot serve up to 2 tasks/,
    ],
    [
      "with a task on each node of one container's name",
      () => aStack("s", [aService("web", { mode: { $case: "global", value: {} }, containerName: "x" })]),
      "services.web",
      /one name cannot serve one task on each node/,
    ],
    [
      "with a constraint that cannot be read",
      () => aStack("s", [aService("web", { placement: Placement.create({ constraints: ["node.zone = a"] }) })]),
      "services.web.deploy.placement.constraints[0]",
      /node\.zone/,
    ],
    [
      "with a resource that no node can announce",
      () => {
        const reservations = ResourceAmount.create({ generic: { "a gpu": 1 } });
        return aStack("s", [aService("web", { resources: Resources.create({ reservations }) })]);
      },
      "services.web.deploy.resources.reservations.generic_resources",
      /"a gpu"/,
    ],
    [
      "with a priority that is none",
      () => aStack("s", [aService("web", { priority: 1_001 })]),
      "services.web.x-priority",
      /1001/,
    ],
    [
      "that keeps a share of a global service up",
      () => {
        const disruption = DisruptionPolicy.create({ minAvailablePercent: 50 });
        return aStack("s", [aService("web", { mode: { $case: "global", value: {} }, disruption })]);
      },
      "services.web.x-disruption.min_available",
      /50%/,
    ],
    [
      "that keeps all tasks up, and two of a slot may not run at once",
      () => {
        const disruption = DisruptionPolicy.create({ minAvailablePercent: 50 });
        return aStack("s", [aService("db", { mode: replicas(1), disruption, container: mounting(["data"]) })]);
      },
      "services.db.x-disruption.min_available",
      /with all 1 tasks kept up no update could stop one/,
    ],
    [
      "that spreads a global service",
      () => {
        const disruption = DisruptionPolicy.create({ rebalance: true });
        return aStack("s", [aService("web", { mode: { $case: "global", value: {} }, disruption })]);
      },
      "services.web.x-disruption.rebalance",
      /cannot move/,
    ],
    [
      "with an affinity to a service that is not there",
      () => {
        const to = { $case: "service", value: { service: "db", over: "node.id" } } as const;
        const placement = Placement.create({ affinities: [Affinity.create({ to, weight: 50 })] });
        return aStack("s", [aService("web", { placement })]);
      },
      "services.web.x-placement.affinity[0]",
      /service db is not declared/,
    ],
    [
      "with an affinity that weighs too much",
      () => {
        const to = { $case: "node", value: "node.role == worker" } as const;
        const placement = Placement.create({ affinities: [Affinity.create({ to, weight: -101 })] });
        return aStack("s", [aService("web", { placement })]);
      },
      "services.web.x-placement.affinity[0]",
      /-101/,
    ],
    [
      "with a share that is none",
      () => {
        const rule = SpreadRule.create({ over: "node.labels.zone", shares: { a: -1 } });
        return aStack("s", [aService("web", { placement: Placement.create({ spreadRules: [rule] }) })]);
      },
      "services.web.x-placement.spread[0]",
      /-1/,
    ],
    [
      "that tolerates a value of no key",
      () => {
        const tolerations = [Toleration.create({ value: "a" })];
        return aStack("s", [aService("web", { placement: Placement.create({ tolerations }) })]);
      },
      "services.web.x-placement.tolerations[0]",
      /without a key/,
    ],
    [
      "with a preference that names nothing",
      () => aStack("s", [aService("web", { placement: Placement.create({ spread: ["rack"] }) })]),
      "services.web.deploy.placement.preferences[0]",
      /rack/,
    ],
    [
      "with services that wait for each other",
      () => {
        const on = (service: string) => [Dependency.create({ service, required: true })];
        return aStack("s", [aService("a", { dependsOn: on("b") }), aService("b", { dependsOn: on("a") })]);
      },
      "services.a.depends_on",
      /a -> b -> a/,
    ],
  ];
  it.each(refused)("%s", (_, spec, subject, message) => {
    expect(() => validateStack(spec())).toThrow(
      expect.objectContaining({ code: "invalid", subject, message: expect.stringMatching(message) }),
    );
  });

  it.each([
    { count: 100_000, containerName: "" },
    { count: 1, containerName: "x" },
    { count: 0, containerName: "x" },
  ])("but not with as many tasks as there may be: %j", ({ count, containerName }) => {
    expect(() =>
      checkReplicas(aService("web", { mode: replicas(count), containerName }), "web", "services.web"),
    ).not.toThrow();
  });

  it("and not otherwise", () => {
    expect(() =>
      validateStack(aStack("s", [aService("web", { links: [Link.create({ service: "db" })] }), aService("db")])),
    ).not.toThrow();
  });

  it("keeps of a secret nothing by which a guess could be tried: neither in its name nor in the stack's record", () => {
    const cluster = new TestCluster();
    const content = Buffer.from("hunter2");
    const { writes } = plan(cluster, {
      ...aStack("shop", [aService("web")]),
      secrets: [{ name: "pin", content, labels: {} }],
    });
    const plain = createHash("sha256").update(content).digest();
    for (const write of writes) {
      expect(write.id).not.toContain(plain.toString("hex"));
      if (write.table !== "stacks") continue;
      const kept = write.value?.spec?.secrets[0]?.content;
      expect(kept?.equals(plain)).toBe(false);
      expect(kept?.equals(content)).toBe(false);
    }
    expect(writes.filter(({ table }) => table === "blobs")).toHaveLength(1);
  });
});
