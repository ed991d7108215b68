import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { pushBusybox } from "../cluster/busybox.ts";
import { type Cluster, startCluster } from "../cluster/cluster.ts";

describe("bad input has one clear error and changes nothing", () => {
  let cluster: Cluster;
  let folder: string;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "embassy-bad-input-"));
    cluster = await startCluster({ hosts: 2 });
    await pushBusybox(cluster);
  });
  afterAll(async () => {
    await cluster?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  });

  /** Everything that a user can see of the cluster's desired state. */
  async function desired(): Promise<unknown> {
    return [
      await cluster.json(["stacks"]),
      await cluster.json(["services"]),
      (await cluster.tasks()).map(({ task }) => [task?.id, task?.desired]),
    ];
  }

  async function deploy(name: string, text: string, ...more: string[]) {
    const file = join(folder, `${name}.yml`);
    writeFileSync(file, text.replaceAll("REGISTRY", cluster.registry));
    return await cluster.clusterctl(["deploy", file, name, ...more]);
  }

  const refused: readonly { what: string; text: string; code: number; says: readonly (string | RegExp)[] }[] = [
    {
      what: "a file that is not YAML",
      text: "services:\n  web: {image: x\n",
      code: 1,
      says: [/notyaml\.yml:\d+/i],
    },
    {
      what: "an unknown key",
      text: "services:\n  web:\n    image: REGISTRY/busybox:1\n    imagee: y\n",
      code: 1,
      says: ["services.web.imagee", ":4", "image"],
    },
    {
      what: "a link to a service that is not there",
      text: "services:\n  web:\n    image: REGISTRY/busybox:1\n    links: [databse]\n  database:\n    image: REGISTRY/busybox:1\n",
      code: 1,
      says: ["services.web.links[0]", "databse", "database"],
    },
  ];
  it.each(refused)("$what", async ({ what, text, code, says }) => {
    const before = await desired();
    const result = await deploy(what === "a file that is not YAML" ? "notyaml" : "bad", text);
    expect(result.code).toBe(code);
    for (const words of says) expect(result.stderr).toMatch(words);
    expect(await desired()).toEqual(before);
  });

  it("an image that does not exist: the task says so, in the registry's own words", async () => {
    const result = await deploy(
      "noimage",
      "services:\n  web:\n    image: REGISTRY/nothing/here:7\n",
      "--timeout",
      "60s",
    );
    expect(result.code).toBe(2);
    expect(result.stderr + result.stdout).toMatch(/nothing\/here/);
    expect(result.stderr + result.stdout).toMatch(/manifest unknown|not known to registry|repository name/i);
    await cluster.run(["rm", "noimage"]);
  });

  it("an update that fails goes back by itself and ends with exit code 3; by hand the whole stack goes back", async () => {
    const text = (content: string, command: string) =>
      `services:
  web:
    image: REGISTRY/busybox:1
    command: [sh, -c, '${command}']
    stop_grace_period: 1s
    configs: [page]
    deploy: {replicas: 2, update_config: {failure_action: rollback, monitor: 2s}}
configs: {page: {content: ${content}}}
`;
    const page = async () => (await cluster.run(["exec", "back_web.1", "cat", "/page"])).stdout;
    const running = async () => (await cluster.tasks()).map(({ task, status }) => [task.id, status?.state]);
    expect((await deploy("back", text("one", "exec sleep 1000"))).code).toBe(0);
    const before = await running();
    const failed = await deploy("back", text("two", "echo there is no database; exit 3"));
    expect(failed.code).toBe(3);
    expect(failed.stderr).toMatch(/error: web was rolled back: web\.1 failed: .*3\n {2}\| there is no database\n/);
    expect(await page()).toBe("one");
    expect((await running())[1]).toEqual(before[1]);
    const ps = await cluster.run(["ps", "back"]);
    expect(ps.stderr).toMatch(/^back_web: rolled back: web\.1 failed/);

    expect((await deploy("back", text("three", "exec sleep 1001"))).code).toBe(0);
    expect(await page()).toBe("three");
    await cluster.run(["rollback", "back"]);
    expect(await page()).toBe("one");
    const { revisions } = await cluster.json<{ revisions: { revision: number; restores: number }[] }>([
      "revisions",
      "back",
    ]);
    expect(revisions.map(({ revision, restores }) => [revision, restores])).toEqual([
      [4, 1],
      [3, 0],
      [2, 0],
      [1, 0],
    ]);
    await cluster.run(["rm", "back"]);
  });

  it("a job that fails for good ends the deploy that waits for it, the second time too", async () => {
    const text = `services:
  migrate:
    image: REGISTRY/busybox:1
    command: [sh, -c, 'echo no such table; exit 4']
    restart: "no"
  web:
    image: REGISTRY/busybox:1
    command: [sleep, '1000']
    depends_on: {migrate: {condition: service_completed_successfully}}
`;
    for (let turn = 1; turn <= 2; turn++) {
      const result = await deploy("job", text);
      expect(result.code).toBe(2);
      expect(result.stderr).toMatch(/error: migrate\.1 ended .*gave up after 1 attempt\n {2}\| no such table\n/);
    }
    await cluster.run(["rm", "job"]);
  });

  it("a published port that another stack has", async () => {
    const text =
      "services:\n  web:\n    image: REGISTRY/busybox:1\n    command: [sleep, '1000']\n    stop_grace_period: 1s\n    ports: ['8088:80']\n";
    expect((await deploy("first", text)).code).toBe(0);
    const before = await desired();
    const second = await deploy("second", text);
    expect(second.code).toBe(5);
    expect(second.stderr).toMatch(/8088/);
    expect(second.stderr).toMatch(/first/);
    expect(await desired()).toEqual(before);
    await cluster.run(["rm", "first"]);
  });

  it.each(["7400:80", "7410:80", "4789:80/udp", "{target: 80, published: 7405, mode: host}"])(
    "a published port that the cluster itself listens on: %s",
    async (port) => {
      const before = await desired();
      const result = await deploy("taker", `services:\n  web:\n    image: REGISTRY/busybox:1\n    ports: [${port}]\n`);
      expect(result.code).toBe(5);
      expect(result.stderr).toMatch(/port \d+\/(tcp|udp) is taken by (clusterd|noded|the overlay)/);
      expect(await desired()).toEqual(before);
    },
  );

  it("one wrong name among several, or a number that cannot be: nothing of it is done", async () => {
    const text = ["many", "one"]
      .map(
        (name) =>
          `  ${name}:\n    image: REGISTRY/busybox:1\n    command: [sleep, '1000']\n    stop_grace_period: 1s\n`,
      )
      .join("");
    expect((await deploy("names", `services:\n${text}    container_name: only\n`)).code).toBe(0);
    const before = await desired();
    const tried: readonly (readonly [string[], number, RegExp])[] = [
      [["scale", "names_many=2", "nope=1"], 1, /there is no service nope/],
      [
        ["scale", "names_many=2", "names_one=2"],
        1,
        /names_one has container_name only: one name cannot serve up to 2 tasks/,
      ],
      [
        ["scale", "names_many=2", "names_one=100001"],
        1,
        /names_one: .* a whole number from 0 to 100000, and found the number 100001/,
      ],
      [["scale", "names_many=100001"], 1, /names_many: .*, and found the number 100001/],
      [["rm", "names", "nope"], 1, /there is no stack nope/],
    ];
    for (const [words, code, says] of tried) {
      const result = await cluster.clusterctl(words);
      expect([words, result.code]).toEqual([words, code]);
      expect(result.stderr).toMatch(says);
      expect(await desired()).toEqual(before);
    }
    await cluster.run(["scale", "names_many=2", "names_one=0"]);
    await cluster.run(["rm", "names"]);
  });

  it("a reservation that no node can hold: the reason, with the nodes that have it", async () => {
    const text =
      "services:\n  web:\n    image: REGISTRY/busybox:1\n    deploy: {resources: {reservations: {memory: 900G}}}\n";
    const result = await deploy("huge", text, "--timeout", "10s");
    expect(result.code).toBe(2);
    expect(result.stderr + result.stdout).toMatch(/2 nodes.*memory/);
    await cluster.run(["rm", "huge"]);
  });

  it("a CLI without a cluster, and one whose cluster does not answer", async () => {
    const none = await cluster.clusterctl(["nodes"], { environment: { EMBASSY_CONFIG_DIR: join(folder, "empty") } });
    expect(none.code).toBe(6);
    expect(none.stderr).toMatch(/context/);
    const context = JSON.parse(readFileSync(cluster.contextFile, "utf8")) as { endpoints: string[] };
    const away = join(folder, "away.json");
    writeFileSync(away, JSON.stringify({ ...context, name: "away", endpoints: ["127.0.0.1:9"] }));
    const deaf = await cluster.clusterctl(["--context", away, "nodes"]);
    expect(deaf.code).toBe(6);
    expect(deaf.stderr).toMatch(/127\.0\.0\.1:9/);
  });

  it("a CLI with another cluster's certificate", async () => {
    await using other = await startCluster({ hosts: 1 });
    const [mine, theirs] = [cluster, other].map(
      (one) => JSON.parse(readFileSync(one.contextFile, "utf8")) as Record<string, unknown>,
    );
    const mixed = join(folder, "mixed.json");
    writeFileSync(mixed, JSON.stringify({ ...mine, certificate: theirs?.["certificate"], key: theirs?.["key"] }));
    const result = await cluster.clusterctl(["--context", mixed, "nodes"]);
    expect(result.code).toBe(7);
    expect(result.stderr).toMatch(/certificate/);
  });
});
