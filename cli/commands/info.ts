import type { InfoResponse } from "../../proto/gen/embassy/v1/api.ts";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { jsonOf } from "../json.ts";

/** "2 of 4 ready, 1 of them without network, 1 of them low on disk, 1 silent, 1 down" */
function nodesOf({ nodesReady, nodesTotal, nodesSilent, nodesWithoutNetwork, nodesLowOnDisk }: InfoResponse): string {
  const down = nodesTotal - nodesReady - nodesSilent;
  return [
    `${nodesReady} of ${nodesTotal} ready`,
    ...(nodesWithoutNetwork > 0 ? [`${nodesWithoutNetwork} of them without network`] : []),
    ...(nodesLowOnDisk > 0 ? [`${nodesLowOnDisk} of them low on disk`] : []),
    ...(nodesSilent > 0 ? [`${nodesSilent} silent`] : []),
    ...(down > 0 ? [`${down} down`] : []),
  ].join(", ");
}

export const registerInfo: Register = (program, cli) => {
  program
    .command("info")
    .summary("print what the cluster is and how it is")
    .description("Prints what the cluster is and how it is.")
    .action(async (_options, command) => {
      const global = globalOptions(command);
      await withCluster(cli, global, async (client) => {
        const { call } = await import("../../lib/grpc/client.ts");
        const { InfoResponse } = await import("../../proto/gen/embassy/v1/api.ts");
        const info = await call(client.info.bind(client), {}, { signal: cli.signal });
        if (global.output === "json") printJson(cli, jsonOf(InfoResponse, info));
        else {
          const lines = {
            cluster: info.clusterId,
            version: info.version,
            leader: info.leader || "none",
            members: info.members.join(", "),
            nodes: nodesOf(info),
            etcd: `revision ${info.revision}`,
          };
          for (const [key, value] of Object.entries(lines)) cli.out.write(`${`${key}:`.padEnd(10)} ${value}\n`);
        }
      });
    });
};
