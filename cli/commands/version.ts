import { version } from "../../lib/version/version.ts";
import { globalOptions, printJson, type Register } from "../cli.ts";

export const registerVersion: Register = (program, cli) => {
  program
    .command("version")
    .summary("print the version of clusterctl")
    .description("Prints the version of clusterctl; `clusterctl info` has that of the cluster.")
    .action((_options, command) => {
      if (globalOptions(command).output === "json") printJson(cli, { version, node: process.versions.node });
      else cli.out.write(`clusterctl ${version}\n`);
    });
};
