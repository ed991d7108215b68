import type { Log } from "../../lib/log/log.ts";
import { runTool } from "./tools.ts";

/** Who may have a socket open to a backend. */
export interface ClientNamespace {
  readonly netns: string;
  readonly addresses: readonly string[];
}

/** Deleting takes a process for each backend, and 25 ms. */
const atOnce = 4;

/** A backend that no state names any more. `hostLost`: nobody is left to end its connections. */
export interface GoneBackend {
  readonly address: string;
  readonly hostLost: boolean;
}

/**
 * Ends what connections lead to backends that are gone. UDP has no end of its own: its entries go, and the next datagram
 * finds another backend. A backend whose host is lost cannot end its TCP connections: their entries go as well, so that a
 * busy client is refused with its next packet, and sockets of this host's tasks are closed, so that an idle one learns of
 * it too. TCP of a backend whose host lives is left alone: its own kernel ends it, when it is done.
 *
 * The table is listed once for all of them: most backends that go have no entries, and deleting those of one takes a look
 * at the whole table each time.
 */
export async function forgetBackends(
  backends: readonly GoneBackend[],
  clients: readonly ClientNamespace[],
  log: Log,
): Promise<void> {
  try {
    const udp = await flowsTo(backends, "udp");
    const lost = backends.filter(({ hostLost }) => hostLost);
    const tcp = lost.length > 0 ? await flowsTo(lost, "tcp") : new Map<string, Flow[]>();
    const deletions = [
      ...[...udp.keys()].map((backend) => ["udp", backend] as const),
      ...[...tcp.keys()].map((backend) => ["tcp", backend] as const),
    ];
    const worker = async (): Promise<void> => {
      for (let next = deletions.shift(); next !== undefined; next = deletions.shift()) {
        const [protocol, backend] = next;
        await conntrack(["-D", "-p", protocol, "-r", backend]);
      }
    };
    await Promise.all(Array.from({ length: atOnce }, worker));
    const ports = new Map<string, Set<string>>();
    for (const { client, port } of [...tcp.values()].flat()) {
      const known = ports.get(client);
      if (known === undefined) ports.set(client, new Set([port]));
      else known.add(port);
    }
    for (const { netns, addresses } of clients) {
      for (const client of addresses) {
        const sockets = ports.get(client);
        if (sockets !== undefined) await closeSockets(netns, client, [...sockets]);
      }
    }
  } catch (error) {
    // The connections end by their own timeouts.
    log.warn("connections to backends that are gone were not ended", { backends: backends.length, error });
  }
}

async function conntrack(args: readonly string[]): Promise<string> {
  try {
    return await runTool("conntrack", args);
  } catch (error) {
    // It exits with 1 when there was nothing to delete.
    if (String(error).includes("0 flow entries")) return "";
    throw error;
  }
}

interface Flow {
  readonly client: string;
  /** The client's. */
  readonly port: string;
}

/** Flows that lead to these backends, by backend; only backends that have any. */
async function flowsTo(backends: readonly GoneBackend[], protocol: "udp" | "tcp"): Promise<Map<string, Flow[]>> {
  const wanted = new Set(backends.map(({ address }) => address));
  const flows = new Map<string, Flow[]>();
  for (const line of (await conntrack(["-L", "-p", protocol])).split("\n")) {
    // First the packet as the client sent it, then the answer as it comes back from the backend.
    const [, client = "", port = "", backend = ""] = /src=(\S+) dst=\S+ sport=(\d+) .*?src=(\S+) /.exec(line) ?? [];
    if (!wanted.has(backend)) continue;
    const known = flows.get(backend);
    if (known === undefined) flows.set(backend, [{ client, port }]);
    else known.push({ client, port });
  }
  return flows;
}

async function closeSockets(netns: string, client: string, ports: readonly string[]): Promise<void> {
  const filter = ports.map((port) => `sport = :${port}`).join(" or ");
  await runTool("nsenter", [
    `--net=${netns}`,
    "ss",
    "-K",
    "-H",
    "-t",
    "src",
    client,
    "and",
    "(",
    ...filter.split(" "),
    ")",
  ]);
}
