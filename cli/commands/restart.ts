import type { ClusterClient, RestartedService, StackProgress } from "../../proto/gen/embassy/v1/api.ts";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";
import { goingOn } from "../exit.ts";
import { jsonOf } from "../json.ts";
import { formatSeconds } from "../render/format.ts";

export const registerRestart: Register = (program, cli) => {
  program
    .command("restart")
    .summary("replace every task of services")
    .description(
      "Replaces every task of services, also of global ones, as their update_config says: a few at a time, old ones first or new ones. Slots that gave up are tried again, and work that is done is done again. Nothing else changes. Waits until the new tasks run.",
    )
    .argument("<service...>", "<stack>_<service> or service")
    .option("--timeout <time>", "how long to wait", parseDuration, 300_000)
    .option("-d, --detach", "do not wait")
    .action(async (words: string[], options: { timeout: number; detach?: boolean }, command) => {
      const startedMs = performance.now();
      const global = globalOptions(command);
      let restarted: readonly RestartedService[] = [];
      const say = (text: string) => {
        if (global.output !== "json") cli.err.write(`${text}\n`);
      };
      const work = async (client: ClusterClient) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const { RestartServicesResponse } = await import("../../proto/gen/embassy/v1/api.ts");
        const { follow } = await import("../convergence/follow.ts");
        const { isSettled } = await import("../convergence/judge.ts");
        const limits = { signal: cli.signal };
        const response = await call(client.restartServices.bind(client), { services: words }, limits);
        restarted = response.services;
        say(`${restarted.map(nameOf).join(", ")}: every task is replaced`);
        if (options.detach !== true) {
          for (const [stack, services] of Map.groupBy(restarted, (one) => one.stack)) {
            const find = (progress: StackProgress, { service }: RestartedService) =>
              progress.services.find(({ name }) => name === service);
            // One that was removed, or scaled to nothing, meanwhile has nothing left to wait for.
            const isDone = (progress: StackProgress, one: RestartedService) => {
              const found = find(progress, one);
              return found === undefined || isSettled(found);
            };
            await follow(client, {
              stack,
              revision: 1,
              isCurrent: (progress) =>
                services.every((one) => (find(progress, one)?.version ?? one.version) >= one.version),
              until: (progress) => services.every((one) => isDone(progress, one)),
              settleMs: 1_000,
              late: `${services.map(nameOf).join(", ")} has not come to rest`,
              timeoutMs: options.timeout,
              judged: true,
              concerns: (name) => services.some(({ service }) => service === name),
              isUnchanged: () => false,
              screen: cli.err,
              signal: cli.signal,
            });
          }
          say(`done after ${formatSeconds(performance.now() - startedMs)}`);
        }
        if (global.output === "json") printJson(cli, jsonOf(RestartServicesResponse, response));
      };
      const hint = () =>
        restarted.length === 0
          ? "`clusterctl ps` shows whether tasks were replaced."
          : `The cluster goes on with it: ${[...new Set(restarted.map(({ stack }) => stack))].map((stack) => `\`clusterctl ps ${stack}\``).join(", ")} shows how it goes.`;
      await goingOn(cli.signal, hint, async () => await withCluster(cli, global, work));
    });
};

function nameOf({ stack, service }: RestartedService): string {
  return `${stack}_${service}`;
}
