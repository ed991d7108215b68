import { runTool } from "./tools.ts";

/** A socket of this host that takes connections or datagrams. */
export interface Listener {
  readonly protocol: "tcp" | "udp";
  /** IPv4, or 0.0.0.0 for every address; of a socket that IPv4 reaches. */
  readonly address: string;
  readonly port: number;
  /** The program, "sshd (pid 812)"; empty: not to be found out. */
  readonly program: string;
}

/** The sockets of this network namespace that IPv4 reaches. Throws `internal` when `ss` fails. */
export async function listListeners(): Promise<Listener[]> {
  // Listening TCP sockets and unconnected UDP ones only: what is connected is not looked at, however much there is.
  return parseListeners(await runTool("ss", ["-H", "-l", "-n", "-p", "-t", "-u"]));
}

/**
 * Reads what `ss -Hlnptu` prints. A socket of IPv6 that takes IPv4 too is shown at "*", one that does not at "[::]", which is
 * left out, as are those at addresses of IPv6.
 */
export function parseListeners(text: string): Listener[] {
  const listeners: Listener[] = [];
  for (const line of text.split("\n")) {
    const [protocol, , , , local = ""] = line.trim().split(/\s+/);
    if (protocol !== "tcp" && protocol !== "udp") continue;
    const [, host = "", port = ""] = /^(.*):(\d+)$/.exec(local) ?? [];
    const bare = host.replace(/%.*$/, "").replace(/^\[(?:::ffff:)?(.*?)\]$/, "$1");
    const address = bare === "*" ? "0.0.0.0" : bare;
    if (!/^\d+\.\d+\.\d+\.\d+$/.test(address)) continue;
    const [, name, pid] = /users:\(\("([^"]+)",pid=(\d+)/.exec(line) ?? [];
    listeners.push({
      protocol,
      address,
      port: Number(port),
      program: name === undefined ? "" : `${name} (pid ${pid})`,
    });
  }
  return listeners;
}
