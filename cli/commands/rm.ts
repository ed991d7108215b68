import { hasCode } from "../../lib/errors/errors.ts";
import type { ClusterClient } from "../../proto/gen/embassy/v1/api.ts";
import { globalOptions, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";
import { goingOn } from "../exit.ts";
import { formatSeconds } from "../render/format.ts";

export const registerRemove: Register = (program, cli) => {
  program
    .command("rm")
    .summary("remove stacks")
    .description(
      "Removes stacks and waits until nothing of them is left. Volumes stay: `clusterctl volume rm` removes those.",
    )
    .argument("<stack...>", "stack")
    .option("--timeout <time>", "how long to wait", parseDuration, 300_000)
    .option("-d, --detach", "do not wait")
    .action(async (names: string[], options: { timeout: number; detach?: boolean }, command) => {
      const global = globalOptions(command);
      const stacks = [...new Set(names)];
      let told = 0;
      const work = async (client: ClusterClient) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const { stacksNamed } = await import("../lookup.ts");
        const { follow } = await import("../convergence/follow.ts");
        // A name that is wrong is seen before the first is removed.
        if (stacks.length > 1) for (const stack of stacks) await stacksNamed(client, stack, cli.signal);
        for (const stack of stacks) {
          const startedMs = performance.now();
          await call(client.removeStack.bind(client), { stack }, { deadlineMs: 30_000, signal: cli.signal });
          told++;
          if (options.detach === true) continue;
          try {
            await follow(client, {
              stack,
              until: (progress) => progress.removed,
              late: `${stack} has not been removed`,
              timeoutMs: options.timeout,
              judged: false,
              isUnchanged: () => false,
              screen: cli.err,
              signal: cli.signal,
            });
          } catch (error) {
            // It went before the watch began.
            if (!hasCode(error, "not-found")) throw error;
          }
          if (global.output === "json") continue;
          cli.err.write(`stack ${stack} is gone, after ${formatSeconds(performance.now() - startedMs)}\n`);
        }
      };
      const hint = () =>
        told === 0
          ? "`clusterctl stacks` shows whether it was removed."
          : `The cluster goes on removing ${stacks.slice(0, told).join(", ")}: \`clusterctl ps\` shows what is left.${told < stacks.length ? ` Not touched: ${stacks.slice(told).join(", ")}.` : ""}`;
      await goingOn(cli.signal, hint, async () => await withCluster(cli, global, work));
    });
};
