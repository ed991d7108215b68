import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster, type TaskView } from "../cluster/cluster.ts";
import { running } from "./counter.ts";

const stack = (name: string) => join(import.meta.dirname, "stacks", name);

/** What a task gets from an address: the page, or nothing. */
async function reaches(cluster: Cluster, from: TaskView, url: string): Promise<boolean> {
  const result = await cluster.clusterctl(["exec", from.task.id, "--", "timeout", "2", "wget", "-q", "-O", "-", url]);
  return result.code === 0 && result.stdout.includes("page");
}

const addressOf = (view: TaskView) => view.status?.addresses[0]?.address ?? "";

describe("what must not see one another does not", () => {
  let cluster: Cluster;
  beforeAll(async () => {
    cluster = await startCluster({ hosts: 3 });
    await pushBusybox(cluster);
  });
  afterAll(async () => await cluster?.[Symbol.asyncDispose]());

  it("three networks: each sees itself on every host, and nothing of the others on any", async () => {
    await cluster.run(["deploy", stack("three-networks.yml")], { environment: { REGISTRY: cluster.registry } });
    const tasks = await cluster.tasks();
    const colours = ["red", "green", "blue"];
    const expected: Record<string, boolean> = {};
    const found: Record<string, boolean> = {};
    const tries: Promise<void>[] = [];
    for (const colour of colours) {
      // One asker of each colour, each on another host, asks every task of every colour: on its own host and on the others.
      const asker = running(tasks, colour).find((view) => view.nodeName === `host-${colours.indexOf(colour) + 1}`);
      if (asker === undefined) throw new Error(`no ${colour} on its host`);
      for (const target of colours) {
        const urls = [
          ...running(tasks, target).map((view) => `http://${addressOf(view)}:8080/`),
          `http://${target}:8080/`,
          `http://${await cluster.vip(`colours_${target}`)}:8080/`,
        ];
        for (const url of urls) {
          const what = `${colour} on ${asker.nodeName} -> ${target} ${url}`;
          expected[what] = colour === target;
          const note = async () => {
            found[what] = await reaches(cluster, asker, url);
          };
          tries.push(note());
        }
      }
    }
    await Promise.all(tries);
    expect(Object.keys(found)).toHaveLength(45);
    expect(found).toEqual(expected);
    await cluster.run(["rm", "colours"]);
  });

  it("a closed network: the linked consumer reaches the exposed port by its alias, and nothing else passes", async () => {
    await cluster.run(["deploy", stack("isolated.yml")], { environment: { REGISTRY: cluster.registry } });
    const tasks = await cluster.tasks();
    const on = (service: string, host: string) => {
      const view = running(tasks, service).find((candidate) => candidate.nodeName === host);
      if (view === undefined) throw new Error(`no ${service} on ${host}`);
      return view;
    };
    const vip = await cluster.vip("vault_provider");
    const friend = on("friend", "host-1");
    const stranger = on("stranger", "host-1");
    const provider = addressOf(on("provider", "host-2"));
    const found = {
      "friend by alias": await reaches(cluster, friend, "http://vault:8080/"),
      "friend by VIP": await reaches(cluster, friend, `http://${vip}:8080/`),
      "friend, a port that is not exposed": await reaches(cluster, friend, `http://${vip}:9090/`),
      "friend, the task itself, a port that is not exposed": await reaches(cluster, friend, `http://${provider}:9090/`),
      "stranger by name": await reaches(cluster, stranger, "http://provider:8080/"),
      "stranger by the friend's alias": await reaches(cluster, stranger, "http://vault:8080/"),
      "stranger by VIP": await reaches(cluster, stranger, `http://${vip}:8080/`),
      "stranger, the task on another host": await reaches(cluster, stranger, `http://${provider}:8080/`),
      "stranger, the task on its own host": await reaches(
        cluster,
        stranger,
        `http://${addressOf(on("provider", "host-1"))}:8080/`,
      ),
      "provider back to its consumer": await reaches(
        cluster,
        on("provider", "host-1"),
        `http://${addressOf(friend)}:8080/`,
      ),
    };
    expect(found).toEqual({
      ...Object.fromEntries(Object.keys(found).map((key) => [key, false])),
      "friend by alias": true,
      "friend by VIP": true,
    });
    await cluster.run(["rm", "vault"]);
  });

  it("a program of a host keeps its port from a stack: there nothing is published, which is said, and a task that must is elsewhere", async () => {
    const web = (mode: string) => `services:
  web:
    image: "${cluster.registry}/busybox:1"
    command: [sh, -c, "mkdir /www; echo stack > /www/index.html; exec httpd -f -p 8080 -h /www"]
    stop_grace_period: 0s
    ports: [{target: 8080, published: "8099", mode: ${mode}}]
    deploy: {replicas: 2}`;
    const started = await cluster.exec("host-1", [
      "sh",
      "-c",
      "mkdir -p /run/own && echo own > /run/own/index.html && { busybox httpd -f -p 8099 -h /run/own > /dev/null 2>&1 & echo $!; }",
    ]);
    expect(started.code).toBe(0);
    const says = async (host: string): Promise<string> =>
      (await cluster.exec(host, ["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8099/"])).stdout.trim();
    const everywhere = async () => [await says("host-1"), await says("host-2"), await says("host-3")];

    const { stderr } = await cluster.deployText("ports", web("ingress"));
    expect(stderr).toMatch(/warning: host-1 does not publish port 8099 of web: busybox \(pid \d+\) listens there/);
    expect(await everywhere()).toEqual(["own", "stack", "stack"]);
    expect((await cluster.run(["nodes"])).stdout).toMatch(/host-1 .*port 8099 is in use by busybox/);
    await cluster.kill("host-1", "netd");
    await cluster.start("host-1", "netd");
    // It listens for tasks' names once it has done what it knew.
    await cluster.untilNodes("host-1 has its network", (nodes) =>
      nodes.every(({ status }) => status?.networkProblem === ""),
    );
    expect(await everywhere()).toEqual(["own", "stack", "stack"]);
    await cluster.run(["rm", "ports"]);

    await cluster.deployText("ports", web("host"));
    const on = running(await cluster.tasks(), "web").map(({ nodeName }) => nodeName);
    expect(on.sort()).toEqual(["host-2", "host-3"]);
    expect(await everywhere()).toEqual(["own", "stack", "stack"]);
    const third = await cluster.clusterctl(["scale", "ports_web=3"]);
    expect([third.code, third.stderr]).toEqual([2, expect.stringMatching(/port 8099 .*busybox/)]);

    await cluster.exec("host-1", ["kill", started.stdout.trim()]);
    await cluster.until("the third task runs once the port is free", (tasks) => running(tasks, "web").length === 3);
    expect(await everywhere()).toEqual(["stack", "stack", "stack"]);
    await cluster.run(["rm", "ports"]);
  });
});
