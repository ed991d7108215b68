import { Option } from "commander";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";

export const registerToken: Register = (program, cli) => {
  const token = program.command("token").summary("make join tokens").description("Makes tokens that hosts join with.");
  token
    .command("create")
    .description("Prints a new token for `noded join`, or for `clusterd join` with --role manager.")
    .addOption(new Option("--role <role>", "what the host is to become").choices(["node", "manager"]).default("node"))
    .option("--ttl <time>", "how long it can be used (default: 24h, a manager's 1h)", parseDuration)
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
