import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";

export const registerToken: Register = (program, cli) => {
  const token = program.command("token").summary("make join tokens").description("Makes tokens that hosts join with.");
  token
    .command("create")
    .description("Prints a new token for `noded join`.")
    .option("--ttl <time>", "how long it can be used", parseDuration, 86_400_000)
    .action(async (options: { ttl: number }, command) => {
      const global = globalOptions(command);
      await withCluster(cli, global, async (client) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const request = { ttlMs: options.ttl };
        const response = await call(client.createJoinToken.bind(client), request, { signal: cli.signal });
        if (global.output === "json") printJson(cli, response);
        else cli.out.write(`${response.token}\n`);
      });
    });
};
