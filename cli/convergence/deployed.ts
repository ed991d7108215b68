import { ClusterError } from "../../lib/errors/errors.ts";
import type { ClusterClient, DeployResponse, StackProgress } from "../../proto/gen/embassy/v1/api.ts";
import type { Cli } from "../cli.ts";
import { count, formatSeconds } from "../render/format.ts";
import { follow } from "./follow.ts";

/**
 * Waits until a stack runs as it was just deployed or brought back, and says so. Throws what `follow` throws, and `conflict`
 * when another deploy came after this one.
 */
export async function untilDeployed(
  client: ClusterClient,
  stack: string,
  response: DeployResponse,
  options: { readonly startedMs: number; readonly timeoutMs: number; readonly settleMs: number; readonly cli: Cli },
): Promise<StackProgress> {
  const { startedMs, timeoutMs, settleMs, cli } = options;
  const unchanged = new Set(response.unchanged.map((subject) => subject.replace(/^service\//, "")));
  const progress = await follow(client, {
    stack,
    revision: response.revision,
    until: (p) => p.converged && p.revision >= response.revision,
    // Something new may end as soon as it has started.
    settleMs: response.created.length + response.updated.length > 0 ? settleMs : 0,
    late: `${stack} has not converged`,
    timeoutMs,
    judged: true,
    isUnchanged: (service) => unchanged.has(service),
    endsRolledBack: true,
    screen: cli.err,
    signal: cli.signal,
  });
  if (progress.revision > response.revision) {
    throw new ClusterError(`another deploy of ${stack} came after this one (revision ${progress.revision})`, {
      code: "conflict",
      subject: `stack/${stack}`,
      hint: "What runs now is the other's.",
    });
  }
  for (const warning of progress.warnings) cli.err.write(`warning: ${warning}\n`);
  const running = progress.services.reduce((sum, service) => sum + service.running, 0);
  const after = formatSeconds(performance.now() - startedMs);
  const services = count(progress.services.length, "service");
  cli.err.write(`stack ${stack} runs: ${services}, ${count(running, "task")}, after ${after}\n`);
  return progress;
}

/** "stack shop, revision 3: updated service/web". */
export function summary(stack: string, response: DeployResponse): string {
  const { revision, created, updated, removed, unchanged, triedAgain } = response;
  const parts = Object.entries({ created, updated, removed })
    .filter(([, subjects]) => subjects.length > 0)
    .map(([verb, subjects]) => `${verb} ${subjects.join(", ")}`);
  if (parts.length === 0) parts.push(unchanged.length > 0 ? "nothing changed" : "empty");
  if (triedAgain.length > 0) parts.push(`tried again, as an update to this was rolled back: ${triedAgain.join(", ")}`);
  return `stack ${stack}, revision ${revision}: ${parts.join("; ")}`;
}
