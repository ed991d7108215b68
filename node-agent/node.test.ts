import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { Metadata } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ExecInput, ExecOutput, LogBatch } from "../proto/gen/embassy/v1/api.ts";
import { Assignment } from "../proto/gen/embassy/v1/dispatcher.ts";
import { type ContainerSpec, Mount, MountType } from "../proto/gen/embassy/v1/stack.ts";
import { DesiredState, TaskState } from "../proto/gen/embassy/v1/state.ts";
import { busyboxImage } from "../test/images/busybox.ts";
import { pushImage, startRegistry, type TestRegistry } from "../test/images/registry.ts";
import { readNodeFile } from "./join/node.ts";
import { TestNode } from "./testing/node.ts";

const { DESIRED_STATE_READY, DESIRED_STATE_RUNNING, DESIRED_STATE_SHUTDOWN } = DesiredState;

const root = process.getuid?.() === 0;

let registry: TestRegistry;
let image: string;
beforeAll(async () => {
  if (!root) return;
  registry = await startRegistry();
  image = await pushImage(registry.url, "busybox", "1", await busyboxImage());
});
afterAll(async () => {
  if (root) await registry[Symbol.asyncDispose]();
});

/** The connection of an earlier process is found broken by the first call: that one waits for the next. */
const patient = () => new Metadata({ waitForReady: true });

let count = 0;
const nextId = () => `task${"abcdefghij"[Math.floor(count / 10)]}${"abcdefghij"[count++ % 10]}aaaaaa`;

function task(
  command: readonly string[],
  container: Partial<ContainerSpec> = {},
  more: Partial<Assignment> = {},
): Assignment {
  const taskId = nextId();
  return Assignment.create({
    taskId,
    taskName: `s_${taskId}.1`,
    stack: "s",
    serviceId: "serviceaaaaa",
    serviceName: "web",
    slot: 1,
    desired: DESIRED_STATE_RUNNING,
    networks: [{ networkId: "net1", aliases: [] }],
    container: { image, command: [...command], commandSet: true, stopGraceMs: 1_000, ...container },
    ...more,
  });
}
const wanting = (assignment: Assignment, desired: DesiredState): Assignment => ({ ...assignment, desired });

const alive = async (pid: number) =>
  (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).replaceAll("\0", " ").trim();

async function startNode(): Promise<TestNode> {
  const node = await TestNode.create({ insecureRegistries: [registry.host] });
  node.start();
  return node;
}

const reaches = async (node: TestNode, { taskId }: Assignment, state: TaskState) =>
  await node.until(`${taskId} in state ${state}`, () => {
    const status = node.statuses.get(taskId);
    return status?.state === state ? status : undefined;
  });

async function logs(
  node: TestNode,
  { taskId }: Assignment,
  options: { follow?: boolean; tail?: number } = {},
  agent = node.agent,
): Promise<string[]> {
  const call = agent.logs({ taskId, follow: false, tail: -1, sinceMs: 0, from: undefined, ...options }, patient());
  const lines: string[] = [];
  for await (const { chunks } of call as AsyncIterable<LogBatch>)
    for (const { mark, line } of chunks) if (!mark) lines.push(line.toString());
  return lines;
}

async function exec(node: TestNode, { taskId }: Assignment, command: string[], input?: string) {
  const call = node.agent.exec(patient());
  const say = (message: ExecInput["message"]) => call.write({ message });
  const start = {
    target: taskId,
    command,
    tty: false,
    stdin: input !== undefined,
    environment: {},
    user: "",
    workingDir: "",
    size: undefined,
  };
  say({ $case: "start", value: start });
  if (input !== undefined) {
    say({ $case: "stdin", value: Buffer.from(input) });
    say({ $case: "stdinClosed", value: true });
  }
  const result = { stdout: "", stderr: "", exitCode: -99 };
  for await (const { message } of call as AsyncIterable<ExecOutput>) {
    if (message?.$case === "exitCode") result.exitCode = message.value;
    else if (message !== undefined) result[message.$case] += message.value.toString();
  }
  return result;
}

describe.runIf(root)("noded with real containers", { timeout: 120_000 }, () => {
  it("runs a task: image, files, environment, log, exec, stop; and leaves nothing", async () => {
    await using node = await startNode();
    const web = task(
      ["sh", "-c", 'echo "$GREETING from $LINK"; cat /run/secrets/key /etc/app.conf; exec sleep 1000'],
      {
        environment: { GREETING: "hello" },
        secrets: [{ source: "key", target: "/run/secrets/key", uid: 33, gid: 33, mode: 0o400 }],
        configs: [{ source: "conf", target: "/etc/app.conf", uid: 0, gid: 0, mode: 0 }],
        extraHosts: [{ name: "gateway.test", address: "host-gateway" }],
      },
      {
        linkEnvironment: { LINK: "redis" },
        secrets: [{ name: "key", content: Buffer.from("s3cret\n") }],
        configs: [{ name: "conf", content: Buffer.from("a=b\n") }],
      },
    );
    node.assign(web);
    const running = await reaches(node, web, TaskState.TASK_STATE_RUNNING);
    await node.until("all is written", async () => (await logs(node, web)).length === 3);
    expect(await alive(running.pid)).toBe("sleep 1000");
    expect(running.addresses).toEqual([{ networkId: "net1", address: "10.99.0.2" }]);
    expect(running.imageDigest).toMatch(/^sha256:/);
    expect(await logs(node, web)).toEqual(["hello from redis", "s3cret", "a=b"]);
    expect(await logs(node, web, { tail: 1 })).toEqual(["a=b"]);
    expect(await exec(node, web, ["cat"], "over\n")).toEqual({ stdout: "over\n", stderr: "", exitCode: 0 });
    expect(await exec(node, web, ["sh", "-c", "echo bad >&2; exit 3"])).toEqual({
      stdout: "",
      stderr: "bad\n",
      exitCode: 3,
    });
    const missing = await exec(node, web, ["nope"]);
    expect(missing).toMatchObject({ stdout: "", exitCode: 127 });
    // Said once, though both the runtime and noded know it; crun names the program, runc does not.
    expect(missing.stderr.match(/executable file (\S+ )?not found/g)).toHaveLength(1);
    expect((await exec(node, web, ["stat", "-c", "%u %a", "/run/secrets/key"])).stdout).toBe("33 400\n");
    expect((await exec(node, web, ["cat", "/etc/resolv.conf"])).stdout).toContain("nameserver 169.254.42.1");
    expect((await exec(node, web, ["cat", "/etc/hosts"])).stdout).toMatch(/169\.254\.42\.1\s+gateway\.test/);
    // What is on disk of the task must not hold the secret.
    expect((await readFile(`${node.stateDir}/tasks/${web.taskId}/assignment.pb`)).includes("s3cret")).toBe(false);

    expect(await node.http("/metrics")).toContain('embassy_node_tasks{state="running"} 1');
    expect(JSON.parse(await node.http("/healthz"))).toMatchObject({ healthy: true, session: "established", tasks: 1 });

    node.assign(wanting(web, DESIRED_STATE_SHUTDOWN));
    // As pid 1 of its namespace sleep has no handler for SIGTERM: it is killed when its grace is over.
    expect(await reaches(node, web, TaskState.TASK_STATE_SHUTDOWN)).toMatchObject({ exitCode: 137 });
    expect(await logs(node, web, { follow: true })).toEqual(["hello from redis", "s3cret", "a=b"]);
    await node.until("detached", () => node.netd.attached.size === 0);
    node.assign();
    await node.until("forgotten", () => node.log.includes('"step":"forget"'));
  });

  it("prepares a task that may not start yet, and starts it on leave", async () => {
    await using node = await startNode();
    const web = task(["sleep", "1000"], {}, { desired: DESIRED_STATE_READY });
    node.assign(web);
    const ready = await reaches(node, web, TaskState.TASK_STATE_READY);
    expect(await alive(ready.pid)).not.toBe("sleep 1000");
    node.assign(wanting(web, DESIRED_STATE_RUNNING));
    const running = await reaches(node, web, TaskState.TASK_STATE_RUNNING);
    expect(running.pid).toBe(ready.pid);
  });

  it("keeps containers when it is killed, adopts them with their pids, and tells what ended without it", async () => {
    await using node = await startNode();
    const stays = task(["sleep", "1000"]);
    const ends = task(["sh", "-c", "sleep 0.2; exit 7"]);
    const stuck = task(["sleep", "1000"], { image: `${registry.host}/none:1` });
    node.assign(stays, ends, stuck);
    const { pid } = await reaches(node, stays, TaskState.TASK_STATE_RUNNING);
    await reaches(node, ends, TaskState.TASK_STATE_RUNNING);
    expect((await reaches(node, stuck, TaskState.TASK_STATE_REJECTED)).message).toMatch(/none/);
    await node.end("SIGKILL");
    expect(await alive(pid)).toBe("sleep 1000");
    // What ended while no noded was there is told by the next.
    node.start();
    expect(await reaches(node, ends, TaskState.TASK_STATE_FAILED)).toMatchObject({ exitCode: 7 });
    expect((await reaches(node, stays, TaskState.TASK_STATE_RUNNING)).pid).toBe(pid);
    expect(await alive(pid)).toBe("sleep 1000");
    expect(await exec(node, stays, ["true"])).toMatchObject({ exitCode: 0 });
  });

  it("leaves containers alone when it is stopped cleanly", async () => {
    await using node = await startNode();
    const stays = task(["sleep", "1000"]);
    node.assign(stays);
    const { pid } = await reaches(node, stays, TaskState.TASK_STATE_RUNNING);
    expect(await node.end("SIGTERM")).toBe(0);
    expect(await alive(pid)).toBe("sleep 1000");
    node.start();
    await node.until("adopted", () => node.hellos.length === 2);
    expect(node.hellos[1]).toMatchObject([{ taskId: stays.taskId, state: TaskState.TASK_STATE_RUNNING, pid }]);
  });

  it("reports health, and gives up what is unhealthy", async () => {
    await using node = await startNode();
    const check = {
      test: ["CMD-SHELL", "test -e /tmp/ok"],
      intervalMs: 100,
      timeoutMs: 5_000,
      retries: 2,
      startPeriodMs: 0,
      startIntervalMs: 0,
    };
    const web = task(["sh", "-c", "touch /tmp/ok; exec sleep 1000"], { healthcheck: check, stopSignal: "SIGKILL" });
    node.assign(web);
    await node.until("healthy", () => node.statuses.get(web.taskId)?.health === 2);
    await exec(node, web, ["rm", "/tmp/ok"]);
    expect(await reaches(node, web, TaskState.TASK_STATE_FAILED)).toMatchObject({
      exitCode: 137,
      message: "unhealthy: exit code 1",
    });
  });

  it("goes on wherever it was when it is killed again and again while tasks come and go", async () => {
    await using node = await startNode();
    let seed = 7;
    // A small linear congruential generator: the same instants each time.
    const random = () => {
      seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31;
      return seed / 2 ** 31;
    };
    const keeps = task(["sleep", "1000"]);
    node.assign(keeps);
    const { pid } = await reaches(node, keeps, TaskState.TASK_STATE_RUNNING);
    const ran: Assignment[] = [];
    for (let round = 0; round < 6; round++) {
      // Each container says once that it ran.
      const comes = task(["sh", "-c", "echo ran; exec sleep 1000"]);
      ran.push(comes);
      node.assign(keeps, comes);
      const steps = node.log.length;
      const logged = Math.floor(random() * 8);
      await node.until("a few steps", () => node.log.slice(steps).split('"message":"step"').length > logged);
      await node.end("SIGKILL");
      const sessions = node.hellos.length;
      node.start();
      await node.until("a new session", () => node.hellos.length > sessions);
      await reaches(node, comes, TaskState.TASK_STATE_RUNNING);
      await node.until("it has said something", async () => (await logs(node, comes)).length > 0);
      expect(await logs(node, comes)).toEqual(["ran"]);
    }
    expect(await alive(pid)).toBe("sleep 1000");
    node.assign(keeps);
    await node.until("only one is left", () => node.netd.attached.size === 1);
    const left = ran.filter(({ taskId }) => node.netd.attached.has(taskId));
    expect(left).toEqual([]);
  });

  it("supervises without a control plane: it stops what it was told to stop, and tells it later", async () => {
    await using node = await startNode();
    const stays = task(["sleep", "1000"]);
    const ends = task(["sh", "-c", "sleep 0.3; exit 4"]);
    node.assign(stays, ends);
    const { pid } = await reaches(node, stays, TaskState.TASK_STATE_RUNNING);
    await node.cutOff();
    await node.end("SIGKILL");
    node.start();
    await node.until("seen without a session", () => node.log.includes('"outcome":"failed"'));
    expect(await alive(pid)).toBe("sleep 1000");
    expect(node.statuses.get(ends.taskId)?.state).not.toBe(TaskState.TASK_STATE_FAILED);
    await node.reconnect();
    expect(await reaches(node, ends, TaskState.TASK_STATE_FAILED)).toMatchObject({ exitCode: 4 });
    expect(node.statuses.get(stays.taskId)).toMatchObject({ state: TaskState.TASK_STATE_RUNNING, pid });
  });

  it("follows a log until its reader goes or its task ends", async () => {
    await using node = await startNode();
    const talks = task(["sh", "-c", "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.02; done; exit 0"]);
    node.assign(talks);
    await reaches(node, talks, TaskState.TASK_STATE_RUNNING);
    const lines = await logs(node, talks, { follow: true });
    expect(lines).toEqual(Array.from({ length: 40 }, (_, index) => `line ${index + 1}`));
    await reaches(node, talks, TaskState.TASK_STATE_COMPLETE);
    expect(await logs(node, talks, { tail: 2 })).toEqual(["line 39", "line 40"]);
  });

  it("gives a terminal to an exec that asks for one, and sets its size", async () => {
    await using node = await startNode();
    const web = task(["sleep", "1000"]);
    node.assign(web);
    await reaches(node, web, TaskState.TASK_STATE_RUNNING);
    const call = node.agent.exec(patient());
    const say = (message: ExecInput["message"]) => call.write({ message });
    const size = { rows: 33, columns: 77 };
    const start = {
      target: web.taskId,
      command: ["sh"],
      tty: true,
      stdin: true,
      environment: {},
      user: "",
      workingDir: "",
      size,
    };
    say({ $case: "start", value: start });
    let screen = "";
    let exitCode = -99;
    say({ $case: "stdin", value: Buffer.from("stty size; echo done-$((1+1))\n") });
    for await (const { message } of call as AsyncIterable<ExecOutput>) {
      if (message?.$case === "exitCode") exitCode = message.value;
      else if (message !== undefined) screen += message.value.toString();
      if (screen.includes("done-2") && !screen.includes("resized")) {
        say({ $case: "resize", value: { rows: 20, columns: 50 } });
        screen += "resized";
        say({
          $case: "stdin",
          value: Buffer.from("while [ \"$(stty size)\" != '20 50' ]; do sleep 0.05; done; exit 5\n"),
        });
      }
    }
    expect(screen).toContain("33 77");
    expect(exitCode).toBe(5);
  });

  it("refuses an exec in what does not run, and a caller that is no manager", async () => {
    await using node = await startNode();
    const waits = task(["sleep", "1000"], {}, { desired: DESIRED_STATE_READY });
    node.assign(waits);
    await reaches(node, waits, TaskState.TASK_STATE_READY);
    await expect(exec(node, waits, ["true"])).rejects.toThrow(/is not running/);
    await expect(exec(node, { ...waits, taskId: "unknownaaaaa" }, ["true"])).rejects.toThrow(
      /has no task unknownaaaaa/,
    );
  });

  it("told that its node was removed, stops its tasks as on shutdown, killed in between too; keeps volumes, and ends", async () => {
    await using node = await startNode();
    // Slow to stop: noded is killed meanwhile.
    const script =
      "trap 'sleep 2; echo stopped >>/data/rows; exit 0' TERM; echo up >>/data/rows; while :; do sleep 0.1; done";
    const mounts = [Mount.create({ type: MountType.MOUNT_TYPE_VOLUME, source: "s_data", target: "/data" })];
    const db = task(["sh", "-c", script], { mounts, stopGraceMs: 30_000 });
    const rows = async () => await readFile(join(node.stateDir, "volumes/s_data/_data/rows"), "utf8").catch(() => "");
    await node.until("hello", () => node.hellos.length > 0);
    node.assign(db);
    const { pid } = await reaches(node, db, TaskState.TASK_STATE_RUNNING);
    await node.until("it has written", async () => (await rows()) === "up\n");

    // An absent control plane says nothing, however long it is away.
    await node.cutOff();
    await node.until("the session is lost", () => node.log.includes('"from":"established"'));
    expect(await alive(pid)).not.toBe("");

    await node.remove();
    const record = async () => await readFile(join(node.stateDir, "tasks", db.taskId, "record.json"), "utf8");
    await node.until("the stop signal is sent", async () => (await record()).includes('"stopSentAtMs"'));
    expect(node.log).toContain("this node was removed from its cluster");
    expect(JSON.parse(await node.http("/healthz"))).toMatchObject({ session: "removed", tasks: 1 });
    await node.end("SIGKILL");
    expect((await readNodeFile(node.stateDir)).removed).toBe("stopping");

    // The control plane need not say it again.
    await node.cutOff();
    node.start();
    expect(await node.ended()).toBe(2);
    expect((await readNodeFile(node.stateDir)).removed).toBe("done");
    expect(await rows()).toBe("up\nstopped\n");
    expect(await alive(pid)).toBe("");
    expect(await readdir(join(node.stateDir, "tasks"))).toEqual([]);
    expect([...node.netd.attached.keys()]).toEqual([]);

    // Started again, it says so and ends.
    node.start();
    expect(await node.ended()).toBe(2);
    expect(node.log).toContain("and was removed from it");
  });
});
