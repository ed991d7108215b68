import { connect } from "node:net";
import { ClusterError, messageOf } from "../errors/errors.ts";

/**
 * The IPv4 address that this host's packets to `host:port` carry: the one that can be answered. Throws `unavailable` when
 * nobody listens there, `invalid` when it has no such address; the hint then names the flag (`--underlay IP`) to give it by.
 */
export async function localAddressTowards(host: string, port: number, flag: string): Promise<string> {
  return await new Promise((resolve, reject) => {
    const socket = connect({ host, port });
    socket.once("connect", () => {
      const address = (socket.localAddress ?? "").replace(/^::ffff:/, "");
      socket.destroy();
      if (/^\d+\.\d+\.\d+\.\d+$/.test(address)) resolve(address);
      else {
        reject(
          new ClusterError(`the connection to ${host} has no IPv4 address of this host (${address})`, {
            code: "invalid",
            hint: `Name the address that other hosts reach this one by: ${flag}.`,
          }),
        );
      }
    });
    socket.once("error", (cause) => {
      socket.destroy();
      reject(new ClusterError(`cannot reach ${host}:${port}: ${messageOf(cause)}`, { code: "unavailable", cause }));
    });
  });
}
