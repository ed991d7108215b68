import { execFileSync, spawn } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, expect, it, vi } from "vitest";
import { makeTestPlace, openTestRuntime, pidsOf, type TestPlace, testRequest, tracesOf } from "./testing/host.ts";
import type { ContainerExit, Runtime } from "./types.ts";

const root = process.getuid?.() === 0;
if (!root) console.warn("runtime/adopt.test.ts is skipped: containers need root");

const ids = ["a", "b", "c", "d", "e", "f"];

/** Runs an agent of its own process until it says a line, kills it, and returns what it had said. */
async function agentUntil(place: TestPlace, wanted: RegExp): Promise<readonly string[]> {
  const script = join(import.meta.dirname, "testing/killed-agent.ts");
  const child = spawn(process.execPath, [script, JSON.stringify(place), ids.join(",")], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const said: string[] = [];
  const gone = new Promise((resolve) => child.on("exit", resolve));
  for await (const line of createInterface({ input: child.stdout })) {
    said.push(line);
    if (wanted.test(line)) break;
  }
  child.kill("SIGKILL");
  await gone;
  return said;
}

async function deleteAll(runtime: Runtime): Promise<void> {
  for (const { id } of await runtime.list()) await runtime.delete(id);
}

describe.runIf(root)("after the agent was killed", () => {
  // Each is killed with the others at other steps: bundle, conmon spawned, created, recorded, started.
  it.each([/^open/, /^created a/, /^started a/, /^created c/, /^started d/, /^created f/, /^done/])(
    "at %s, nothing is lost, doubled or left behind",
    async (wanted) => {
      using place = makeTestPlace();
      const said = await agentUntil(place, wanted);
      await using runtime = await openTestRuntime(place);
      const adopted = await runtime.adopt();
      const running = adopted.map((container) => container.id);
      expect(adopted.every(({ state }) => state === "running")).toBe(true);
      for (const line of said) {
        const [, id, pid] = /^started (\S+) (\d+)/.exec(line) ?? [];
        if (id !== undefined)
          expect(adopted.find((container) => container.id === id)).toMatchObject({ pid: Number(pid) });
      }
      for (const id of ids) {
        expect(pidsOf(place, id), id).toHaveLength(running.includes(id) ? 1 : 0);
        if (!running.includes(id)) expect(tracesOf(place).filter((trace) => trace.endsWith(`/${id}`))).toEqual([]);
      }
      // What was not there can be begun again, and what was there answers as ever.
      for (const id of ids) {
        if (running.includes(id)) continue;
        await runtime.create(testRequest(place, id));
        await runtime.start(id);
      }
      for (const id of ids) expect(pidsOf(place, id), id).toHaveLength(1);
      const ended = new Promise<ContainerExit>((resolve) => runtime.watchExits(resolve));
      await runtime.kill("a", "SIGKILL");
      expect(await ended).toMatchObject({ id: "a", exitCode: 137 });
      await deleteAll(runtime);
      await vi.waitFor(() => expect(tracesOf(place)).toEqual([]), 10_000);
    },
  );

  it("containers that ended meanwhile are known with their exit codes, and as unknown without one", async () => {
    using place = makeTestPlace();
    const agent = await openTestRuntime(place);
    await agent.adopt();
    for (const [id, script] of [
      ["ends", "sleep 0.05; exit 9"],
      ["unwatched", "sleep 1000"],
      ["stays", "sleep 1000"],
    ] as const) {
      await agent.create(testRequest(place, id, { script }));
      await agent.start(id);
    }
    const over = new Promise<ContainerExit>((resolve) => agent.watchExits(resolve));
    await agent[Symbol.asyncDispose]();
    // Closed, it takes no note of anything: only the files tell the next one.
    expect(await Promise.race([over, exitFile(place, "ends")])).toBe("9");
    const record = JSON.parse(readFileSync(join(place.runDir, "containers/unwatched/process.json"), "utf8")) as {
      conmon: { pid: number };
    };
    process.kill(record.conmon.pid, "SIGKILL");

    await using runtime = await openTestRuntime(place);
    const adopted = await runtime.adopt();
    expect(adopted).toMatchObject([
      { id: "ends", state: "exited", exit: { exitCode: 9 } },
      { id: "stays", state: "running" },
      { id: "unwatched", state: "exited", exit: { exitCode: -1 } },
    ]);
    expect(pidsOf(place, "unwatched")).toEqual([]);
    await deleteAll(runtime);
    await vi.waitFor(() => expect(tracesOf(place)).toEqual([]), 10_000);
  });

  it("one that was let go runs on, although the runtime still says that it waits", async () => {
    using place = makeTestPlace();
    const agent = await openTestRuntime(place);
    await agent.adopt();
    for (const id of ["gone", "waits"]) await agent.create(testRequest(place, id));
    await agent.start("gone");
    await agent[Symbol.asyncDispose]();
    const [pid] = pidsOf(place, "gone");
    // As when the agent was killed between the byte and the end of the fifo.
    execFileSync("mkfifo", [join(place.runDir, "oci/gone/exec.fifo")]);

    await using runtime = await openTestRuntime(place);
    expect(await runtime.adopt()).toMatchObject([{ id: "gone", state: "running", pid }]);
    expect(pidsOf(place, "gone")).toEqual([pid]);
    expect(pidsOf(place, "waits")).toEqual([]);
    await deleteAll(runtime);
    await vi.waitFor(() => expect(tracesOf(place)).toEqual([]), 10_000);
  });

  it("one that was to be let go, and was not yet, is let go", async () => {
    using place = makeTestPlace();
    const agent = await openTestRuntime(place);
    await agent.adopt();
    await agent.create(testRequest(place, "next"));
    await agent[Symbol.asyncDispose]();
    const [waiting] = pidsOf(place, "next");
    writeFileSync(join(place.runDir, "containers/next/let-go"), "");

    await using runtime = await openTestRuntime(place);
    const adopted = await runtime.adopt();
    // With runc it was never asked to start, and is made again by whoever wants it.
    const runs = adopted.length > 0;
    expect(adopted).toMatchObject(runs ? [{ id: "next", state: "running", pid: waiting }] : []);
    await vi.waitFor(() => {
      expect(pidsOf(place, "next")).toEqual(runs ? [waiting] : []);
    }, 10_000);
    await deleteAll(runtime);
    await vi.waitFor(() => expect(tracesOf(place)).toEqual([]), 10_000);
  });

  it("containers of an earlier boot have ended, whatever has their pids now", async () => {
    using place = makeTestPlace();
    const agent = await openTestRuntime(place);
    await agent.adopt();
    await agent.create(testRequest(place, "old"));
    await agent.start("old");
    const path = join(place.runDir, "containers/old/process.json");
    const record = readFileSync(path, "utf8");
    await agent.delete("old");
    await agent[Symbol.asyncDispose]();
    // As after a reboot with a run directory that is no tmpfs: the bundle is there, and the pid is another's.
    const { mkdirSync } = await import("node:fs");
    rmSync(place.runDir, { recursive: true });
    mkdirSync(join(place.runDir, "containers/old"), { recursive: true });
    writeFileSync(
      path,
      record.replace(/"bootId":"[^"]*"/, '"bootId":"earlier"').replaceAll(/"pid":\d+/g, `"pid":${process.pid}`),
    );

    await using runtime = await openTestRuntime(place);
    expect(await runtime.adopt()).toMatchObject([{ id: "old", state: "exited", exit: { exitCode: -1 } }]);
    await runtime.delete("old");
    await vi.waitFor(() => expect(tracesOf(place)).toEqual([]), 10_000);
  });
});

async function exitFile(place: TestPlace, id: string): Promise<string> {
  for (;;) {
    try {
      return readFileSync(join(place.runDir, "exits", id), "utf8");
    } catch {
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}
