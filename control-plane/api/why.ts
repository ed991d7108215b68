import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import { type NodeScore, type NodeVerdict, type WhyRequest, WhyResponse } from "../../proto/gen/embassy/v1/api.ts";
import type { NodeSpec, Service, Task } from "../../proto/gen/embassy/v1/state.ts";
import { unplacedWords } from "../controllers/scheduling/loop.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { taskView } from "../domain/progress.ts";
import { groupId, isGlobal, taskGroup } from "../domain/scheduler-facts.ts";
import { hasEnded, isLive, observedState, serviceFullName, taskName } from "../domain/tasks.ts";
import { boundOf } from "../domain/volumes.ts";
import type { Candidate, NodeVerdict as Decision, Reason } from "../scheduler/index.ts";
import { listTasks } from "./reads.ts";
import { resolveNode, resolveService, resolveTasks } from "./resolve.ts";
import { Scratch } from "./scratch.ts";

/** What a request names. */
interface Target {
  readonly service: Service;
  /** undefined: the service. */
  readonly task: Task | undefined;
}

/** Why a task or a service's tasks are where they are, or nowhere, as the leader's scheduler sees it. Throws `not-found` and `invalid`. */
export async function why(index: ClusterIndex, request: WhyRequest, nowMs: number): Promise<WhyResponse> {
  // A wrong name is told at once, and of what has ended no node is asked.
  const known = asked(index, request, nowMs);
  if (known.isOver) return known.response;
  using scratch = await Scratch.of(index);
  // The copy is newer.
  const { response, target, node, isOver } = asked(scratch.index, request, nowMs);
  return isOver ? response : { ...response, ...explained(scratch, target, node) };
}

interface Asked {
  readonly target: Target;
  readonly node: NodeSpec | undefined;
  readonly isOver: boolean;
  /** What is known without looking at nodes. */
  readonly response: WhyResponse;
}

function asked(index: ClusterIndex, request: WhyRequest, nowMs: number): Asked {
  const target = resolveTarget(index, request.target);
  const { service, task } = target;
  return {
    target,
    node: request.node === "" ? undefined : resolveNode(index, request.node),
    isOver: task !== undefined && hasEnded(observedState(index.view, task)),
    response: WhyResponse.create({
      service: serviceFullName(service),
      global: isGlobal(service),
      tasks: tasksOf(index, target, nowMs),
      nowMs,
    }),
  };
}

/** A task by id or name, of a slot the newest that has not ended; or a service. */
function resolveTarget(index: ClusterIndex, word: string): Target {
  if (index.view.tasks.get(word) === undefined && !word.includes(".")) {
    return { service: resolveService(index, word), task: undefined };
  }
  const tasks = resolveTasks(index, word).toSorted((a, b) => b.epoch - a.epoch);
  const task = tasks.find((one) => !hasEnded(observedState(index.view, one))) ?? tasks[0];
  const service = index.view.services.get(task?.serviceId ?? "");
  if (task !== undefined && service !== undefined) return { service, task };
  throw new ClusterError(`the service of task ${word} is gone`, { code: "not-found", subject: `task/${word}` });
}

function tasksOf(index: ClusterIndex, { service, task }: Target, nowMs: number): WhyResponse["tasks"] {
  if (task === undefined) {
    const request = { stack: service.stack, service: service.spec?.name ?? "", node: "", all: false };
    return listTasks(index, request, nowMs).tasks;
  }
  const ofSeat = index
    .tasksOfService(service.id)
    .filter(({ slot, onlyNode }) => slot === task.slot && onlyNode === task.onlyNode);
  return [
    taskView(
      index,
      task,
      ofSeat.every(({ epoch }) => epoch <= task.epoch),
    ),
  ];
}

/** Stands for one task more of a service. */
const oneMore = "one-more";

/** What the scheduler says. The scratch is of no further use: the task in question is not in it any more. */
function explained(scratch: Scratch, { service, task }: Target, node: NodeSpec | undefined): Partial<WhyResponse> {
  const { scheduler, feed, index } = scratch;
  const { view } = index;
  const waiting = index.tasksOfService(service.id).filter((one) => one.nodeId === "" && isLive(view, one));
  const subject = task ?? waiting.sort((a, b) => a.slot - b.slot)[0];
  const refused = feed.refused.get(subject?.id ?? "");
  const name = subject === undefined ? "" : taskName(view, subject);
  if (refused !== undefined) return { subject: name, why: refused };
  if (subject === undefined) {
    try {
      askForOneMore(scratch, service);
    } catch (error) {
      return { why: messageOf(error) };
    }
  }
  const id = subject?.id ?? oneMore;
  const group = subject === undefined ? versionOf(index, service).id : groupId(subject);
  const { fitting, candidates, explanation } = scheduler.explain(id);
  // What it waits for is known while it does.
  const nowhere = feed.whyNowhere(id, explanation);
  scheduler.removeTask(id);
  const { nearest } = explanation;
  const bound = subject !== undefined && (subject.onlyNode !== "" || boundOf(index, subject).kind === "home");
  const ask = (nodeId: string | undefined) =>
    nodeId === undefined || view.nodes.get(nodeId) === undefined
      ? undefined
      : verdict(index, scheduler.whyNot(group, nodeId, bound));
  const waits = subject?.nodeId === "";
  return {
    subject: name,
    nodes: explanation.nodes,
    fitting,
    candidates: candidates.map((candidate) => score(index, candidate)),
    refusals: explanation.reasons.map(({ kind, text, count, classes }) => ({
      kind,
      why: text,
      nodes: count,
      classes: classes.map((one) => ({ name: one.class, nodes: one.count })),
    })),
    // A node would take it, and something else is in the way: a network without addresses, say.
    why: waits ? (fitting > 0 && subject.unplaced) || unplacedWords(index, subject, nowhere) : "",
    nearest: fitting === 0 ? ask(nearest?.node) : undefined,
    present: waits ? undefined : ask(subject?.nodeId),
    asked: ask(node?.id),
    bound: subject === undefined ? "" : boundBy(index, subject),
  };
}

/** Adds one task more to a service. A global one has none then, as its tasks take no room that others of it could use. */
function askForOneMore({ scheduler, index }: Scratch, service: Service): void {
  const group = versionOf(index, service);
  if (isGlobal(service)) for (const { id } of index.tasksOfService(service.id)) scheduler.removeTask(id);
  scheduler.upsertGroup(group);
  scheduler.addTask({ id: oneMore, group: group.id });
}

function versionOf(index: ClusterIndex, service: Service): ReturnType<typeof taskGroup> {
  const { id, version, stack, spec } = service;
  return taskGroup(index, { serviceId: id, serviceVersion: version, stack, spec });
}

function boundBy(index: ClusterIndex, task: Task): string {
  const bound = boundOf(index, task);
  if (bound.kind === "apart") return bound.why;
  return bound.kind === "home" ? `its volume ${bound.volume} is on ${nodeName(index, bound.nodeId)}` : "";
}

function nodeName(index: ClusterIndex, id: string): string {
  return index.view.nodes.get(id)?.name ?? id;
}

function score(index: ClusterIndex, { node, cost, terms }: Candidate): NodeScore {
  return { nodeId: node, nodeName: nodeName(index, node), cost, terms: [...terms] };
}

/** The scheduler's answer about a node, for callers. */
export function verdict(index: ClusterIndex, { candidate, reasons }: Decision): NodeVerdict {
  const reason = ({ kind, text, fix }: Reason) => ({ kind, why: text, fix });
  return { score: score(index, candidate), reasons: reasons.map(reason) };
}
