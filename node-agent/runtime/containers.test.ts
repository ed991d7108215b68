import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { makeTestPlace, openTestRuntime, pidsOf, type TestPlace, testRequest, tracesOf } from "./testing/host.ts";
import type { ContainerExit, CreateRequest, ExecRequest, Runtime } from "./types.ts";

const root = process.getuid?.() === 0;
if (!root) console.warn("runtime/containers.test.ts is skipped: containers need root");

const execRequest = (script: string, more: Partial<ExecRequest> = {}): ExecRequest => ({
  command: ["sh", "-c", script],
  tty: false,
  environment: {},
  user: "",
  workingDir: "",
  ...more,
});

describe.runIf(root)("containers", () => {
  let place: TestPlace & Disposable;
  let runtime: Runtime;
  const exits = new Map<string, ContainerExit>();
  const waiting = new Map<string, (exit: ContainerExit) => void>();
  let count = 0;

  beforeAll(async () => {
    place = makeTestPlace();
    runtime = await openTestRuntime(place);
    await runtime.adopt();
    runtime.watchExits((exit) => {
      exits.set(exit.id, exit);
      waiting.get(exit.id)?.(exit);
    });
  });
  afterAll(async () => {
    for (const { id } of await runtime.list()) await runtime.delete(id);
    await runtime[Symbol.asyncDispose]();
    place[Symbol.dispose]();
  });

  const exitOf = async (id: string) =>
    await new Promise<ContainerExit>((resolve) => {
      waiting.set(id, resolve);
      const known = exits.get(id);
      if (known !== undefined) resolve(known);
    });
  // What a terminal gave at once is one entry: a line may come in parts (P), of which the last is full (F).
  const logOf = (id: string) => {
    const entries = [...readFileSync(runtime.logPath(id), "utf8").matchAll(/^\S+ (?:stdout|stderr) ([FP]) (.*\r?)$/gm)];
    const text = entries.map(([, kind, words]) => (kind === "F" ? `${words}\n` : words)).join("");
    return text.split("\n").filter((line) => line !== "");
  };

  async function begin(options: Parameters<typeof testRequest>[2] = {}): Promise<CreateRequest & { pid: number }> {
    count += 1;
    const request = testRequest(place, `c${count}`, options);
    const { pid } = await runtime.create(request);
    await runtime.start(request.id);
    return { ...request, pid };
  }
  /** Output lines of a script that ran in a container of its own. */
  async function outputOf(script: string, options: Parameters<typeof testRequest>[2] = {}): Promise<readonly string[]> {
    const { id } = await begin({ ...options, script });
    const exit = await exitOf(id);
    expect(exit, logOf(id).join("\n")).toMatchObject({ exitCode: 0 });
    await runtime.delete(id);
    return logOf(id);
  }

  it("was chosen by a container whose limits were in force", () => {
    // The first choice: runc instead would hide that crun does not work here.
    expect(runtime.probe.version).toMatch(/^crun \d/);
    expect(["v1", "hybrid", "v2"]).toContain(runtime.probe.cgroups);
    expect(tracesOf(place)).toEqual([]);
  });

  it.each(["crun", "runc"])("%s works where the run directory takes no devices, as /run of systemd", async (name) => {
    using other = makeTestPlace();
    mkdirSync(other.runDir);
    execFileSync("mount", ["-t", "tmpfs", "-o", "nosuid,nodev", "tmpfs", other.runDir]);
    try {
      await using chosen = await openTestRuntime(other, { runtime: name });
      expect(chosen.probe.version).toMatch(new RegExp(`^${name} `));
    } finally {
      execFileSync("umount", [other.runDir]);
    }
  });

  it.each([
    ["exit 0", 0],
    ["exit 7", 7],
    ["kill -KILL $$; sleep 9", 137],
    ["sh -c 'kill -SEGV $$'; exit $?", 139],
  ])("tells how %j ended", async (script, exitCode) => {
    // The shell is not process 1 of the container, whom its own signals would not reach.
    const { id } = await begin({ script: `sh -c '${script.replaceAll("'", "'\\''")}'; exit $?` });
    expect(await exitOf(id)).toMatchObject({ id, exitCode, oomKilled: false, message: "" });
    expect(await runtime.status(id)).toMatchObject({ state: "exited" });
    await runtime.delete(id);
    expect(await runtime.status(id)).toBeUndefined();
  });

  it("runs as the user asked for, with the groups the image gives him", async () => {
    expect(await outputOf("id -u; id -g; id -G; echo $HOME", { container: { user: "www", groupAdd: ["77"] } })).toEqual(
      ["33", "33", "33 44 77", "/www"],
    );
    await expect(runtime.create(testRequest(place, "bad", { container: { user: "nobody" } }))).rejects.toMatchObject({
      code: "invalid",
      subject: "task/bad",
      message: 'the image has no user "nobody" in /etc/passwd',
    });
  });

  it("has the default capabilities, a seccomp filter, no new privileges, and hides the host", async () => {
    const lines = await outputOf(
      "sed -n 's/^\\(CapBnd\\|CapInh\\|NoNewPrivs\\|Seccomp\\):.//p' /proc/self/status; cat /proc/keys | wc -c; touch /proc/sys/kernel/panic 2>&1 | wc -l; mount -t tmpfs x /tmp 2>&1 | wc -l",
    );
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, KILL 5, SETGID 6, SETUID 7, SETPCAP 8, NET_BIND_SERVICE 10, SYS_CHROOT 18, SETFCAP 31
    expect(lines).toEqual(["0000000000000000", "00000000800405fb", "1", "2", "0", "1", "1"]);
  });

  it("has namespaces of its own and the network namespace given", async () => {
    const lines = await outputOf(
      "hostname; echo $$; ls /sys/class/net; cat /etc/hostname; cat /etc/hosts /etc/resolv.conf",
      {
        name: "shop_web.1",
        address: "10.96.0.2",
        hosts: [{ address: "10.0.0.1", names: ["db"] }],
        resolver: { nameservers: ["169.254.42.1"], search: [], options: ["ndots:0"] },
      },
    );
    expect(lines).toEqual([
      "shop-web-1",
      "1",
      "lo",
      "shop-web-1",
      "127.0.0.1\tlocalhost",
      "::1\tlocalhost ip6-localhost ip6-loopback",
      "10.96.0.2\tshop-web-1",
      "10.0.0.1\tdb",
      "nameserver 169.254.42.1",
      "options ndots:0",
    ]);
  });

  it("lets every user ping and bind low ports, by sysctls", async () => {
    const files =
      "/proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/core/somaxconn";
    expect(await outputOf(`cat ${files}`, { container: { sysctls: { "net.core.somaxconn": "99" } } })).toEqual([
      "0\t2147483647",
      "0",
      "99",
    ]);
  });

  it("mounts volumes, tmpfs, shared memory and single files, and keeps read-only what is meant to be", async () => {
    const volume = join(place.folder, "volume");
    mkdirSync(volume, { recursive: true });
    const secret = join(place.folder, "secret");
    writeFileSync(secret, "hush\n");
    const lines = await outputOf(
      "echo kept > /data/file; cat /run/secret; touch /run/secret 2>/dev/null || echo ro; touch /new 2>/dev/null || echo ro; touch /scratch/a && echo rw; sed -n 's/.* \\/dev\\/shm tmpfs .*size=\\([0-9k]*\\).*/\\1/p' /proc/mounts",
      {
        container: { readOnly: true, shmBytes: 1024 * 1024 },
        mounts: [
          { type: "bind", source: volume, target: "/data", readOnly: false },
          { type: "bind", source: secret, target: "/run/secret", readOnly: true },
          { type: "tmpfs", target: "/scratch", readOnly: false, sizeBytes: 4096, mode: 0 },
        ],
      },
    );
    expect(lines).toEqual(["hush", "ro", "ro", "rw", "1024k"]);
    expect(readFileSync(join(volume, "file"), "utf8")).toBe("kept\n");
  });

  it("puts an init before the program", async () => {
    expect(await outputOf("echo $$; cat /proc/1/comm", { container: { init: true } })).toEqual(
      ["7", "init"].map((line, index) => (index === 0 ? expect.stringMatching(/^[2-9]$/) : line)),
    );
  });

  it("gives a terminal, and an open standard input that does not end", async () => {
    expect((await outputOf("tty; stty size", { container: { tty: true } }))[0]).toMatch(/^\/dev\/pts\/0/);
    const { id, pid } = await begin({ script: "cat; echo ended", container: { stdinOpen: true } });
    expect(pidsOf(place, id)).toContain(pid);
    expect(logOf(id)).toEqual([]);
    await runtime.delete(id);
  });

  it("keeps within its memory and says when it was killed for it", async () => {
    const resources = {
      limits: { milliCpus: 0, memoryBytes: 16 * 1024 * 1024, pids: 0, generic: {} },
      reservations: undefined,
    };
    const script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=64 2>/dev/null; exit 3";
    const { id } = await begin({ script, resources, container: { shmBytes: 1024 ** 3 } });
    const exit = await exitOf(id);
    expect(exit).toMatchObject({ oomKilled: true, exitCode: 3 });
  });

  it("keeps within its number of processes", async () => {
    const resources = { limits: { milliCpus: 0, memoryBytes: 0, pids: 5, generic: {} }, reservations: undefined };
    const lines = await outputOf("for i in 1 2 3 4 5 6 7 8 9; do (sleep 1000 &) 2>&1; done; exit 0", {
      resources,
    }).catch(() => ["can't fork"]);
    expect(lines.join("\n")).toContain("can't fork");
  });

  it("stops on a signal, real-time ones too, and ignores the dead and the unknown", async () => {
    const { id } = await begin({
      script: "trap 'exit 5' TERM; trap 'echo rt' 37; echo up; while :; do sleep 0.01; done",
    });
    while (!logOf(id).includes("up")) await new Promise((resolve) => setImmediate(resolve));
    await runtime.kill(id, "SIGRTMIN+3");
    while (!logOf(id).includes("rt")) await new Promise((resolve) => setImmediate(resolve));
    await runtime.kill(id, "TERM");
    expect(await exitOf(id)).toMatchObject({ exitCode: 5 });
    await runtime.kill(id, "SIGKILL");
    await runtime.kill("unknown", "SIGKILL");
    await expect(runtime.kill(id, "SIGNOPE")).rejects.toMatchObject({ code: "invalid" });
  });

  it.each([
    [
      "a program that is not there",
      { container: { commandSet: true, command: ["nope"] } },
      /executable file not found|not found in \$PATH/,
    ],
    [
      "a mount without a source",
      { mounts: [{ type: "bind", source: "/proc/nope", target: "/x", readOnly: true }] },
      /no such file|nope/i,
    ],
    ["a network namespace that is not there", { netnsPath: "/run/netns/embassy-nope" }, /nope|no such file/i],
  ] as const)("refuses %s with the runtime's words and leaves nothing", async (_, options, words) => {
    await expect(
      runtime.create(testRequest(place, "bad", options as Parameters<typeof testRequest>[2])),
    ).rejects.toMatchObject({
      subject: "task/bad",
      message: expect.stringMatching(words),
    });
    expect(tracesOf(place).filter((trace) => trace.includes("bad"))).toEqual([]);
  });

  it("refuses an id that exists, and takes it again after its deletion", async () => {
    const request = await begin();
    await expect(runtime.create(request)).rejects.toMatchObject({ code: "conflict" });
    await runtime.delete(request.id);
    await runtime.create(request);
    await runtime.delete(request.id);
  });

  it("ends a container whose monitor was killed, with an unknown exit code", async () => {
    const { id, pid } = await begin();
    const record = JSON.parse(readFileSync(join(place.runDir, "containers", id, "process.json"), "utf8")) as {
      conmon: { pid: number };
    };
    process.kill(record.conmon.pid, "SIGKILL");
    expect(await exitOf(id)).toMatchObject({ exitCode: -1, message: expect.stringContaining("monitor") });
    expect(pidsOf(place, id)).not.toContain(pid);
    await runtime.delete(id);
    expect(tracesOf(place).filter((trace) => trace.includes(`/${id}`))).toEqual([]);
  });

  it("begins a new log after the old one was renamed", async () => {
    const { id } = await begin({ script: "trap 'echo two' USR1; echo one; while :; do sleep 0.01; done" });
    while (!logOf(id).includes("one")) await new Promise((resolve) => setImmediate(resolve));
    renameSync(runtime.logPath(id), `${runtime.logPath(id)}.1`);
    await runtime.reopenLog(id);
    // The monitor is only asked: what is said before it has begun the new one belongs to the old one.
    while (!existsSync(runtime.logPath(id))) await new Promise((resolve) => setImmediate(resolve));
    await runtime.kill(id, "USR1");
    for (;;) {
      const lines = await Promise.resolve()
        .then(() => logOf(id))
        .catch((): string[] => []);
      if (lines.includes("two")) break;
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(logOf(id)).toEqual(["two"]);
    await runtime.delete(id);
  });

  describe("exec", () => {
    it("runs a command with input, both outputs and its exit code", async () => {
      const { id } = await begin();
      const session = await runtime.exec(
        id,
        execRequest("cat; echo $A $HOME; pwd; id -u; echo err >&2; exit 7", {
          environment: { A: "1" },
          user: "www",
          workingDir: "/tmp",
        }),
      );
      session.stdin.end("in\n");
      const [out, err, exit] = await Promise.all([text(session.stdout), text(session.stderr), session.exit]);
      expect([out, err]).toEqual(["in\n1 /www\n/tmp\n33\n", "err\n"]);
      expect(exit).toEqual({ exitCode: 7, message: "" });
      await runtime.delete(id);
      await expect(runtime.exec(id, execRequest("true"))).rejects.toMatchObject({ code: "not-found" });
    });

    it("has a terminal of the size it is told", async () => {
      const { id } = await begin();
      const session = await runtime.exec(
        id,
        // With crun the terminal has its size an instant after the command has begun.
        execRequest(
          "tty; until stty size 2>/dev/null; do :; done; trap 'stty size; exit 3' WINCH; echo up; while :; do sleep 0.01; done",
          {
            tty: true,
            size: { rows: 11, columns: 22 },
          },
        ),
      );
      let out = "";
      session.stdout.on("data", (chunk: Buffer) => {
        if (!out.includes("up") && (out + chunk.toString()).includes("up")) session.resize(33, 44).catch(() => {});
        out += chunk.toString();
      });
      expect(await session.exit).toEqual({ exitCode: 3, message: "" });
      expect(out.split("\r\n")).toEqual([expect.stringMatching(/^\/dev\//), "11 22", "up", "33 44", ""]);
      await runtime.delete(id);
    });

    it.each([
      [["nope"], 127],
      [["/etc"], 126],
    ])("says why %j does not start", async (command, exitCode) => {
      const { id } = await begin();
      const session = await runtime.exec(id, execRequest("", { command }));
      session.stdout.resume();
      session.stderr.resume();
      expect(await session.exit).toMatchObject({
        exitCode,
        message: expect.stringMatching(/not found|not permitted|permission denied|is a directory/i),
      });
      await runtime.delete(id);
    });

    it("ends the command when it is killed or not wanted any more, and not the container", async () => {
      const { id, pid } = await begin();
      const stop = new AbortController();
      for (const [end, signal] of [
        [(session: { kill(): void }) => session.kill(), undefined],
        [() => stop.abort(), stop.signal],
      ] as const) {
        const session = await runtime.exec(id, execRequest("echo up; sleep 1000"), signal);
        session.stderr.resume();
        session.stdout.once("data", () => end(session));
        expect(await session.exit).toEqual({ exitCode: 137, message: "" });
      }
      expect(pidsOf(place, id)).toEqual([pid]);
      await runtime.delete(id);
    });
  });

  it("leaves no trace but logs", async () => {
    for (const { id } of await runtime.list()) await runtime.delete(id);
    // A monitor that was told to go takes a moment.
    await vi.waitFor(() => expect(tracesOf(place)).toEqual([]), 10_000);
  });
});
