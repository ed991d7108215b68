import { ClusterError } from "../../lib/errors/errors.ts";
import type { NodeSpec, Service, Task } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { serviceFullName, taskName } from "../domain/tasks.ts";

// Names that a user may give, and what they mean. Each throws `not-found` with what there is, `invalid` when a name could
// mean several things.

const mostListed = 8;

/** What there is, in a sentence; `none` when there is nothing. */
export function list(names: readonly string[], none: string): string {
  if (names.length === 0) return none;
  const more = names.length > mostListed ? `, and ${names.length - mostListed} more` : "";
  if (names.length === 1) return `There is only ${names[0]}.`;
  return `There are ${names.slice(0, mostListed).join(", ")}${more}.`;
}

/** A node by its name or id. */
export function resolveNode(index: ClusterIndex, word: string): NodeSpec {
  const found = index.view.nodes.get(word) ?? index.nodeByName(word);
  if (found !== undefined) return found;
  const names = [...index.view.nodes.values()].map(({ name }) => name).sort();
  throw new ClusterError(`there is no node ${word}`, {
    code: "not-found",
    subject: `node/${word}`,
    hint: list(names, "No node has joined yet."),
  });
}

/** A service by `<stack>_<service>`, its id, or its bare name where only one stack has it. Not one that is being removed. */
export function resolveService(index: ClusterIndex, word: string): Service {
  const all = [...index.view.services.values()].filter(({ removed }) => !removed);
  const exact = all.find((service) => serviceFullName(service) === word || service.id === word);
  if (exact !== undefined) return exact;
  const named = all.filter(({ spec }) => spec?.name === word);
  const [only] = named;
  if (only !== undefined && named.length === 1) return only;
  const names = (named.length > 1 ? named : all).map(serviceFullName).sort();
  if (named.length > 1) {
    throw new ClusterError(`${word} is a service of several stacks`, {
      code: "invalid",
      subject: `service/${word}`,
      hint: `Say which: ${names.join(", ")}.`,
    });
  }
  const ofStack = all.filter(({ stack }) => stack === word).map(serviceFullName);
  throw new ClusterError(ofStack.length > 0 ? `${word} is a stack, not a service` : `there is no service ${word}`, {
    code: "not-found",
    subject: `service/${word}`,
    hint: ofStack.length > 0 ? `Its services: ${ofStack.sort().join(", ")}.` : list(names, "Nothing is deployed."),
  });
}

/** The services of a stack, or the one that is named (within the stack, or by any name of it), or all when both are empty. */
export function servicesOf(
  index: ClusterIndex,
  { stack, service }: { readonly stack: string; readonly service: string },
): Service[] {
  if (service !== "") {
    return [index.servicesOfStack(stack).find(({ spec }) => spec?.name === service) ?? resolveService(index, service)];
  }
  return stack === "" ? [...index.view.services.values()] : index.servicesOfStack(stack);
}

/** Tasks by stack, service, task name or task id, by name, whatever became of them. */
export function resolveTasks(index: ClusterIndex, word: string): Task[] {
  const byId = index.view.tasks.get(word);
  if (byId !== undefined) return [byId];
  const tasksOf = (services: readonly Service[]) => services.flatMap(({ id }) => index.tasksOfService(id));
  const stack = index.servicesOfStack(word);
  if (stack.length > 0) return sorted(index, tasksOf(stack));
  // `<stack>_<service>.<slot>` or `<service>.<slot>`; of a global service the node's name, which may have dots.
  const dot = word.indexOf(".");
  if (dot > 0) {
    const service = resolveService(index, word.slice(0, dot));
    const wanted = `${serviceFullName(service)}${word.slice(dot)}`;
    const found = tasksOf([service]).filter((task) => taskName(index.view, task) === wanted);
    if (found.length > 0) return sorted(index, found);
    const names = [...new Set(tasksOf([service]).map((task) => taskName(index.view, task)))].sort();
    throw new ClusterError(`there is no task ${word}`, {
      code: "not-found",
      subject: `task/${word}`,
      hint: list(names, `Service ${serviceFullName(service)} has no task.`),
    });
  }
  return sorted(index, tasksOf([resolveService(index, word)]));
}

function sorted(index: ClusterIndex, tasks: readonly Task[]): Task[] {
  const key = (task: Task) => `${taskName(index.view, task)} ${String(task.epoch).padStart(12, "0")}`;
  return [...tasks].sort((a, b) => (key(a) < key(b) ? -1 : 1));
}
