import { InvalidArgumentError, Option } from "commander";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";

/** 0 would be the default to the cluster. */
function parseTtl(text: string): number {
  const ttlMs = parseDuration(text);
  if (ttlMs >= 1_000) return ttlMs;
  throw new InvalidArgumentError("Give a time of at least 1s, such as 30m or 24h.");
}

export const registerToken: Register = (program, cli) => {
  const token = program.command("token").summary("make join tokens").description("Makes tokens that hosts join with.");
  token
    .command("create")
    .description("Prints a new token for `noded join`, or for `clusterd join` with --role manager.")
    .addOption(new Option("--role <role>", "what the host is to become").choices(["node", "manager"]).default("node"))
    .option("--ttl <time>", "how long it can be used (default: 24h, a manager's 1h)", parseTtl)
    .action(async (options: { ttl?: number; role: string }, command) => {
      const global = globalOptions(command);
      await withCluster(cli, global, async (client) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const request = { ttlMs: options.ttl ?? 0, role: options.role };
        const response = await call(client.createJoinToken.bind(client), request, { signal: cli.signal });
        if (global.output === "json") printJson(cli, response);
        else cli.out.write(`${response.token}\n`);
      });
    });
};
