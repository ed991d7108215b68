import type { ClientDuplexStream } from "@grpc/grpc-js";
import type { Clock } from "../../lib/clock/clock.ts";
import { messageOf } from "../../lib/errors/errors.ts";
import { channelOptions, clientCredentials } from "../../lib/grpc/client.ts";
import { errorOf } from "../../lib/grpc/status.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import type { Log } from "../../lib/log/log.ts";
import { isRemovedNode } from "../../lib/membership/removed.ts";
import {
  type Assignments,
  DispatcherClient,
  type Heartbeat,
  type SessionDown,
  type SessionUp,
} from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { NodeDescription, TaskStatus } from "../../proto/gen/embassy/v1/state.ts";
import {
  type Chance,
  defaultHeartbeatMs,
  heartbeatDelayMs,
  managerOf,
  nextState,
  type SessionEvent,
  type SessionState,
} from "./machine.ts";
import { Outbox } from "./outbox.ts";

export interface SessionDeps {
  readonly log: Log;
  readonly clock: Clock;
  readonly chance: Chance;
  readonly nodeId: string;
  /** host:port of each control-plane member; never empty. */
  readonly managers: () => readonly string[];
  /** Keeps the control plane's word on who its members are. */
  readonly managersChanged: (addresses: readonly string[]) => Promise<void>;
  /** Asked for each connection: it may have been renewed. */
  readonly identity: () => TlsIdentity;
  readonly describe: () => Promise<NodeDescription>;
  /** The newest status of everything the node holds. */
  readonly statuses: () => readonly TaskStatus[];
  /** What is wrong with the node, for the next heartbeat. */
  readonly problems: () => Heartbeat;
  /** See `NodeStatus.images`. Asked when a session has begun and every minute. */
  readonly images: () => Promise<readonly number[]>;
  /** Takes what the node is told to hold. Called in the order of arrival, one at a time; a rejection ends the stream. */
  readonly assign: (assignments: Assignments) => Promise<void>;
}

// A member that accepts connections and says nothing is passed over. Long enough for one that has many to greet.
const welcomeTimeoutMs = 10_000;
// Statuses of one burst travel together.
const batchDelayMs = 5;
const batchSize = 500;
// A stack that brings several images is one message, and many nodes that pull the same do not tell it all at once.
const imagesIntervalMs = 60_000;
// A member that has vanished is noticed well before a second lease runs out.
const sessionChannel = { ...channelOptions, "grpc.keepalive_time_ms": 3_000, "grpc.keepalive_timeout_ms": 2_000 };

type Stream = ClientDuplexStream<SessionUp, SessionDown>;

/**
 * Keeps one session with the control plane: says everything the node holds, then what changes; takes assignments; sends
 * heartbeats. Lost, it is opened again, with another member if need be, until the signal is aborted.
 */
export class Session {
  readonly #deps: SessionDeps;
  readonly #outbox = new Outbox();
  #state: SessionState;
  #sender: Sender | undefined;

  constructor(deps: SessionDeps) {
    this.#deps = deps;
    // Nodes spread over the members from their first attempt on.
    const turn = Math.floor(deps.chance.random() * deps.managers().length);
    this.#state = { kind: "waiting", turn, failures: 0, forMs: 0 };
  }

  get state(): SessionState {
    return this.#state;
  }

  /** Has it sent soon, if there is a session; a new session sends everything in any case. */
  report(status: TaskStatus): void {
    this.#outbox.put(status);
    this.#sender?.wake();
  }

  /**
   * Resolves when the signal is aborted and the stream is closed; or, in the state "removed", when the control plane has said
   * that the node was removed: everything that it assigned before is taken by then.
   */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const state = this.#state;
      if (state.kind === "waiting") {
        await this.#deps.clock.sleep(state.forMs, signal).catch(() => undefined);
        this.#transition({ kind: "waited" }, "time to connect");
      } else if (state.kind === "connecting") {
        const { why, removed } = await this.#connect(managerOf(state.turn, this.#deps.managers()), signal);
        this.#transition(removed ? { kind: "removed" } : { kind: "lost", why }, why);
      } else break;
    }
    this.#transition({ kind: "stop" }, "noded stops");
  }

  #transition(event: SessionEvent, why: string): void {
    const before = this.#state;
    const after = nextState(before, event, this.#deps.chance);
    if (after === before || after.kind === before.kind) return;
    this.#state = after;
    const manager = "turn" in after ? managerOf(after.turn, this.#deps.managers()) : undefined;
    const fields = { from: before.kind, to: after.kind, why, manager };
    // The first failure and every tenth: an absent control plane must not fill the log.
    const quiet = "failures" in after && after.failures % 10 > 1;
    if (quiet || after.kind === "connecting") this.#deps.log.debug("session", fields);
    else if (event.kind === "lost") this.#deps.log.warn("session", fields);
    else this.#deps.log.info("session", fields);
  }

  #intervalMs(): number {
    return this.#state.kind === "established" ? this.#state.heartbeatIntervalMs : defaultHeartbeatMs;
  }

  /** One stream from connect to end. Resolves with why it ended; never rejects. */
  async #connect(manager: string, signal: AbortSignal): Promise<{ readonly why: string; readonly removed: boolean }> {
    let client: DispatcherClient | undefined;
    let removed = false;
    const work = new AbortController();
    const stop = () => work.abort("noded stops");
    signal.addEventListener("abort", stop, { once: true });
    try {
      const description = await this.#deps.describe();
      client = new DispatcherClient(manager, clientCredentials(this.#deps.identity()), sessionChannel);
      const stream = client.session();
      const fail = (why: string) => work.abort(why);
      const welcome = setTimeout(() => fail(`no welcome within ${welcomeTimeoutMs} ms`), welcomeTimeoutMs);
      try {
        stream.on("error", (caught) => {
          const error = errorOf(caught);
          // By a manager of this cluster, which its certificate shows. Not once noded stops: the next one is told again.
          removed = isRemovedNode(error, this.#deps.nodeId) && !work.signal.aborted;
          fail(messageOf(error));
        });
        stream.on("end", () => fail("the control plane closed the session"));
        const received = new Inbox<SessionDown>(async (message) => {
          if (message.message?.$case === "welcome") {
            clearTimeout(welcome);
            const { sessionId, heartbeatIntervalMs } = message.message.value;
            this.#transition({ kind: "welcomed", sessionId, heartbeatIntervalMs }, "welcome");
            this.#sender ??= new Sender(stream, this.#outbox, this.#deps, () =>
              heartbeatDelayMs(this.#intervalMs(), this.#deps.chance),
            );
          } else if (message.message?.$case === "assignments") {
            await this.#deps.assign(message.message.value);
          } else if (message.message?.$case === "managers") {
            await this.#deps.managersChanged(message.message.value.addresses);
          }
        }, fail);
        stream.on("data", (message: SessionDown) => received.put(message));
        // Everything the node holds is in the hello; what changes from now on goes to the outbox.
        this.#outbox.clear();
        stream.write({
          message: { $case: "hello", value: { description, tasks: [...this.#deps.statuses()] } },
        });
        await aborted(work.signal);
        if (removed) await received.idle();
      } finally {
        clearTimeout(welcome);
        stream.cancel();
      }
    } catch (error) {
      work.abort(messageOf(error));
    } finally {
      signal.removeEventListener("abort", stop);
      this.#sender?.[Symbol.dispose]();
      this.#sender = undefined;
      client?.close();
    }
    return { why: String(work.signal.reason), removed };
  }
}

/** Sends statuses in batches, heartbeats, and which images the node holds, over one stream until it is disposed of. */
class Sender implements Disposable {
  readonly #stream: Stream;
  readonly #outbox: Outbox;
  #batch: NodeJS.Timeout | undefined;
  #beat: NodeJS.Timeout | undefined;
  #images: NodeJS.Timeout | undefined;
  #toldImages: string | undefined;
  #disposed = false;
  #blocked = false;

  constructor(
    stream: Stream,
    outbox: Outbox,
    { problems, images, log }: Pick<SessionDeps, "problems" | "images" | "log">,
    nextBeatMs: () => number,
  ) {
    this.#stream = stream;
    this.#outbox = outbox;
    stream.on("drain", () => {
      this.#blocked = false;
      this.wake();
    });
    const beat = () => {
      stream.write({ message: { $case: "heartbeat", value: problems() } });
      this.#beat = setTimeout(beat, nextBeatMs());
    };
    this.#beat = setTimeout(beat, nextBeatMs());
    void this.#tellImages(images, log);
    this.wake();
  }

  /** The outbox may have something. */
  wake(): void {
    if (this.#outbox.size === 0 || this.#blocked || this.#batch !== undefined) return;
    this.#batch = setTimeout(() => {
      this.#batch = undefined;
      const statuses = this.#outbox.take(batchSize);
      if (statuses.length > 0)
        this.#blocked = !this.#stream.write({ message: { $case: "statuses", value: { statuses } } });
      this.wake();
    }, batchDelayMs);
  }

  /** Once now, whatever they are, and then what differs. */
  async #tellImages(read: SessionDeps["images"], log: Log): Promise<void> {
    try {
      const images = [...(await read())];
      if (this.#disposed) return;
      if (images.join() !== this.#toldImages) this.#stream.write({ message: { $case: "images", value: { images } } });
      this.#toldImages = images.join();
    } catch (error) {
      log.debug("cannot tell the images now", { error });
    }
    if (!this.#disposed) this.#images = setTimeout(() => void this.#tellImages(read, log), imagesIntervalMs);
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    clearTimeout(this.#images);
    clearTimeout(this.#batch);
    clearTimeout(this.#beat);
    this.#blocked = true;
  }
}

/** Handles messages one after the other, in order. */
class Inbox<T> {
  readonly #handle: (message: T) => Promise<void>;
  readonly #fail: (why: string) => void;
  #last: Promise<void> = Promise.resolve();

  constructor(handle: (message: T) => Promise<void>, fail: (why: string) => void) {
    this.#handle = handle;
    this.#fail = fail;
  }

  put(message: T): void {
    this.#last = this.#last
      .then(() => this.#handle(message))
      .catch((error: unknown) => this.#fail(`an assignment could not be taken: ${messageOf(error)}`));
  }

  /** Resolves once what has come so far is handled. */
  async idle(): Promise<void> {
    await this.#last;
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}
