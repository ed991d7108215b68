import { ClusterError } from "../../lib/errors/errors.ts";
import { formatBytes } from "../../lib/units/bytes.ts";
import { compareTexts } from "../../lib/words/compare.ts";
import { MountType } from "../../proto/gen/embassy/v1/stack.ts";
import { TaskState } from "../../proto/gen/embassy/v1/state.ts";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { jsonOf } from "../json.ts";
import { heavy, type Listing, show } from "./lists.ts";

/** A secret or a config as `--output json` gives it. What is in it is never shown: clusters do not give secrets back. */
interface BlobRow {
  readonly stack: string;
  readonly name: string;
  /** 64 hex digits: another content, another digest. Of a config its SHA-256; of a secret one that only the cluster can make. */
  readonly digest: string;
  readonly labels: Readonly<Record<string, string>>;
  /** Names of the services of the stack that mount it, ascending. */
  readonly services: readonly string[];
}

interface VolumeHomeRow {
  readonly slot: number;
  readonly node: string;
  /** Why no task can be placed there: down, silent, drained, paused; "no data" when the node has no directory of it; "" for nothing. */
  readonly problem: string;
  /** `<stack>_<service>` that was placed there last. */
  readonly service: string;
}

/** A named volume as `--output json` gives it. */
interface VolumeRow {
  readonly name: string;
  /** `<stack>_<service>` of those that mount it, ascending. */
  readonly services: readonly string[];
  /** Where a task that mounts it is. */
  readonly nodes: readonly string[];
  /** Where the data of each slot is, by slot, then node; slot 0: of a global service's task on that node. */
  readonly homes: readonly VolumeHomeRow[];
  /** Which nodes that answer have a directory of it; each its own, which stays when tasks and stacks go. */
  readonly dataNodes: readonly string[];
  /** What it takes on the disk of each of them, in bytes; only with --size, and of those that counted it in time. */
  readonly bytes: Readonly<Record<string, number>>;
}

/** Secrets or configs of a stack, or of all. */
export const blobs = (kind: "secrets" | "configs", stack: string): Listing<BlobRow> => ({
  read: async (client, signal) => {
    const { stacksNamed } = await import("../lookup.ts");
    const stacks = await stacksNamed(client, stack, signal);
    const rows = stacks
      .flatMap(({ name: owner, spec }) =>
        (spec?.[kind] ?? []).map(({ name, content, labels }) => ({
          stack: owner,
          name,
          digest: Buffer.from(content).toString("hex"),
          labels,
          services: (spec?.services ?? [])
            .filter(({ container }) => container?.[kind].some(({ source }) => source === name))
            .map((service) => service.name)
            .toSorted(),
        })),
      )
      .toSorted((a, b) => compareTexts(a.stack, b.stack) || compareTexts(a.name, b.name));
    return { rows, json: { [kind]: rows } };
  },
  columns: () => [
    { title: "NAME", value: ({ stack: owner, name }) => `${owner}_${name}`, shrinkTo: 16 },
    { title: "DIGEST", value: ({ digest }) => digest.slice(0, 12) },
    { title: "SERVICES", value: ({ services }) => services.join(" ") || "-", shrinkTo: 12 },
    { title: "LABELS", value: ({ labels }) => pairs(labels), shrinkTo: 8 },
  ],
});

/** Volumes that a stack mounts, or all there are. */
export const volumes = (stack: string, sizes = false): Listing<VolumeRow> => ({
  read: async (client, signal) => {
    const { call } = await heavy();
    const { stacksNamed } = await import("../lookup.ts");
    await stacksNamed(client, stack, signal);
    const { services } = await call(client.listServices.bind(client), { stack }, { signal });
    const { tasks } = await call(
      client.listTasks.bind(client),
      { stack, service: "", node: "", all: false },
      { signal },
    );
    const held = await call(client.listVolumes.bind(client), { sizes }, { signal });
    interface Known {
      readonly services: Set<string>;
      readonly nodes: Set<string>;
      readonly homes: VolumeHomeRow[];
      readonly dataNodes: string[];
      readonly bytes: Record<string, number>;
    }
    const found = new Map<string, Known>();
    const entry = (name: string) => {
      const fresh = { services: new Set<string>(), nodes: new Set<string>(), homes: [], dataNodes: [], bytes: {} };
      const known: Known = found.get(name) ?? fresh;
      found.set(name, known);
      return known;
    };
    const namesIn = (spec: { readonly mounts: readonly { type: MountType; source: string }[] } | undefined) =>
      (spec?.mounts ?? []).filter(({ type }) => type === MountType.MOUNT_TYPE_VOLUME).map(({ source }) => source);
    for (const { service } of services)
      for (const name of namesIn(service?.spec?.container))
        entry(name).services.add(`${service?.stack}_${service?.spec?.name}`);
    for (const { task, status, nodeName } of tasks) {
      const hasEnded = (status?.state ?? TaskState.TASK_STATE_PENDING) >= TaskState.TASK_STATE_COMPLETE;
      if (hasEnded || nodeName === "") continue;
      for (const name of namesIn(task?.spec?.container)) entry(name).nodes.add(nodeName);
    }
    for (const { name, nodeName, bytes } of held.volumes) {
      if (stack !== "" && !found.has(name)) continue;
      entry(name).dataNodes.push(nodeName);
      if (bytes !== undefined) entry(name).bytes[nodeName] = bytes;
    }
    const unasked = new Set(held.failures.map(({ nodeName }) => nodeName));
    for (const { home, nodeName, problem } of held.homes) {
      const { volume = "", slot = 0, service = "" } = home ?? {};
      if (stack !== "" && !found.has(volume)) continue;
      const { homes, dataNodes } = entry(volume);
      const isEmpty = problem === "" && !unasked.has(nodeName) && !dataNodes.includes(nodeName);
      homes.push({ slot, node: nodeName, problem: isEmpty ? "no data" : problem, service });
    }
    const rows = [...found]
      .toSorted(([a], [b]) => compareTexts(a, b))
      .map(([name, known]) => ({
        name,
        services: [...known.services].toSorted(),
        nodes: [...known.nodes].toSorted(),
        homes: known.homes,
        dataNodes: known.dataNodes,
        bytes: known.bytes,
      }));
    const warnings = held.failures.map(({ why }) => `volumes are missing from the list: ${why}`);
    return { rows, json: { volumes: rows }, warnings };
  },
  columns: () => [
    { title: "NAME", value: ({ name }) => name, shrinkTo: 16 },
    { title: "SERVICES", value: ({ services }) => services.join(" ") || "-", shrinkTo: 12 },
    { title: "TASKS ON", value: ({ nodes }) => nodes.join(" ") || "-", shrinkTo: 12 },
    { title: "HOME", value: ({ homes }) => homesWords(homes) || "-", shrinkTo: 12 },
    { title: "DATA ON", value: ({ dataNodes }) => dataNodes.join(" ") || "-", shrinkTo: 12 },
    ...(sizes ? [{ title: "SIZE", value: sizesWords, shrinkTo: 12 }] : []),
  ],
});

/** In the order of the nodes that have data. */
function sizesWords({ dataNodes, bytes }: VolumeRow): string {
  const sizes = dataNodes.map((node) => (bytes[node] === undefined ? "?" : formatBytes(bytes[node])));
  return sizes.join(", ") || "-";
}

/** "host-1", "host-2 (down)"; where a volume has homes of several slots "host-1 (slots 1 3), host-2 (slot 2, down)". */
function homesWords(homes: readonly VolumeHomeRow[]): string {
  const slotted = homes.some(({ slot }) => slot > 1);
  return [...Map.groupBy(homes, ({ node }) => node)]
    .map(([node, here]) => {
      const slots = slotted ? here.filter(({ slot }) => slot > 0).map(({ slot }) => slot) : [];
      const notes = [
        ...(slots.length > 0 ? [`${slots.length === 1 ? "slot" : "slots"} ${slots.join(" ")}`] : []),
        ...here.slice(0, 1).flatMap(({ problem }) => (problem === "" ? [] : [problem])),
      ];
      return notes.length === 0 ? node : `${node} (${notes.join(", ")})`;
    })
    .join(", ");
}

function pairs(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(" ");
}

export const registerStored: Register = (program, cli) => {
  program
    .command("volumes")
    .summary("list volumes")
    .description(
      "Lists the named volumes that services mount and those that nodes have: which services mount them, on which nodes tasks with them are, which node is their home, by slot where there are several, and on which nodes data of them is. A home is where a slot's data is: its tasks run there, also after the stack was removed and is deployed again.",
    )
    .argument("[stack]", "stack")
    .option(
      "--size",
      "also what they take on the disk of each node; each reads through all of their files, for 3 s at most",
    )
    .action(async (stack: string | undefined, options: { size?: boolean }, command) => {
      await show(cli, command, volumes(stack ?? "", options.size));
    });
  for (const kind of ["secrets", "configs"] as const) {
    program
      .command(kind)
      .summary(`list ${kind}`)
      .description(
        `Lists the ${kind} of the cluster or of a stack, and which services mount them. What is in them is not shown.`,
      )
      .argument("[stack]", "stack")
      .action(
        async (stack: string | undefined, _options, command) => await show(cli, command, blobs(kind, stack ?? "")),
      );
  }
  program
    .command("volume")
    .summary("change volumes")
    .description("Changes volumes; `clusterctl volumes` lists them.")
    .command("rm")
    .description(
      "Removes volumes that no service mounts, with all that is in them, from every node. Fails when a node that is their home does not answer. With --node from that node, where no task may mount them; a task that waits for it then begins elsewhere with an empty volume.",
    )
    .argument("<name...>", "volume")
    .option("--node <name>", "only there")
    .action(async (names: string[], options: { node?: string }, command) => {
      const global = globalOptions(command);
      await withCluster(cli, global, async (client) => {
        const { call, api } = await heavy();
        const left: string[] = [];
        const done: unknown[] = [];
        const limits = { deadlineMs: 15_000, signal: cli.signal };
        const requests = [...new Set(names)].map((name) => ({ name, node: options.node ?? "", dryRun: false }));
        // All of them or none: one that cannot be is seen before the first is removed.
        if (requests.length > 1) {
          for (const request of requests) {
            await call(client.removeVolume.bind(client), { ...request, dryRun: true }, limits);
          }
        }
        for (const request of requests) {
          const { name } = request;
          const response = await call(client.removeVolume.bind(client), request, limits);
          done.push({ name, ...(jsonOf(api.RemoveVolumeResponse, response) as object) });
          left.push(...response.failures.map(({ why }) => `${name} stays where it could not be removed: ${why}`));
          const where =
            response.nodes.length > 0 ? `removed from ${response.nodes.join(", ")}` : "forgotten: no node had it";
          if (global.output !== "json") cli.err.write(`${name} is ${where}\n`);
        }
        if (global.output === "json") printJson(cli, { volumes: done });
        if (left.length > 0) {
          throw new ClusterError(left.join("\n"), {
            code: "unavailable",
            hint: "Once those nodes are back, remove it again.",
          });
        }
      });
    });
};
