import { beforeAll, describe, expect, it } from "vitest";
import { systemClock } from "../../lib/clock/clock.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { readCertificate } from "../../lib/pki/certificate.ts";
import { Assignment } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { NodeDescription, TaskState, TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import { Dispatcher, Mailbox } from "../testing/dispatcher.ts";
import { keepCertificate } from "./renewal.ts";
import { Session, type SessionDeps } from "./session.ts";

let authority: Authority;
let manager: TlsIdentity;
let node: TlsIdentity;
beforeAll(async () => {
  const { certificate, key } = await createAuthority("test", Date.now());
  authority = await Authority.load(certificate, key);
  manager = await authority.issue({ commonName: "m1", role: "manager", nowMs: Date.now() });
  node = await authority.issue({ commonName: "aaaaaaaaaaaa", role: "node", nowMs: Date.now() });
});

const status = (taskId: string, sequence: number) =>
  TaskStatus.create({ taskId, sequence, state: TaskState.TASK_STATE_RUNNING });

/** Runs a session until it is disposed of. */
function start(
  overrides: Partial<SessionDeps> & Pick<SessionDeps, "managers">,
): AsyncDisposable & { readonly session: Session } {
  const session = new Session({
    log: silentLog,
    clock: systemClock,
    chance: { random: () => 0 },
    nodeId: "aaaaaaaaaaaa",
    identity: () => node,
    describe: async () => await Promise.resolve(NodeDescription.create({ hostname: "h" })),
    statuses: () => [],
    images: async () => await Promise.reject(new Error("there is no store")),
    problems: () => ({ networkProblem: "", diskProblem: "" }),
    assign: async () => await Promise.resolve(),
    managersChanged: async () => await Promise.resolve(),
    ...overrides,
  });
  const stop = new AbortController();
  const running = session.run(stop.signal);
  return {
    session,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
      expect(session.state.kind).toBe("stopped");
    },
  };
}

describe("Session", () => {
  it("says who it is and everything it holds, and takes assignments in order", async () => {
    await using control = await new Dispatcher(authority, manager).listen();
    const taken = new Mailbox<string>();
    const slow = Promise.withResolvers<void>();
    await using _ = start({
      managers: () => [`127.0.0.1:${control.port}`],
      statuses: () => [status("taskaaaaaaaa", 7)],
      assign: async ({ revision, complete, set }) => {
        if (revision === 1) await slow.promise;
        taken.put(`${revision} ${complete} ${set.map(({ taskId }) => taskId).join()}`);
      },
    });
    const { stream, hello, peer } = await control.welcome();
    expect(peer).toBe("aaaaaaaaaaaa");
    expect(hello.description?.hostname).toBe("h");
    expect(hello.tasks).toEqual([status("taskaaaaaaaa", 7)]);
    const assign = (revision: number, complete: boolean, taskId: string) =>
      stream.write({
        message: {
          $case: "assignments",
          value: { revision, complete, set: [Assignment.create({ taskId })], remove: [] },
        },
      });
    assign(1, true, "a");
    assign(2, false, "b");
    slow.resolve();
    expect(await taken.next()).toBe("1 true a");
    expect(await taken.next()).toBe("2 false b");
  });

  it("sends the newest status of each task, and none that is older than one sent before", async () => {
    await using control = await new Dispatcher(authority, manager).listen();
    await using node = start({ managers: () => [`127.0.0.1:${control.port}`] });
    const { said } = await control.welcome();
    node.session.report(status("a", 2));
    node.session.report(status("b", 3));
    node.session.report(status("a", 4));
    node.session.report(status("a", 1));
    const batch = await said.next();
    expect(batch.message?.value).toEqual({ statuses: [status("a", 4), status("b", 3)] });
  });

  it("does not say again what the hello has said", async () => {
    await using control = await new Dispatcher(authority, manager).listen();
    await using node = start({ managers: () => [`127.0.0.1:${control.port}`], statuses: () => [status("a", 1)] });
    node.session.report(status("a", 1));
    const { said, hello } = await control.welcome();
    expect(hello.tasks).toEqual([status("a", 1)]);
    node.session.report(status("b", 2));
    expect((await said.next()).message?.value).toEqual({ statuses: [status("b", 2)] });
  });

  it("beats", async () => {
    await using control = await new Dispatcher(authority, manager).listen();
    await using _ = start({ managers: () => [`127.0.0.1:${control.port}`] });
    const { said } = await control.welcome(50);
    for (let n = 0; n < 3; n++) expect((await said.next()).message?.$case).toBe("heartbeat");
  });

  it("tells which images the node holds when a session has begun", async () => {
    await using control = await new Dispatcher(authority, manager).listen();
    let held: number[] = [];
    await using _ = start({
      managers: () => [`127.0.0.1:${control.port}`],
      images: async () => await Promise.resolve(held),
    });
    const first = await control.welcome();
    expect((await first.said.next()).message).toEqual({ $case: "images", value: { images: [] } });
    held = [3, 4_000_000_000];
    first.stream.end();
    const second = await control.welcome();
    expect((await second.said.next()).message).toEqual({ $case: "images", value: { images: held } });
  });

  it("comes back when it is cut off, with everything, and what happened in the meantime", async () => {
    await using control = await new Dispatcher(authority, manager).listen();
    const held: TaskStatus[] = [];
    await using node = start({ managers: () => [`127.0.0.1:${control.port}`], statuses: () => held });
    const first = await control.welcome();
    first.stream.end();
    held.push(status("a", 1));
    node.session.report(status("a", 1));
    const second = await control.welcome();
    expect(second.hello.tasks).toEqual([status("a", 1)]);
    // In the hello already: only what is newer follows.
    node.session.report(status("a", 2));
    expect((await second.said.next()).message?.value).toEqual({ statuses: [status("a", 2)] });
  });

  it("goes to another member when one is away, and back to none that shows no manager's certificate", async () => {
    const away = await new Dispatcher(authority, manager).listen();
    await away[Symbol.asyncDispose]();
    await using impostor = await new Dispatcher(authority, node).listen();
    await using control = await new Dispatcher(authority, manager).listen();
    await using agent = start({
      managers: () => [away.port, impostor.port, control.port].map((port) => `127.0.0.1:${port}`),
    });
    await control.welcome();
    expect(agent.session.state).toMatchObject({ turn: 2 });
  });

  it("opens a new stream when an assignment cannot be taken, to be told again", async () => {
    await using control = await new Dispatcher(authority, manager).listen();
    let failures = 1;
    const taken = new Mailbox<number>();
    await using _ = start({
      managers: () => [`127.0.0.1:${control.port}`],
      assign: async ({ revision }) => {
        await Promise.resolve();
        if (failures-- > 0) throw new Error("disk full");
        taken.put(revision);
      },
    });
    for (let n = 0; n < 2; n++) {
      const { stream } = await control.welcome();
      stream.write({
        message: { $case: "assignments", value: { revision: 5, complete: true, set: [], remove: [] } },
      });
    }
    expect(await taken.next()).toBe(5);
  });
});

describe("keepCertificate", () => {
  it("renews at two thirds of its life, with the key it has, by the first manager that answers", async () => {
    await using control = await new Dispatcher(authority, manager).listen();
    const away = await new Dispatcher(authority, manager).listen();
    await away[Symbol.asyncDispose]();
    // 90 days of which 61 are over.
    const old = await authority.issue({
      commonName: "aaaaaaaaaaaa",
      role: "node",
      nowMs: Date.now() - 61 * 24 * 3_600_000,
    });
    const stop = new AbortController();
    const renewed = new Mailbox<TlsIdentity>();
    let identity = old;
    const deps = {
      log: silentLog,
      clock: systemClock,
      managers: () => [`127.0.0.1:${away.port}`, `127.0.0.1:${control.port}`],
      identity: () => identity,
      replace: async (next: TlsIdentity) => {
        identity = next;
        renewed.put(next);
        await Promise.resolve();
      },
    };
    const running = keepCertificate(deps, stop.signal);
    const next = await renewed.next();
    stop.abort();
    await running;
    expect(next.key.equals(old.key)).toBe(true);
    expect(readCertificate(next.certificate).notAfterMs).toBeGreaterThan(readCertificate(old.certificate).notAfterMs);
  });
});
