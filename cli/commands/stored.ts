import { MountType } from "../../proto/gen/embassy/v1/stack.ts";
import { TaskState } from "../../proto/gen/embassy/v1/state.ts";
import type { Register } from "../cli.ts";
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

/** A named volume as `--output json` gives it. */
interface VolumeRow {
  readonly name: string;
  /** `<stack>_<service>` of those that mount it, ascending. */
  readonly services: readonly string[];
  /** Where a task that mounts it is. Each node has a directory of its own for it. */
  readonly nodes: readonly string[];
}

const blobs = (kind: "secrets" | "configs", stack: string): Listing<BlobRow> => ({
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
      .toSorted((a, b) => compare(a.stack, b.stack) || compare(a.name, b.name));
    return { rows, json: { [kind]: rows } };
  },
  columns: () => [
    { title: "NAME", value: ({ stack: owner, name }) => `${owner}_${name}`, shrinkTo: 16 },
    { title: "DIGEST", value: ({ digest }) => digest.slice(0, 12) },
    { title: "SERVICES", value: ({ services }) => services.join(" ") || "-", shrinkTo: 12 },
    { title: "LABELS", value: ({ labels }) => pairs(labels), shrinkTo: 8 },
  ],
});

const volumes = (stack: string): Listing<VolumeRow> => ({
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
    const found = new Map<string, { services: Set<string>; nodes: Set<string> }>();
    const entry = (name: string) => {
      const known = found.get(name) ?? { services: new Set<string>(), nodes: new Set<string>() };
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
    const rows = [...found]
      .toSorted(([a], [b]) => compare(a, b))
      .map(([name, known]) => ({ name, services: [...known.services].toSorted(), nodes: [...known.nodes].toSorted() }));
    return { rows, json: { volumes: rows } };
  },
  columns: () => [
    { title: "NAME", value: ({ name }) => name, shrinkTo: 16 },
    { title: "SERVICES", value: ({ services }) => services.join(" ") || "-", shrinkTo: 12 },
    { title: "NODES", value: ({ nodes }) => nodes.join(" ") || "-", shrinkTo: 12 },
  ],
});

function pairs(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(" ");
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

export const registerStored: Register = (program, cli) => {
  program
    .command("volumes")
    .summary("list volumes")
    .description(
      "Lists the named volumes that services mount, and on which nodes tasks with them are. Each node has a directory of its own for a volume, which stays when its stack is removed; of such the cluster knows nothing any more.",
    )
    .argument("[stack]", "stack")
    .action(async (stack: string | undefined, _options, command) => await show(cli, command, volumes(stack ?? "")));
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
};
