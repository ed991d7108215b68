import { ClusterError } from "../../lib/errors/errors.ts";
import type { ClusterClient } from "../../proto/gen/embassy/v1/api.ts";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";
import { goingOn } from "../exit.ts";
import { count, formatSeconds } from "../render/format.ts";

export const registerScale: Register = (program, cli) => {
  program
    .command("scale")
    .summary("change how many tasks services have")
    .description("Changes how many tasks services have, and waits until they run: clusterctl scale counter_web=5.")
    .argument("<service=number...>", "<stack>_<service> or service, and the number of its tasks")
    .option("--timeout <time>", "how long to wait", parseDuration, 300_000)
    .option("-d, --detach", "do not wait")
    .action(async (words: string[], options: { timeout: number; detach?: boolean }, command) => {
      const startedMs = performance.now();
      const global = globalOptions(command);
      const say = (text: string) => {
        if (global.output !== "json") cli.err.write(`${text}\n`);
      };
      const wanted = words.map(parseScale);
      const byStack = new Map<string, Map<string, number>>();
      const work = async (client: ClusterClient) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const { follow } = await import("../convergence/follow.ts");
        const { isSettled } = await import("../convergence/judge.ts");
        const limits = { signal: cli.signal };
        // All of them or none: one that cannot be is seen before the first is changed.
        if (wanted.length > 1) {
          for (const request of wanted) {
            await call(client.scaleService.bind(client), { ...request, dryRun: true }, limits);
          }
        }
        for (const request of wanted) {
          const { stack, service } = await call(
            client.scaleService.bind(client),
            { ...request, dryRun: false },
            limits,
          );
          byStack.set(stack, (byStack.get(stack) ?? new Map<string, number>()).set(service, request.replicas));
          say(`${stack}_${service} is to have ${request.replicas}`);
        }
        if (options.detach === true) return;
        for (const [stack, numbers] of byStack) {
          await follow(client, {
            stack,
            revision: 1,
            // The first state sent may be from before the change.
            until: ({ services }) =>
              services.every((progress) => progress.desired === numbers.get(progress.name) && isSettled(progress)),
            late: lateWords(stack, numbers),
            timeoutMs: options.timeout,
            judged: true,
            concerns: (service) => numbers.has(service),
            isUnchanged: () => false,
            remedy: "Scale it back, mend it and deploy again",
            screen: cli.err,
            signal: cli.signal,
          });
        }
        say(`done after ${formatSeconds(performance.now() - startedMs)}`);
      };
      const workAndTell = async (client: ClusterClient) => {
        await work(client);
        if (global.output !== "json") return;
        const services = [...byStack].flatMap(([stack, numbers]) =>
          [...numbers].map(([service, replicas]) => ({ stack, service, replicas })),
        );
        printJson(cli, { services });
      };
      const hint = () =>
        byStack.size === 0
          ? "`clusterctl services` shows whether the number was changed."
          : `The cluster goes on with it: ${[...byStack.keys()].map((stack) => `\`clusterctl ps ${stack}\``).join(", ")} shows how it goes; scale back to undo it.`;
      await goingOn(cli.signal, hint, async () => await withCluster(cli, global, workAndTell));
    });
};

function lateWords(stack: string, numbers: ReadonlyMap<string, number>): string {
  const [only] = numbers.size === 1 ? numbers : [];
  if (only !== undefined) return `${stack}_${only[0]} has not reached ${count(only[1], "task")}`;
  return `${[...numbers.keys()].map((service) => `${stack}_${service}`).join(", ")} have not all reached their numbers`;
}

export function parseScale(word: string): { service: string; replicas: number } {
  const match = word.match(/^([^=]+)=(\d{1,9})$/);
  if (match === null) {
    throw new ClusterError(`${JSON.stringify(word)} is not SERVICE=NUMBER`, {
      code: "invalid",
      subject: word,
      hint: "For example: clusterctl scale counter_web=5",
    });
  }
  return { service: match[1] ?? "", replicas: Number(match[2]) };
}
