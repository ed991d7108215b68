import { ClusterError } from "../../lib/errors/errors.ts";
import type { ClusterClient, RevisionView } from "../../proto/gen/embassy/v1/api.ts";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";
import { goingOn } from "../exit.ts";
import { jsonOf } from "../json.ts";
import { formatAge } from "../render/format.ts";
import { heavy, type Listing, show } from "./lists.ts";

export const registerRollback: Register = (program, cli) => {
  program
    .command("rollback")
    .summary("bring a stack back to an earlier revision")
    .description(
      "Brings a whole stack back to the last revision before that ran as a whole and differs from the present one, or to the one that is named: services, networks, configs, secrets and links, as one new revision. Done again, it goes further back. Waits until every service runs so.",
    )
    .argument("<stack[@revision]>", "stack, and the revision that it is to be like: `clusterctl revisions` lists them")
    .option("--timeout <time>", "how long to wait", parseDuration, 300_000)
    .option("--settle <time>", "how long all must run without a break before it counts", parseDuration, 1_000)
    .option("-d, --detach", "do not wait")
    .action(async (word: string, options: { timeout: number; settle: number; detach?: boolean }, command) => {
      const startedMs = performance.now();
      const global = globalOptions(command);
      const request = parseRevision(word);
      const { stack } = request;
      let isTaken = false;
      const work = async (client: ClusterClient) => {
        const { call, api } = await heavy();
        const { summary, untilDeployed } = await import("../convergence/deployed.ts");
        const limits = { deadlineMs: 30_000, signal: cli.signal };
        const response = await call(client.rollbackStack.bind(client), request, limits);
        isTaken = true;
        const { restored, deployed } = response;
        if (deployed === undefined) throw new ClusterError("the control plane gave no answer", { code: "internal" });
        cli.err.write(`${summary(stack, deployed)}; as revision ${restored}\n`);
        if (options.detach !== true) {
          const waits = { startedMs, timeoutMs: options.timeout, settleMs: options.settle, cli };
          await untilDeployed(client, stack, deployed, waits);
        }
        if (global.output === "json") printJson(cli, jsonOf(api.RollbackStackResponse, response));
      };
      const hint = () =>
        isTaken
          ? `The cluster goes on with it: \`clusterctl ps ${stack}\` shows how it goes.`
          : `\`clusterctl revisions ${stack}\` shows whether it went back.`;
      await goingOn(cli.signal, hint, async () => await withCluster(cli, global, work));
    });
  program
    .command("revisions")
    .summary("list the revisions of a stack")
    .description(
      "Lists the revisions of a stack that are kept, the last ten, newest first: who deployed each and when, what it changed, and what became of it.",
    )
    .argument("<stack>", "stack")
    .action(async (stack: string, _options, command) => await show(cli, command, revisions(stack)));
};

/** Throws `invalid`. */
function parseRevision(word: string): { stack: string; revision: number } {
  const [, stack = "", revision = "0"] = word.match(/^([^@]+)(?:@([1-9]\d{0,8}))?$/) ?? [];
  if (stack === "") {
    throw new ClusterError(`${JSON.stringify(word)} is not STACK or STACK@REVISION`, {
      code: "invalid",
      subject: word,
      hint: "For example: clusterctl rollback counter@3",
    });
  }
  return { stack, revision: Number(revision) };
}

const revisions = (stack: string): Listing<RevisionView> => ({
  read: async (client, signal) => {
    const { call, api } = await heavy();
    const response = await call(client.listRevisions.bind(client), { stack }, { signal });
    return { rows: response.revisions, json: jsonOf(api.ListRevisionsResponse, response) };
  },
  columns: (nowMs) => [
    { title: "REVISION", value: ({ revision }) => String(revision), align: "right" },
    { title: "DEPLOYED", value: ({ deployedAtMs }) => formatAge(deployedAtMs, nowMs), align: "right" },
    { title: "BY", value: ({ deployedBy }) => deployedBy, shrinkTo: 8 },
    {
      title: "CHANGED",
      value: ({ changed, restores }) =>
        [...(restores > 0 ? [`as revision ${restores}`] : []), ...changed].join(" ") || "nothing",
      shrinkTo: 12,
      wish: 32,
    },
    {
      title: "OUTCOME",
      value: outcomeOf,
      style: ({ convergedAtMs, rolledBack, updates }) =>
        rolledBack.length + updates.length > 0 ? "red" : convergedAtMs > 0 ? "green" : "yellow",
      shrinkTo: 16,
    },
  ],
});

/** "runs", "ran", "rolled back: web", "did not all run". Of the newest, what is under way. */
function outcomeOf({ newest, convergedAtMs, rolledBack, updates }: RevisionView): string {
  if (newest && updates.length > 0) return updates.map(({ service, message }) => `${service} ${message}`).join("; ");
  if (rolledBack.length > 0) return `rolled back: ${rolledBack.join(", ")}`;
  if (convergedAtMs > 0) return newest ? "runs" : "ran";
  return newest ? "does not all run yet" : "did not all run";
}
