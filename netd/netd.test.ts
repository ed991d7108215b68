import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { AttachRequest } from "../proto/gen/embassy/v1/local.ts";
import { Protocol, type PublishedPort, PublishMode } from "../proto/gen/embassy/v1/stack.ts";
import { attempt, type Host, Peer, sh, TestCluster, type TestTask, until, within } from "./testing/hosts.ts";
import { StateBuilder } from "./testing/states.ts";

// Real kernel, real namespaces: three hosts on one underlay, a netd in each, tasks with sockets. Needs root.
describe.runIf(process.getuid?.() === 0)("netd on three hosts", { timeout: 60_000 }, () => {
  let cluster: TestCluster;
  const state = new StateBuilder();
  const tasks = new Map<string, { readonly task: TestTask; readonly peer: Peer; readonly node: number }>();
  let client: Peer;
  let serial = 0;

  const push = async () => await cluster.updateAll((host) => state.for(host.name));

  /** Attaches a task and starts a program in it that serves TCP 80 and UDP 53000 under the given name. */
  async function run(
    name: string,
    node: number,
    service: string,
    networks: string[],
    more: Partial<AttachRequest> = {},
  ) {
    const id = `${"abcdefghijklmnopqrstuvwxyz"[serial++ % 26]}${name.replace(/[^a-z]/g, "")}aaaaaaaaaaaa`.slice(0, 12);
    const task = await cluster.host(node).attach(id, service, networks, more);
    const peer = await Peer.in(task.netns, name);
    await peer.ask("serveTcp", 80);
    await peer.ask("serveUdp", 53000);
    tasks.set(name, { task, peer, node });
    const addresses = Object.fromEntries(networks.map((network, n) => [network, task.addresses[n] ?? ""]));
    state.endpoint(task.id, service, `host-${node}`, addresses);
    return { task, peer };
  }

  const peerOf = (name: string): Peer => {
    const known = tasks.get(name);
    if (known === undefined) throw new Error(`no task ${name}`);
    return known.peer;
  };
  /** Node names its processes so. */
  const busyAt = async (host: Host): Promise<string[]> =>
    ((await host.core.ask("busy")) as string[]).map((text) => text.replace(/pid \d+/, "pid N"));
  const addressOf = (name: string, n = 0): string => tasks.get(name)?.task.addresses[n] ?? "";

  async function stop(name: string): Promise<void> {
    const known = tasks.get(name);
    if (known === undefined) return;
    await known.peer.kill();
    await cluster.host(known.node).core.ask("detach", known.task.id);
    tasks.delete(name);
  }

  beforeAll(async () => {
    cluster = await TestCluster.start(`ndt${process.pid}`, 3);
    const all = cluster.hosts.map((host) => host.name);
    for (const host of cluster.hosts) state.host(host.name, host.underlay);
    state
      .network("open", 1, all)
      .network("iso", 2, all, { isolated: true })
      .network("lone", 3, all)
      .network("inner", 4, all, { internal: true })
      .service("web", { open: "10.112.0.1" })
      .service("db", { open: "10.112.0.2" })
      .service("store", { iso: "10.112.0.3" }, { exposed: [{ port: 80, protocol: Protocol.PROTOCOL_TCP }] })
      .service("reader", { iso: "10.112.0.4" }, { links: [{ serviceId: "store", alias: "data" }] })
      .service("rogue", { iso: "10.112.0.5" })
      .service("alone", { lone: "10.112.0.6" })
      .service("both", { open: "10.112.0.7", lone: "10.112.0.8" })
      .service("inside", { inner: "10.112.0.9" });
    await push();
    const made = [
      run("web0", 0, "web", ["open"]),
      run("db1", 1, "db", ["open"]),
      run("store2", 2, "store", ["iso"]),
      run("reader0", 0, "reader", ["iso"]),
      run("rogue0", 0, "rogue", ["iso"]),
      run("alone0", 0, "alone", ["lone"]),
      run("alone1", 1, "alone", ["lone"]),
      run("both1", 1, "both", ["open", "lone"]),
      run("inside0", 0, "inside", ["inner"]),
    ];
    await Promise.all(made);
    client = await Peer.in(cluster.clientNetns, "client");
    await client.ask("serveTcp", 80);
    await push();
  }, 60_000);

  afterAll(async () => {
    await client?.kill();
    await Promise.all([...tasks.values()].map(({ peer }) => peer.kill()));
    await cluster?.[Symbol.asyncDispose]();
  }, 30_000);

  it("members of an open network reach each other by address, VIP and name, across hosts", async () => {
    const web = peerOf("web0");
    const from = addressOf("web0");
    expect(await web.tcp(addressOf("db1"), 80)).toBe(`db1 ${from}`);
    expect(await web.tcp("10.112.0.2", 80)).toBe(`db1 ${from}`);
    expect(await web.udp("10.112.0.2", 53000)).toBe(`db1 ${from}`);
    expect(await web.resolve("db")).toEqual(["10.112.0.2"]);
    expect(await web.resolve("tasks.db")).toEqual([addressOf("db1")]);
    expect(attempt(within(tasks.get("web0")?.task as TestTask, "busybox ping -c1 -W2 10.112.0.2")).code).toBe(0);
  });

  it("a service reaches itself by its own VIP", async () => {
    expect(await peerOf("web0").tcp("10.112.0.1", 80)).toBe("web0 169.254.42.1");
  });

  it("on an isolated network only what is linked passes, and all else is refused at once", async () => {
    const store = addressOf("store2");
    expect(await peerOf("reader0").tcp("10.112.0.3", 80)).toBe(`store2 ${addressOf("reader0")}`);
    expect(await peerOf("reader0").resolve("data")).toEqual(["10.112.0.3"]);
    expect(await peerOf("rogue0").resolve("data")).toBe("ENOTFOUND");
    const refused = {
      "linked, by address": await peerOf("reader0").tcp(store, 80),
      "linked, another port": await peerOf("reader0").udp("10.112.0.3", 53000),
      "back to the consumer": await peerOf("store2").tcp("10.112.0.4", 80),
      "unlinked, by VIP": await peerOf("rogue0").tcp("10.112.0.3", 80),
      "unlinked, by address": await peerOf("rogue0").tcp(store, 80),
      "neighbour on its host": await peerOf("rogue0").tcp(addressOf("reader0"), 80),
    };
    expect(new Set(Object.values(refused))).toEqual(new Set(["ECONNREFUSED"]));
  });

  it("a task cannot speak from an address that is not its own", async () => {
    const rogue = tasks.get("rogue0")?.task as TestTask;
    sh(within(rogue, `ip addr add ${addressOf("reader0")}/32 dev eth0`));
    expect(await peerOf("rogue0").tcp("10.112.0.3", 80, { from: addressOf("reader0") })).toBe("TIMEOUT");
    sh(within(rogue, `ip addr del ${addressOf("reader0")}/32 dev eth0`));
  });

  it("networks do not see one another, on one host and across hosts", async () => {
    const pairs: [string, string, string][] = [
      ["web0", "alone0", "10.112.0.6"],
      ["web0", "alone1", "10.112.0.6"],
      ["alone0", "web0", "10.112.0.1"],
      ["alone0", "db1", "10.112.0.2"],
      ["alone0", "store2", "10.112.0.3"],
      ["inside0", "web0", "10.112.0.1"],
      ["rogue0", "alone1", "10.112.0.6"],
    ];
    for (const [from, to, vip] of pairs) {
      expect([from, to, await peerOf(from).tcp(addressOf(to), 80)]).toEqual([from, to, "ECONNREFUSED"]);
      expect([from, vip, await peerOf(from).tcp(vip, 80)]).toEqual([from, vip, "ECONNREFUSED"]);
    }
    expect(await peerOf("web0").resolve("alone")).toBe("ENOTFOUND");
    // Nor does the underlay see any.
    sh(`ip -n ${cluster.clientNetns} route add 10.96.0.0/12 via ${cluster.host(1).underlay}`);
    expect(await client.tcp(addressOf("db1"), 80, { timeoutMs: 300 })).toBe("TIMEOUT");
    sh(`ip -n ${cluster.clientNetns} route del 10.96.0.0/12`);
  });

  it("a task of two networks has the right address in each", async () => {
    const both = peerOf("both1");
    const [open, lone] = [addressOf("both1", 0), addressOf("both1", 1)];
    expect(await both.tcp("10.112.0.1", 80)).toBe(`web0 ${open}`);
    expect(await both.tcp(addressOf("alone0"), 80)).toBe(`alone0 ${lone}`);
    const answers = new Set([await both.tcp("10.112.0.6", 80), await both.tcp("10.112.0.6", 80)]);
    expect(answers).toEqual(new Set([`alone0 ${lone}`, `alone1 ${lone}`]));
    expect(await peerOf("alone0").tcp("10.112.0.8", 80)).toBe(`both1 ${addressOf("alone0")}`);
  });

  it("tasks reach the world with their host's address, unless all their networks are internal", async () => {
    expect(await peerOf("web0").tcp("172.31.99.100", 80)).toBe(`client ${cluster.host(0).underlay}`);
    expect(await peerOf("inside0").tcp("172.31.99.100", 80)).toBe("ECONNREFUSED");
  });

  it("a task reaches nothing of its host but DNS, and forges no VXLAN", async () => {
    const host = await Peer.in(cluster.host(0).netns, "host");
    await host.ask("serveTcp", 9000);
    for (const address of [cluster.host(0).underlay, "169.254.42.1", "10.96.16.1"]) {
      expect([address, await peerOf("web0").tcp(address, 9000)]).toEqual([address, "ECONNREFUSED"]);
    }
    await host.kill();
    const count = () => sh(`ip -n ${cluster.host(1).netns} -s -j link show emb4097`);
    const before = JSON.parse(count())[0].stats64.rx.packets as number;
    expect(await peerOf("web0").udp(cluster.host(1).underlay, 4789)).toBe("TIMEOUT");
    expect(JSON.parse(count())[0].stats64.rx.packets).toBe(before);
  });

  it("a published port works on every host with the client's address kept, on 127.0.0.1, and nowhere else", async () => {
    const port = {
      target: 80,
      published: 8080,
      protocol: Protocol.PROTOCOL_TCP,
      mode: PublishMode.PUBLISH_MODE_INGRESS,
    };
    const bound = { ...port, published: 8081, hostIp: cluster.host(0).underlay, name: "" };
    state.service("db", { open: "10.112.0.2" }, { ports: [{ ...port, hostIp: "", name: "http" }, bound] });
    await push();
    for (const host of cluster.hosts) {
      expect([host.name, await client.tcp(host.underlay, 8080)]).toEqual([host.name, "db1 172.31.99.100"]);
    }
    const answers: string[] = [];
    for (const host of cluster.hosts) {
      const local = await Peer.in(host.netns, "local");
      answers.push((await local.tcp("127.0.0.1", 8080)).split(" ")[0] ?? "", await local.tcp(host.underlay, 8080));
      await local.kill();
    }
    expect(answers).toEqual([
      "db1",
      `db1 ${cluster.host(0).underlay}`,
      "db1",
      `db1 ${cluster.host(1).underlay}`,
      "db1",
      `db1 ${cluster.host(2).underlay}`,
    ]);
    expect(await client.tcp(cluster.host(0).underlay, 8081)).toBe("db1 172.31.99.100");
    expect(await client.tcp(cluster.host(1).underlay, 8081)).toBe("ECONNREFUSED");
    // From tasks: of the same network, of another, and the one that serves.
    expect(await peerOf("web0").tcp(cluster.host(0).underlay, 8080)).toMatch(/^db1 /);
    expect(await peerOf("alone0").tcp(cluster.host(0).underlay, 8080)).toMatch(/^db1 /);
    expect(await peerOf("db1").tcp(cluster.host(1).underlay, 8080)).toMatch(/^db1 /);
    expect(await peerOf("db1").tcp(cluster.host(2).underlay, 8080)).toMatch(/^db1 /);
    expect(await cluster.host(2).core.ask("verify")).toEqual([]);
  });

  it("a port published on the task's host only is there and not elsewhere", async () => {
    const hostPorts: PublishedPort[] = [
      {
        target: 80,
        published: 9090,
        protocol: Protocol.PROTOCOL_TCP,
        mode: PublishMode.PUBLISH_MODE_HOST,
        hostIp: "",
        name: "",
      },
    ];
    await run("host2", 2, "web", ["open"], { hostPorts });
    expect(await client.tcp(cluster.host(2).underlay, 9090)).toBe("host2 172.31.99.100");
    expect(await client.tcp(cluster.host(0).underlay, 9090)).toBe("ECONNREFUSED");
    await stop("host2");
    expect(await client.tcp(cluster.host(2).underlay, 9090)).toBe("ECONNREFUSED");
    state.endpoints.delete([...state.endpoints.keys()].find((id) => id.includes("host")) ?? "");
    await push();
  });

  it("a stack cannot take the ports of the host's own programs, whatever it is said to publish", async () => {
    const port = (published: number, mode: PublishMode, hostIp = ""): PublishedPort => {
      return { target: 80, published, protocol: Protocol.PROTOCOL_TCP, mode, hostIp, name: "" };
    };
    const here = cluster.host(2);
    const ingress = PublishMode.PUBLISH_MODE_INGRESS;
    const own = [port(7400, ingress), port(7404, ingress, here.underlay), port(8082, ingress)];
    state.service("db", { open: "10.112.0.2" }, { ports: own });
    await push();
    const hostPorts = [port(7410, PublishMode.PUBLISH_MODE_HOST), port(9091, PublishMode.PUBLISH_MODE_HOST)];
    await run("greedy2", 2, "web", ["open"], { hostPorts });
    const daemon = await Peer.in(here.netns, "daemon");
    for (const one of [7400, 7404, 7410]) await daemon.ask("serveTcp", one);
    const local = await Peer.in(here.netns, "local");
    const answers: string[] = [];
    for (const one of [7400, 7404, 7410, 8082, 9091]) {
      answers.push((await client.tcp(here.underlay, one)).split(" ")[0] ?? "");
      answers.push((await local.tcp(here.underlay, one)).split(" ")[0] ?? "");
    }
    await Promise.all([daemon.kill(), local.kill()]);
    const own6 = Array<string>(6).fill("daemon");
    expect(answers).toEqual([...own6, "db1", "db1", "greedy2", "greedy2"]);
    await stop("greedy2");
    state.endpoints.delete([...state.endpoints.keys()].find((id) => id.includes("greedy")) ?? "");
    state.service("db", { open: "10.112.0.2" });
    await push();
  });

  it("a program of the host that listens keeps its port, at every start of netd, until it ends; the other hosts publish it", async () => {
    const ingress = { target: 80, protocol: Protocol.PROTOCOL_TCP, mode: PublishMode.PUBLISH_MODE_INGRESS, name: "" };
    const [here, other] = [cluster.host(0), cluster.host(1)];
    const daemon = await Peer.in(here.netns, "daemon");
    const local = await Peer.in(here.netns, "local");
    await daemon.ask("serveTcp", 22);
    await daemon.ask("serveTcp", { host: "127.0.0.1", port: 23 });
    await daemon.ask("serveTcp", { host: "::", port: 24 });
    await daemon.ask("serveUdp", 25);
    const ports: PublishedPort[] = [
      { ...ingress, published: 22, hostIp: "" },
      // Another address than the program's.
      { ...ingress, published: 23, hostIp: here.underlay },
      { ...ingress, published: 24, hostIp: here.underlay },
      { ...ingress, published: 25, hostIp: "", protocol: Protocol.PROTOCOL_UDP, target: 53000 },
      // A wildcard takes in the loopback address.
      { ...ingress, published: 26, hostIp: "" },
    ];
    await daemon.ask("serveTcp", { host: "127.0.0.1", port: 26 });
    state.service("db", { open: "10.112.0.2" }, { ports });
    await push();
    const look = async () => ({
      here22: (await client.tcp(here.underlay, 22)).split(" ")[0],
      local22: (await local.tcp("127.0.0.1", 22)).split(" ")[0],
      other22: (await client.tcp(other.underlay, 22)).split(" ")[0],
      here23: (await client.tcp(here.underlay, 23)).split(" ")[0],
      local23: (await local.tcp("127.0.0.1", 23)).split(" ")[0],
      here24: (await client.tcp(here.underlay, 24)).split(" ")[0],
      udp25: (await client.udp(here.underlay, 25)).split(" ")[0],
      otherUdp25: (await client.udp(other.underlay, 25)).split(" ")[0],
      local26: (await local.tcp("127.0.0.1", 26)).split(" ")[0],
      busy: await busyAt(here),
      otherBusy: await other.core.ask("busy"),
    });
    const kept = {
      here22: "daemon",
      local22: "daemon",
      other22: "db1",
      here23: "db1",
      local23: "daemon",
      here24: "daemon",
      udp25: "daemon",
      otherUdp25: "db1",
      local26: "daemon",
      busy: [
        "port 22 is in use by MainThread (pid N)",
        `port 24 at ${here.underlay} is in use by MainThread (pid N)`,
        "port 25/udp is in use by MainThread (pid N)",
        "port 26 is in use by MainThread (pid N)",
      ],
      otherBusy: [],
    };
    expect(await look()).toEqual(kept);
    await here.restart();
    expect(await look()).toEqual(kept);
    expect(await here.core.ask("verify")).toEqual([]);

    await daemon.kill();
    await until(
      "the ports are published once nobody has them",
      async () => ({ busy: await busyAt(here), answer: await client.tcp(here.underlay, 22) }),
      ({ busy, answer }) => JSON.stringify(busy) === "[]" && answer.startsWith("db1"),
    );
    expect((await local.tcp("127.0.0.1", 22)).split(" ")[0]).toBe("db1");
    // As Docker does: who comes later is told so.
    expect([await local.ask("serveTcp", 22), await local.ask("serveTcp", { host: "::", port: 22 })]).toEqual([
      "EADDRINUSE",
      "EADDRINUSE",
    ]);
    // netd's own sockets of the start before are no listeners.
    await here.restart();
    expect(await here.core.ask("busy")).toEqual([]);
    expect(await here.core.ask("repaired")).toBe(0);
    state.service("db", { open: "10.112.0.2" });
    await push();
    expect(await local.ask("serveTcp", 22)).toBe("listens");
    await local.kill();
  });

  it("a port that a connection of the host happens to come from is published all the same", async () => {
    const here = cluster.host(0);
    const caller = await Peer.in(here.netns, "caller");
    const kept = here.exec("sysctl -n net.ipv4.ip_local_port_range").trim().split(/\s+/).join(" ");
    here.exec('sysctl -qw net.ipv4.ip_local_port_range="49321 49321"');
    await caller.ask("idle", { host: "172.31.99.100", port: 80 });
    here.exec(`sysctl -qw net.ipv4.ip_local_port_range="${kept}"`);
    const port = { target: 80, published: 49_321, protocol: Protocol.PROTOCOL_TCP, hostIp: "", name: "" };
    state.service("db", { open: "10.112.0.2" }, { ports: [{ ...port, mode: PublishMode.PUBLISH_MODE_INGRESS }] });
    await push();
    expect(await here.core.ask("busy")).toEqual([]);
    expect(await client.tcp(here.underlay, 49_321)).toMatch(/^db1 /);
    await caller.kill();
    state.service("db", { open: "10.112.0.2" });
    await push();
  });

  it("a task whose port a program of its host has is not attached, and the host says so until the port is free", async () => {
    const here = cluster.host(2);
    const daemon = await Peer.in(here.netns, "daemon");
    await daemon.ask("serveTcp", 9092);
    const mode = PublishMode.PUBLISH_MODE_HOST;
    const hostPorts = [{ target: 80, published: 9092, protocol: Protocol.PROTOCOL_TCP, mode, hostIp: "", name: "" }];
    await expect(here.attach("zaaaaaaaaaaa", "web", ["open"], { hostPorts })).rejects.toThrow(
      /port 9092 is in use by MainThread \(pid \d+\)/,
    );
    expect((await client.tcp(here.underlay, 9092)).split(" ")[0]).toBe("daemon");
    expect(await busyAt(here)).toEqual(["port 9092 is in use by MainThread (pid N)"]);
    expect(await here.core.ask("verify")).toEqual([]);
    await daemon.kill();
    await until(
      "nobody has it",
      () => here.core.ask("busy"),
      (busy) => JSON.stringify(busy) === "[]",
    );
    await here.attach("zaaaaaaaaaaa", "web", ["open"], { hostPorts });
    await here.core.ask("detach", "zaaaaaaaaaaa");
    expect(await client.tcp(here.underlay, 9092)).toBe("ECONNREFUSED");
  });

  it("a published port without a backend refuses at once", async () => {
    const port = { target: 80, protocol: Protocol.PROTOCOL_TCP, mode: PublishMode.PUBLISH_MODE_INGRESS, name: "" };
    const here = cluster.host(0);
    const ports = [
      { ...port, published: 8083, hostIp: "" },
      { ...port, published: 8084, hostIp: here.underlay },
      { ...port, published: 8085, hostIp: "", protocol: Protocol.PROTOCOL_UDP },
    ];
    state.service("nobody", { open: "10.112.0.20" }, { ports });
    await push();
    const local = await Peer.in(here.netns, "local");
    expect([
      await client.tcp(here.underlay, 8083),
      await client.tcp(here.underlay, 8084),
      await client.udp(here.underlay, 8085),
      await local.tcp("127.0.0.1", 8083),
      await local.tcp(here.underlay, 8084),
      await peerOf("web0").tcp(here.underlay, 8083),
    ]).toEqual(Array<string>(6).fill("ECONNREFUSED"));
    await local.kill();
    state.services.delete("nobody");
    await push();
  });

  it("a VIP outlives the move of its backend, the established connection goes on while the old one drains", async () => {
    const web = peerOf("web0");
    const open = await web.ask("stream", { host: "10.112.0.2", port: 80 });
    const old = state.endpoints.get(tasks.get("db1")?.task.id ?? "");
    if (old === undefined) throw new Error("no endpoint");
    await run("db2", 2, "db", ["open"]);
    state.endpoints.set(old.taskId, { ...old, ready: false });
    await push();
    expect(await web.tcp("10.112.0.2", 80)).toMatch(/^db2 /);
    const before = await web.streamState(open);
    await until(
      "more echoes",
      () => web.streamState(open),
      (now) => now.echoed > before.echoed + 100,
    );
    // Gone from the state while its host lives: TCP is still left to the task's own end.
    state.endpoints.delete(old.taskId);
    await push();
    const later = await web.streamState(open);
    await until(
      "more echoes",
      () => web.streamState(open),
      (now) => now.echoed > later.echoed + 100,
    );
    await stop("db1");
    await until(
      "the end that the stopped task gave it",
      () => web.streamState(open),
      ({ error }) => error !== "",
    );
  });

  it("a VIP without a backend refuses at once, and works again when one is there", async () => {
    const id = tasks.get("db2")?.task.id ?? "";
    const endpoint = state.endpoints.get(id);
    if (endpoint === undefined) throw new Error("no endpoint");
    state.endpoints.set(id, { ...endpoint, ready: false });
    await push();
    expect(await peerOf("web0").tcp("10.112.0.2", 80)).toBe("ECONNREFUSED");
    expect(await peerOf("web0").udp("10.112.0.2", 53000)).toBe("ECONNREFUSED");
    expect(await client.tcp(cluster.host(0).underlay, 8080)).toBe("ECONNREFUSED");
    state.endpoints.set(id, endpoint);
    await push();
    expect(await peerOf("web0").tcp("10.112.0.2", 80)).toMatch(/^db2 /);
  });

  it("SIGKILL of netd disturbs no connection, and the next one finds nothing to do", async () => {
    const web = peerOf("web0");
    const open = await web.ask("stream", { host: "10.112.0.2", port: 80 });
    const host = cluster.host(0);
    await host.core.kill();
    const killed = await web.streamState(open);
    await until(
      "echoes without netd",
      () => web.streamState(open),
      (now) => now.echoed > killed.echoed + 100,
    );
    expect(await web.tcp("10.112.0.2", 80)).toMatch(/^db\d /);
    await host.restart();
    // From the state it kept, without a control plane.
    expect(await host.core.ask("verify")).toEqual([]);
    expect(await host.core.ask("repaired")).toBe(0);
    expect(await web.resolve("db")).toEqual(["10.112.0.2"]);
    expect((await host.core.ask("attachments")) as unknown[]).toHaveLength(5);
    const adopted = await web.streamState(open);
    expect(adopted.error).toBe("");
    await until(
      "echoes after",
      () => web.streamState(open),
      (now) => now.echoed > adopted.echoed + 100,
    );
    await push();
    expect((await web.streamState(open)).error).toBe("");
  });

  it("what others take away or add by hand is put right by itself", async () => {
    const host = cluster.host(0);
    const task = tasks.get("web0")?.task as TestTask;
    const thefts = [
      "bridge fdb del 02:76:ac:1f:63:03 dev emb4097 dst 172.31.99.3 self",
      "ip route del 10.96.16.64/27 proto 76",
      "ip neigh del 172.31.99.3 dev emb4097",
      "ip addr del 169.254.42.1/32 dev lo",
      "nft delete element inet embassy svc { 10.112.0.2 }",
      "nft flush chain inet embassy forward",
      "nft 'add chain inet embassy stranger { type filter hook forward priority 10; policy drop; }'",
      "nft delete table inet embassy",
      `ip link del ev${task.id.slice(0, 11)}`,
      "ip link del emb4097",
    ];
    for (const theft of thefts) {
      const before = Number(await host.core.ask("repaired"));
      host.exec(theft);
      await until(
        `repaired: ${theft}`,
        () => host.core.ask("repaired"),
        (now) => Number(now) > before,
      );
      await until(
        `nothing missing after: ${theft}`,
        () => host.core.ask("verify"),
        (found) => JSON.stringify(found) === "[]",
      );
      expect([theft, await peerOf("web0").tcp("10.112.0.2", 80)]).toEqual([theft, expect.stringMatching(/^db\d /)]);
    }
  });

  it("when a host is lost, tasks are refused instead of left waiting, idle connections too", async () => {
    const web = peerOf("web0");
    const busy = await web.ask("stream", { host: "10.112.0.2", port: 80 });
    const idle = await web.ask("idle", { host: "10.112.0.2", port: 80 });
    sh(`ip -n ${cluster.host(2).netns} link set eth0 down`);
    const lost = state.hosts.get("host-2");
    const gone = [...state.endpoints.values()].filter(({ nodeId }) => nodeId === "host-2");
    state.hosts.delete("host-2");
    for (const { taskId } of gone) state.endpoints.delete(taskId);
    await Promise.all([0, 1].map((n) => cluster.host(n).core.update(state.for(`host-${n}`))));
    await until(
      "a busy connection ends",
      () => web.streamState(busy),
      ({ error }) => error !== "",
    );
    await until(
      "an idle connection ends",
      () => web.streamState(idle),
      ({ error }) => error !== "",
    );
    expect(await web.tcp("10.112.0.2", 80)).toBe("ECONNREFUSED");
    sh(
      `ip -n ${cluster.host(2).netns} link set eth0 up && ip -n ${cluster.host(2).netns} route add default via 172.31.99.100`,
    );
    if (lost !== undefined) state.hosts.set("host-2", lost);
    for (const endpoint of gone) state.endpoints.set(endpoint.taskId, endpoint);
    await push();
    expect(await web.tcp("10.112.0.2", 80)).toMatch(/^db2 /);
  });

  it("many tasks come and go at once, without an address given twice", async () => {
    const ids = Array.from({ length: 20 }, (_, n) => `m${"abcdefghijklmnopqrstuvwxyz"[n]}${"a".repeat(10)}`);
    const host = cluster.host(1);
    const made = await Promise.all(ids.map((id) => host.attach(id, "web", ["open"])));
    const addresses = made.flatMap((task) => task.addresses);
    expect(new Set(addresses).size).toBe(20);
    expect((await host.attach(ids[0] ?? "", "web", ["open"])).addresses).toEqual(made[0]?.addresses);
    await Promise.all(ids.map((id) => host.core.ask("detach", id)));
    await host.core.ask("detach", ids[0]);
    expect(host.exec("ip -br link show group 42").trim().split("\n")).toHaveLength(2);
    expect(await host.core.ask("verify")).toEqual([]);
    const next = await host.attach("nextaaaaaaaa", "web", ["open"]);
    expect(addresses).not.toContain(next.addresses[0]);
    await host.core.ask("detach", "nextaaaaaaaa");
  });

  it("an attach that cannot be says why", async () => {
    const host = cluster.host(1);
    await expect(host.attach("xaaaaaaaaaaa", "web", ["nowhere"], { waitMs: 300 })).rejects.toThrow(
      /network nowhere is not known on this host yet/,
    );
    await expect(
      host.attach("yaaaaaaaaaaa", "web", ["open"], { sysctls: { "net.ipv4.nonsense": "1" } }),
    ).rejects.toThrow(/net.ipv4.nonsense=1/);
    expect(await host.core.ask("verify")).toEqual([]);
  });

  it("cleanup leaves nothing of netd's, and everything of others", async () => {
    const host = cluster.host(1);
    host.exec("nft add table inet others");
    host.exec("ip route add blackhole 192.0.2.0/24");
    for (const { node, peer } of tasks.values()) if (node === 1) await peer.kill();
    await host.core.kill();
    sh(
      `nsenter --net=/run/netns/${host.netns} ${process.execPath} netd/main.ts cleanup --run-dir ${host.directory}/netns`,
    );
    expect(host.exec("nft list tables").trim()).toBe("table inet others");
    expect(
      host
        .exec("ip -br link")
        .trim()
        .split("\n")
        .map((line) => line.split(/[\s@]/)[0]),
    ).toEqual(["lo", "eth0"]);
    expect(host.exec("ip route")).toBe(
      "default via 172.31.99.100 dev eth0 \n172.31.99.0/24 dev eth0 proto kernel scope link src 172.31.99.2 \nblackhole 192.0.2.0/24 \n",
    );
    expect(host.exec("ip rule").trim().split("\n")).toHaveLength(3);
    expect(sh(`ls ${host.directory}`)).not.toContain("netns");
  });
});
