import type { Command } from "commander";
import { formatBytes } from "../../lib/units/bytes.ts";
import type {
  ClusterClient,
  ManagerView,
  NetworkView,
  NodeView,
  ServiceView,
  StackView,
} from "../../proto/gen/embassy/v1/api.ts";
import type { PublishedPort } from "../../proto/gen/embassy/v1/stack.ts";
import { Availability, ManagerState, NodeState } from "../../proto/gen/embassy/v1/state.ts";
import { type Cli, globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { jsonOf } from "../json.ts";
import { formatAge } from "../render/format.ts";
import { oneLine, styled } from "../render/style.ts";
import { type Column, table } from "../render/table.ts";
import { formatTaint } from "../taints.ts";

/** A list that a command shows: how to get it, as the proto's JSON and as a table. */
export interface Listing<Row> {
  readonly read: (
    client: ClusterClient,
    signal: AbortSignal,
  ) => Promise<{ rows: Row[]; json: unknown; warnings?: readonly string[] }>;
  readonly columns: (nowMs: number) => readonly Column<Row>[];
}

export async function show<Row>(cli: Cli, command: Command, listing: Listing<Row>): Promise<void> {
  const global = globalOptions(command);
  await withCluster(cli, global, async (client) => {
    const { rows, json, warnings = [] } = await listing.read(client, cli.signal);
    for (const warning of warnings) cli.err.write(`${styled(cli.err, "yellow", "warning:")} ${warning}\n`);
    if (global.output === "json") printJson(cli, json);
    else cli.out.write(table(cli.out, listing.columns(Date.now()), rows));
  });
}

/** What talks to a cluster: imported by the commands that do. */
export const heavy = async () => ({
  ...(await import("../../lib/grpc/client.ts")),
  api: await import("../../proto/gen/embassy/v1/api.ts"),
});

/** "8080→80/tcp", "127.0.0.1:8080→80/tcp (host)". */
function portWords({ hostIp, published, target, protocol, mode }: PublishedPort): string {
  const address = hostIp === "" ? "" : `${hostIp.includes(":") ? `[${hostIp}]` : hostIp}:`;
  return `${address}${published}→${target}/${protocol === 1 ? "udp" : "tcp"}${mode === 1 ? " (host)" : ""}`;
}

const services = (target: string): Listing<ServiceView> => ({
  read: async (client, signal) => {
    const { call, api } = await heavy();
    const { stackOrService } = await import("../lookup.ts");
    const chosen = target === "" ? { stack: "", service: "" } : await stackOrService(client, target, signal);
    const response = await call(client.listServices.bind(client), { stack: chosen.stack }, { signal });
    const isChosen = (view: ServiceView) =>
      chosen.service === "" || [serviceName(view), view.service?.spec?.name].includes(chosen.service);
    const rows = response.services.filter(isChosen).toSorted((a, b) => serviceName(a).localeCompare(serviceName(b)));
    return { rows, json: jsonOf(api.ListServicesResponse, { services: rows }) };
  },
  columns: () => [
    { title: "NAME", value: serviceName, shrinkTo: 16 },
    {
      title: "MODE",
      value: ({ service }) => (service?.spec?.mode?.$case === "global" ? "global" : "replicated"),
    },
    {
      title: "RUNNING",
      value: runningOf,
      style: ({ running, completed, desired }) => (running + completed >= desired ? "green" : "yellow"),
      align: "right",
    },
    { title: "IMAGE", value: ({ service }) => service?.spec?.container?.image ?? "", shrinkTo: 16 },
    {
      title: "PORTS",
      value: ({ status }) => (status?.ports ?? []).map(portWords).join(" "),
      shrinkTo: 12,
    },
    {
      title: "LINKS",
      value: ({ service }) =>
        (service?.spec?.links ?? [])
          .map(({ service: provider, alias }) =>
            alias === "" || alias === provider ? provider : `${provider} as ${alias}`,
          )
          .join(" "),
      shrinkTo: 12,
    },
    {
      title: "",
      value: messageOf,
      shrinkTo: 8,
    },
  ],
});

/** What is done with the service, or has failed; else what became of its last move. */
function messageOf({ service, status }: ServiceView): string {
  if (service?.removed) return "being removed";
  return status?.updateMessage || oneLine(status?.rebalance?.message ?? "");
}

/** "2/3"; of a service whose tasks have done their work "completed 1/1", and of one that is about to "1/3, 2 completed". */
function runningOf({ running, completed, desired }: ServiceView): string {
  if (completed === 0) return `${running}/${desired}`;
  return running === 0 && completed >= desired
    ? `completed ${completed}/${desired}`
    : `${running}/${desired}, ${completed} completed`;
}

function serviceName({ service }: ServiceView): string {
  return `${service?.stack}_${service?.spec?.name}`;
}

const stacks: Listing<StackView> = {
  read: async (client, signal) => {
    const { call, api } = await heavy();
    const response = await call(client.listStacks.bind(client), {}, { signal });
    const rows = response.stacks.toSorted((a, b) => a.name.localeCompare(b.name));
    return { rows, json: jsonOf(api.ListStacksResponse, { stacks: rows }) };
  },
  columns: (nowMs) => [
    { title: "NAME", value: ({ name }) => name, shrinkTo: 16 },
    { title: "SERVICES", value: (row) => String(row.services), align: "right" },
    { title: "REVISION", value: ({ revision }) => String(revision), align: "right" },
    { title: "DEPLOYED", value: ({ deployedAtMs }) => formatAge(deployedAtMs, nowMs), align: "right" },
    { title: "BY", value: ({ deployedBy }) => deployedBy, shrinkTo: 8 },
  ],
};

const nodes: Listing<NodeView> = {
  read: async (client, signal) => {
    const { call, api } = await heavy();
    const response = await call(client.listNodes.bind(client), {}, { signal });
    const rows = response.nodes.toSorted((a, b) =>
      (a.spec?.name ?? "").localeCompare(b.spec?.name ?? "", "en", { numeric: true }),
    );
    return { rows, json: jsonOf(api.ListNodesResponse, { nodes: rows }) };
  },
  columns: (nowMs) => [
    { title: "NAME", value: ({ spec }) => spec?.name ?? "", shrinkTo: 12 },
    { title: "ID", value: ({ spec }) => spec?.id ?? "", drop: 1 },
    {
      title: "STATE",
      value: (node) =>
        (networkProblemOf(node) && "no network") ||
        (diskProblemOf(node) && "low disk") ||
        nodeStates[node.status?.state ?? NodeState.NODE_STATE_UNKNOWN],
      style: (node) => {
        if (networkProblemOf(node) !== "" || node.status?.state !== NodeState.NODE_STATE_READY) return "red";
        return diskProblemOf(node) === "" ? "green" : "yellow";
      },
    },
    {
      title: "AVAILABILITY",
      value: ({ spec }) => availabilities[spec?.availability ?? Availability.AVAILABILITY_ACTIVE],
      style: ({ spec }) => (spec?.availability === Availability.AVAILABILITY_ACTIVE ? undefined : "yellow"),
    },
    { title: "ROLE", value: ({ role }) => role, drop: 0 },
    { title: "TASKS", value: ({ tasks }) => String(tasks), align: "right" },
    { title: "ADDRESS", value: ({ status }) => status?.description?.underlayAddress ?? "" },
    {
      title: "CPUS",
      value: ({ status }) => String((status?.description?.milliCpus ?? 0) / 1_000),
      align: "right",
      drop: 2,
    },
    {
      title: "MEMORY",
      value: ({ status }) => formatBytes(status?.description?.memoryBytes ?? 0),
      align: "right",
      drop: 3,
    },
    { title: "SINCE", value: ({ status }) => formatAge(status?.changedAtMs ?? 0, nowMs), align: "right", drop: 4 },
    {
      title: "LABELS",
      value: ({ spec }) =>
        Object.entries(spec?.labels ?? {})
          .map(([key, value]) => `${key}=${value}`)
          .join(" "),
      shrinkTo: 8,
    },
    {
      title: "TAINTS",
      value: ({ spec }) => (spec?.taints ?? []).map(formatTaint).join(" "),
      shrinkTo: 8,
    },
    {
      title: "MESSAGE",
      value: (node) =>
        [networkProblemOf(node), diskProblemOf(node)].filter(Boolean).join("; ") ||
        node.status?.message ||
        node.kept ||
        busyPortsOf(node),
      shrinkTo: 8,
      wish: 32,
    },
  ],
};

/** "port 22 is in use by sshd (pid 812), not published": what stacks or tasks publish, and a program of the host has. */
function busyPortsOf({ status }: NodeView): string {
  const ports = (status?.busyPorts ?? []).map(({ port, protocol, hostIp, by }) => {
    const at = hostIp === "" ? "" : `${hostIp}:`;
    return `port ${at}${port}${protocol === 1 ? "/udp" : ""} is in use by ${by || "a program of the host"}`;
  });
  return ports.length === 0 ? "" : `${ports.join(", ")}: not published here`;
}

/** Of a node that is ready otherwise: its tasks run on, and new ones wait. */
function networkProblemOf({ status }: NodeView): string {
  return status?.state === NodeState.NODE_STATE_READY ? status.networkProblem : "";
}

/** Of a node that is ready otherwise: its tasks run on, and new ones go elsewhere. */
function diskProblemOf({ status }: NodeView): string {
  return status?.state === NodeState.NODE_STATE_READY ? status.diskProblem : "";
}

const nodeStates: Record<NodeState, string> = {
  [NodeState.NODE_STATE_UNKNOWN]: "unknown",
  [NodeState.NODE_STATE_READY]: "ready",
  [NodeState.NODE_STATE_DOWN]: "down",
  [NodeState.NODE_STATE_SILENT]: "silent",
};

const availabilities: Record<Availability, string> = {
  [Availability.AVAILABILITY_ACTIVE]: "active",
  [Availability.AVAILABILITY_PAUSE]: "pause",
  [Availability.AVAILABILITY_DRAIN]: "drain",
};

const managers: Listing<ManagerView> = {
  read: async (client, signal) => {
    const { call, api } = await heavy();
    const response = await call(client.listManagers.bind(client), {}, { signal });
    return { rows: response.managers, json: jsonOf(api.ListManagersResponse, response) };
  },
  columns: (nowMs) => [
    { title: "NAME", value: ({ name }) => name, shrinkTo: 12 },
    { title: "ADDRESS", value: ({ address }) => address },
    {
      title: "STATE",
      value: ({ state }) => managerStates[state],
      style: ({ state }) => (state === ManagerState.MANAGER_STATE_READY ? "green" : "red"),
    },
    { title: "LEADER", value: ({ leader }) => (leader ? "yes" : "") },
    { title: "ETCD", value: ({ etcd }) => etcd, style: ({ etcd }) => (etcd === "down" ? "red" : undefined) },
    {
      title: "SINCE",
      value: (row) => (row.startedAtMs === 0 ? "" : formatAge(row.startedAtMs, nowMs)),
      align: "right",
    },
    { title: "MESSAGE", value: ({ message }) => message, shrinkTo: 8 },
  ],
};

const managerStates: Record<ManagerState, string> = {
  [ManagerState.MANAGER_STATE_DOWN]: "down",
  [ManagerState.MANAGER_STATE_READY]: "ready",
  [ManagerState.MANAGER_STATE_JOINING]: "joining",
};

const networks: Listing<NetworkView> = {
  read: async (client, signal) => {
    const { call, api } = await heavy();
    const response = await call(client.listNetworks.bind(client), {}, { signal });
    const rows = response.networks.toSorted((a, b) => networkName(a).localeCompare(networkName(b)));
    return { rows, json: jsonOf(api.ListNetworksResponse, { networks: rows }) };
  },
  columns: () => [
    { title: "NAME", value: networkName, shrinkTo: 16 },
    { title: "ID", value: ({ network }) => network?.id ?? "" },
    { title: "SUBNET", value: ({ network }) => network?.subnet ?? "" },
    { title: "VNI", value: ({ network }) => String(network?.vni ?? ""), align: "right" },
    { title: "BLOCKS", value: ({ blocks }) => String(blocks.length), align: "right" },
    {
      title: "KIND",
      value: ({ network }) =>
        [network?.spec?.internal ? "internal" : "", network?.spec?.isolated ? "links only" : ""]
          .filter((word) => word !== "")
          .join(", ") || "open",
    },
  ],
};

function networkName({ network }: NetworkView): string {
  return `${network?.stack}_${network?.spec?.name}`;
}

export const registerLists: Register = (program, cli) => {
  program
    .command("services")
    .summary("list services")
    .description("Lists the services of the cluster or of a stack, or one service.")
    .argument("[stack|service]", "stack, <stack>_<service>, or service")
    .action(async (target: string | undefined, _options, command) => await show(cli, command, services(target ?? "")));
  program
    .command("stacks")
    .summary("list stacks")
    .description("Lists the stacks.")
    .action(async (_options, command) => await show(cli, command, stacks));
  program
    .command("nodes")
    .summary("list nodes")
    .description(
      "Lists the nodes. One with no network is ready but for its netd: its tasks run on, names and links there follow nothing, and new tasks wait. One that is low on disk is given no new tasks but those that may run nowhere else. A silent one stopped giving signs of life together with most others: it keeps its tasks for a while, unless you drain or remove it.",
    )
    .action(async (_options, command) => await show(cli, command, nodes));
  program
    .command("managers")
    .summary("list managers")
    .description("Lists the managers: the members of the control plane.")
    .action(async (_options, command) => await show(cli, command, managers));
  program
    .command("networks")
    .summary("list networks")
    .description("Lists the networks.")
    .action(async (_options, command) => await show(cli, command, networks));
};
