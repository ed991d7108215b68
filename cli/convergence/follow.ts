import { setTimeout as delay } from "node:timers/promises";
import type { ClientReadableStream } from "@grpc/grpc-js";
import { ClusterError, hasCode } from "../../lib/errors/errors.ts";
import { errorOf } from "../../lib/grpc/status.ts";
import type { ClusterClient, ServiceProgress, StackProgress } from "../../proto/gen/embassy/v1/api.ts";
import { UpdateState } from "../../proto/gen/embassy/v1/state.ts";
import { CommandFailure, exitCodes } from "../exit.ts";
import { formatSeconds } from "../render/format.ts";
import { Progress } from "../render/progress.ts";
import { oneLine, type Screen } from "../render/style.ts";
import { messages } from "../stream.ts";
import { nextOf } from "../update-words.ts";
import { type Failure, heldBy, isSettled, judge, problemOf, shortName, waitOf } from "./judge.ts";

export interface FollowOptions {
  readonly stack: string;
  /** The stack's revision that is waited for: below it again, the stack was removed. Not given: it is to go. */
  readonly revision?: number;
  /** Resolves when this holds. */
  readonly until: (progress: StackProgress) => boolean;
  /** Services that are shown and judged; default all. */
  readonly concerns?: (service: string) => boolean;
  /** Is this state from after the change? Others say nothing. Default: always. */
  readonly isCurrent?: (progress: StackProgress) => boolean;
  /** How long it must hold without a break; default 0. */
  readonly settleMs?: number;
  /** What a timeout says that has not come: "shop has not converged". */
  readonly late: string;
  readonly timeoutMs: number;
  /** Give up when a service fails for good; otherwise only the timeout ends it. */
  readonly judged: boolean;
  /** Do a service's old failures say nothing about this change? Those that gave up count once nothing else is under way. */
  readonly isUnchanged: (service: string) => boolean;
  /** What the user can do about a service that fails for good, besides looking at it and removing it. */
  readonly remedy?: string;
  /** A service that goes back to its version before ends it, with exit code 3. */
  readonly endsRolledBack?: boolean;
  readonly screen: Screen;
  readonly signal: AbortSignal;
}

/** When a service last made headway, and the failures it had before. */
interface History {
  readonly known: ReadonlySet<string>;
  /** Ids of tasks that fitted nowhere already: they still do, which is no thing of the past. */
  readonly unplaced: ReadonlySet<string>;
  /** Ids of tasks that have failed since. */
  readonly failed: Set<string>;
  /** The most there were. */
  running: number;
  old: number;
  headwayMs: number;
}

const reconnectMs = 300;
const lookMs = 100;
/** How long a manager may take to hear of a deploy or a removal that another has taken. */
const hearMs = 10_000;

/**
 * Follows a stack until it is as wanted, showing how each service goes. Lost connections are made again until the time
 * is over. Throws CommandFailure with exit code 2 when a service fails for good, 3 when one has gone back to what it was before and
 * 4 when the time is over, each with the causes; `conflict` when the stack was removed meanwhile, or one that is to go was deployed again.
 */
export async function follow(client: ClusterClient, options: FollowOptions): Promise<StackProgress> {
  const follower = new Follower(options);
  for (;;) {
    try {
      const done = await follower.attempt(client);
      if (done !== undefined) return done;
    } catch (error) {
      throw error instanceof GivenUp ? await withLastWords(client, error, options.signal) : error;
    }
    await delay(reconnectMs, undefined, { signal: options.signal }).catch(() => options.signal.throwIfAborted());
  }
}

/** A failure of services, before it is told. */
class GivenUp extends CommandFailure {
  readonly failures: readonly Failure[];

  constructor(failures: readonly Failure[], hint: string, exitCode: number = exitCodes.deployFailed) {
    super(failures.map(({ task, why }) => `${task} ${why}`).join("\n"), exitCode, { hint });
    this.failures = failures;
  }
}

/** The failure with what each task that ended wrote last: mostly that says why. */
async function withLastWords(client: ClusterClient, error: GivenUp, signal: AbortSignal): Promise<CommandFailure> {
  const told = await Promise.all(
    error.failures.map(async ({ task, taskId, kind, why }) => {
      const lines = kind === "failed" ? await lastWords(client, taskId, signal) : [];
      return [`${task} ${why}`, ...lines.map((line) => `  | ${oneLine(line)}`)].join("\n");
    }),
  );
  return new CommandFailure(told.join("\n"), error.exitCode, { hint: error.hint ?? "" });
}

const lastLines = 5;

async function lastWords(client: ClusterClient, taskId: string, signal: AbortSignal): Promise<string[]> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(2_000)]);
  const lines: string[] = [];
  try {
    const request = { target: taskId, follow: false, tail: lastLines, sinceMs: 0, resume: undefined };
    for await (const { chunks } of messages(client.logs(request), limit)) {
      for (const { line, warning } of chunks) if (warning === "") lines.push(Buffer.from(line).toString());
    }
  } catch {
    // The failure is told in any case; its log may be gone with its node.
  }
  return lines.slice(-lastLines);
}

class Follower {
  readonly #options: FollowOptions;
  readonly #progress: Progress;
  readonly #histories = new Map<string, History>();
  readonly #deadlineMs: number;
  #last: StackProgress | undefined;
  #holdsSinceMs: number | undefined;
  /** Has this stream shown the stack at the revision that is waited for, or gone? */
  #wasAsWanted = false;
  /** Since when it has been there although it is to go, or not though it is to be there. */
  #contrarySinceMs: number | undefined;

  constructor(options: FollowOptions) {
    this.#options = options;
    this.#progress = new Progress(options.screen);
    this.#deadlineMs = performance.now() + options.timeoutMs;
  }

  /** One stream. Resolves to the end state, or to undefined when the connection was lost. */
  async attempt(client: ClusterClient): Promise<StackProgress | undefined> {
    const { signal, stack } = this.#options;
    signal.throwIfAborted();
    // Another manager may answer this one, and know less.
    this.#wasAsWanted = false;
    const stream = client.watchStack({ stack });
    return await new Promise<StackProgress | undefined>((resolve, reject) => {
      const settle = (finish: () => void) => {
        clearInterval(timer);
        signal.removeEventListener("abort", stop);
        stream.removeAllListeners("data");
        cancel(stream);
        finish();
      };
      const guarded = (action: () => void) => {
        try {
          action();
        } catch (error) {
          settle(() => reject(error));
        }
      };
      const stop = () => settle(() => reject(signal.reason));
      const look = () => {
        if (this.#isDone()) settle(() => resolve(this.#last));
        else this.#check();
      };
      const timer = setInterval(() => guarded(look), lookMs);
      signal.addEventListener("abort", stop, { once: true });
      stream.on("data", (whole: StackProgress) => {
        guarded(() => {
          const { concerns = () => true, isCurrent = () => true } = this.#options;
          const progress = { ...whole, services: whole.services.filter(({ name }) => concerns(name)) };
          if (!isCurrent(progress)) return;
          this.#see(progress);
          if (this.#isDone()) settle(() => resolve(progress));
          else this.#check();
        });
      });
      stream.on("error", (error) => {
        const told = errorOf(error);
        if (hasCode(told, "unavailable") && this.#last !== undefined) settle(() => resolve(undefined));
        else settle(() => reject(told));
      });
      stream.on("end", () => settle(() => resolve(undefined)));
    });
  }

  #isDone(): boolean {
    const { settleMs = 0 } = this.#options;
    return this.#holdsSinceMs !== undefined && performance.now() - this.#holdsSinceMs >= settleMs;
  }

  #see(progress: StackProgress): void {
    this.#last = progress;
    const nowMs = performance.now();
    this.#seeRevision(progress, nowMs);
    this.#holdsSinceMs = this.#options.until(progress) ? (this.#holdsSinceMs ?? nowMs) : undefined;
    for (const service of progress.services) {
      const history = this.#histories.get(service.name);
      if (history === undefined) {
        const old = this.#options.isUnchanged(service.name) ? service.problems : [];
        const idsOf = (kinds: readonly (string | undefined)[]) =>
          new Set(old.filter((view) => kinds.includes(problemOf(view)?.kind)).map(({ task }) => task?.id ?? ""));
        this.#histories.set(service.name, {
          // One that only waits may still fail, and that would be news.
          known: idsOf(["rejected", "failed"]),
          unplaced: idsOf(["unplaced"]),
          failed: new Set(),
          running: service.running,
          old: service.old,
          headwayMs: nowMs,
        });
      } else {
        // A service that crashes and comes back over and over makes none.
        if (service.running > history.running || service.old < history.old) history.headwayMs = nowMs;
        history.running = Math.max(service.running, history.running);
        history.old = service.old;
      }
      const { known, failed } = this.#histories.get(service.name) ?? {};
      for (const view of service.problems) {
        const id = view.task?.id ?? "";
        if (known?.has(id) === false && problemOf(view)?.kind === "failed") failed?.add(id);
      }
    }
    this.#draw(progress);
  }

  /** Throws `conflict` when the stack was as wanted, there or gone, and is no more. */
  #seeRevision({ revision }: StackProgress, nowMs: number): void {
    const { revision: wanted } = this.#options;
    const isAsWanted = wanted === undefined ? revision === 0 : revision >= wanted;
    if (this.#wasAsWanted && !isAsWanted) throw this.#overtaken(revision);
    this.#wasAsWanted = isAsWanted;
    const isContrary = wanted === undefined ? revision > 0 : revision === 0;
    this.#contrarySinceMs = isContrary ? (this.#contrarySinceMs ?? nowMs) : undefined;
  }

  #overtaken(revision: number): ClusterError {
    this.#progress.done();
    const { stack } = this.#options;
    const [what, hint] =
      this.#options.revision === undefined
        ? [`was deployed again meanwhile (revision ${revision})`, "If it is to go, remove it again."]
        : ["was removed meanwhile", "If it is to run, deploy it again."];
    return new ClusterError(`stack ${stack} ${what}`, { code: "conflict", subject: `stack/${stack}`, hint });
  }

  #check(): void {
    const progress = this.#last;
    const nowMs = performance.now();
    if (this.#contrarySinceMs !== undefined && nowMs - this.#contrarySinceMs >= hearMs) {
      throw this.#overtaken(progress?.revision ?? 0);
    }
    if (progress !== undefined) this.#checkRolledBack(progress);
    if (progress !== undefined && this.#options.judged) {
      const failures = progress.services.flatMap((service) => {
        const history = this.#histories.get(service.name);
        if (history === undefined || isSettled(service)) return [];
        return judge(service, nowMs - history.headwayMs, history.known, history.failed.size) ?? [];
      });
      const failed = new Set(failures.map(({ service }) => service));
      const held = heldBy(progress.services, failed);
      const open = progress.services.filter(
        (service) => !isSettled(service) && !failed.has(service.name) && !held.has(service.name),
      );
      const isChanging = open.some(({ name }) => !this.#options.isUnchanged(name));
      const isNews = failures.some(({ service, taskId }) => {
        const { known, unplaced } = this.#histories.get(service) ?? {};
        return known?.has(taskId) !== true && !(isChanging && unplaced?.has(taskId) === true);
      });
      if (isNews || (failures.length > 0 && open.length === 0)) throw this.#failed(failures);
    }
    if (nowMs > this.#deadlineMs) throw this.#late(progress);
  }

  /** Throws when every service that goes back has gone. */
  #checkRolledBack({ revision, services }: StackProgress): void {
    const { endsRolledBack = false, revision: wanted = 0, stack } = this.#options;
    const back = services.filter(({ rollback }) => rollback !== undefined);
    const isOver = back.every(({ updateState }) => updateState === UpdateState.UPDATE_STATE_ROLLED_BACK);
    if (!endsRolledBack || revision !== wanted || back.length === 0 || !isOver) return;
    this.#progress.done();
    const failures = back.map(({ name, rollback }): Failure => {
      const why = `was rolled back: ${rollback?.why}`;
      return { service: name, task: name, taskId: rollback?.taskId ?? "", kind: "failed", why, triedAgain: false };
    });
    const names = back.map(({ name }) => name).join(", ");
    const hint = `${names} ${back.length === 1 ? "is" : "are"} again as before; the rest of ${stack} is as deployed. ${nextOf(UpdateState.UPDATE_STATE_ROLLED_BACK, stack)}`;
    throw new GivenUp(failures, hint, exitCodes.rolledBack);
  }

  #failed(failures: readonly Failure[]): GivenUp {
    this.#progress.done();
    const { stack, remedy = "Mend it and deploy again" } = this.#options;
    const [first] = failures;
    const logs = first === undefined ? "" : ` and \`clusterctl logs ${stack}_${first.service}\``;
    const gaveUp = failures.filter(({ triedAgain }) => !triedAgain).map(({ service }) => `${stack}_${service}`);
    const look = `\`clusterctl ps ${stack} -a\`${logs}`;
    const ofFailed = (this.#last?.services ?? []).filter(({ name }) =>
      failures.some(({ service }) => service === name),
    );
    const kept = ofFailed
      .filter(({ old }) => old > 0)
      .map(
        ({ name, old }) =>
          ` ${old} ${old === 1 ? "task" : "tasks"} of ${name} from before ${old === 1 ? "goes" : "go"} on.`,
      )
      .join("");
    const state = ofFailed.map(({ updateState }) => nextOf(updateState, stack)).find((words) => words !== "");
    if (state !== undefined && gaveUp.length === 0) {
      return new GivenUp(failures, `${state}${kept} Look at it with ${look}.`);
    }
    const next =
      gaveUp.length < failures.length
        ? "What failed is tried again by itself, as its restart policy says, and what waits for it goes on once it works."
        : `What gave up is not tried again until its service changes, or with \`clusterctl restart ${gaveUp.join(" ")}\`.`;
    const back = (this.#last?.revision ?? 0) > 1 ? `, go back with \`clusterctl rollback ${stack}\`` : "";
    return new GivenUp(
      failures,
      `What was declared stays so. ${next}${kept} ${remedy}${back}, look at it with ${look}, or remove it with \`clusterctl rm ${stack}\`.`,
    );
  }

  #late(progress: StackProgress | undefined): CommandFailure {
    this.#progress.done();
    const { timeoutMs, late } = this.#options;
    const left = (progress?.services ?? []).filter((service) => !isSettled(service)).map((s) => `\n${describe(s)}`);
    return new CommandFailure(`${late} within ${formatSeconds(timeoutMs)}${left.join("")}`, exitCodes.timeout, {
      hint: "The cluster goes on with it. Wait longer with --timeout, or see `clusterctl ps`.",
    });
  }

  #draw(progress: StackProgress): void {
    const width = Math.max(0, ...progress.services.map(({ name }) => name.length));
    const lines = progress.services.map((service): [string, string] => {
      const mark = isSettled(service) ? "✓" : "…";
      return [service.name, `${mark} ${describe(service, width)}`];
    });
    this.#progress.show(new Map(lines));
  }
}

/**
 * "migrate  1/1 completed", "web  1/3 updated, 2 from before", "web  2/3 running, 1 to stop; web.3 cannot be started
 * on host-2: ..."
 */
export function describe(service: ServiceProgress, width = 0): string {
  const { running, desired, completed, oldRunning } = service;
  const toStop = service.old - oldRunning;
  // Those serve until each is replaced.
  const before = oldRunning > 0 ? `, ${oldRunning} from before` : "";
  const old = toStop > 0 ? `${before}, ${toStop} to stop` : before;
  const done = completed > 0 && completed === running;
  const some = completed > 0 && !done ? `, ${completed} of them completed` : "";
  const isBack = service.rollback !== undefined;
  const verb = done ? "completed" : isBack ? "as before" : oldRunning > 0 ? "updated" : "running";
  const numbers = `${service.name.padEnd(width)}  ${running}/${desired} ${verb}${some}${old}`;
  // In the control plane's words: what is paused or goes back, and why.
  if (shownStates.has(service.updateState)) return `${numbers}; ${service.updateMessage}`;
  if (isSettled(service)) return numbers;
  const [problem] = service.problems;
  const told = problem === undefined ? undefined : (problemOf(problem)?.why ?? waitOf(problem));
  return told === undefined || problem === undefined ? numbers : `${numbers}; ${shortName(problem)} ${told}`;
}

const shownStates: ReadonlySet<UpdateState> = new Set([
  UpdateState.UPDATE_STATE_PAUSED,
  UpdateState.UPDATE_STATE_ROLLING_BACK,
  UpdateState.UPDATE_STATE_ROLLBACK_PAUSED,
  UpdateState.UPDATE_STATE_ROLLED_BACK,
]);

function cancel(stream: ClientReadableStream<unknown>): void {
  stream.on("error", () => {}); // Our own cancellation comes back as one.
  stream.cancel();
}

/** The error for a stack that is not there. */
export function noSuchStack(stack: string): ClusterError {
  return new ClusterError(`there is no stack ${stack}`, {
    code: "not-found",
    subject: `stack/${stack}`,
    hint: "`clusterctl stacks` lists those there are.",
  });
}
