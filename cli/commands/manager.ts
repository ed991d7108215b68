import { globalOptions, type Register, withCluster } from "../cli.ts";

export const registerManager: Register = (program, cli) => {
  const manager = program
    .command("manager")
    .summary("remove managers")
    .description("Changes the control plane; `clusterctl managers` lists its members, `clusterd join` adds one.");
  manager
    .command("rm")
    .description("Takes managers out of the control plane, lost ones or others; clusterd there ends itself.")
    .argument("<name...>", "manager's name")
    .action(async (names: string[], _options, command) => {
      const global = globalOptions(command);
      for (const name of names) {
        await withCluster(cli, global, async (client) => {
          const { call } = await import("../../lib/grpc/client.ts");
          await call(client.removeManager.bind(client), { manager: name }, { signal: cli.signal, deadlineMs: 30_000 });
        });
        if (global.output !== "json") cli.err.write(`${name} is no manager any more\n`);
      }
    });
};
