import { ClusterError } from "../../lib/errors/errors.ts";
import { nearest } from "../../lib/words/nearest.ts";
import type { ClusterClient } from "../../proto/gen/embassy/v1/api.ts";
import { globalOptions, printJson, type Register, withCluster } from "../cli.ts";
import { jsonOf } from "../json.ts";
import { taskName } from "../names.ts";
import { blobs, volumes } from "./stored.ts";

export const inspectKinds = ["stack", "service", "task", "node", "network", "volume", "secret", "config"] as const;
type Kind = (typeof inspectKinds)[number];

export const registerInspect: Register = (program, cli) => {
  program
    .command("inspect")
    .summary("print all that is known of one thing")
    .description(
      "Prints all that the cluster knows of one thing, as JSON. What is in a secret or a config is not shown.",
    )
    .argument("<kind/name>", `${inspectKinds.join(", ")}, a slash, and its name or id: service/counter_web`)
    .action(async (subject: string, _options, command) => {
      const slash = subject.indexOf("/");
      const kind = inspectKinds.find((known) => known === subject.slice(0, slash));
      if (slash < 1 || kind === undefined) {
        throw new ClusterError(`${JSON.stringify(subject)} is not KIND/NAME`, {
          code: "invalid",
          hint: `KIND is one of ${inspectKinds.join(", ")}: clusterctl inspect ${subject.includes("/") ? "service/counter_web" : `${/\.\w+$/.test(subject) ? "task" : "service"}/${subject}`}`,
        });
      }
      await withCluster(cli, globalOptions(command), async (client) => {
        const all = await list(kind, client, cli.signal);
        const name = subject.slice(slash + 1);
        // A name belongs to the newest of several tasks, and to one service or network at most when it says the stack.
        const found = all.filter(({ names }) => names.includes(name)).toSorted((a, b) => b.createdAtMs - a.createdAtMs);
        const [first, second] = found;
        if (first === undefined) {
          const similar = nearest(
            name,
            all.flatMap(({ names }) => names),
          );
          throw new ClusterError(`there is no ${kind} ${name}`, {
            code: "not-found",
            subject,
            ...(similar === undefined ? {} : { hint: `Did you mean ${kind}/${similar}?` }),
          });
        }
        if (second !== undefined && kind !== "task") {
          throw new ClusterError(`there are several: ${found.map(({ names }) => `${kind}/${names[0]}`).join(", ")}`, {
            code: "invalid",
            subject,
            hint: "Give the whole name.",
          });
        }
        printJson(cli, first.json());
      });
    });
};

interface Item {
  readonly names: readonly string[];
  readonly createdAtMs: number;
  readonly json: () => unknown;
}

async function list(kind: Kind, client: ClusterClient, signal: AbortSignal): Promise<Item[]> {
  const { call } = await import("../../lib/grpc/client.ts");
  const api = await import("../../proto/gen/embassy/v1/api.ts");
  const limits = { signal };
  switch (kind) {
    case "stack": {
      const { stacks } = await call(client.listStacks.bind(client), {}, limits);
      return stacks.map((view) => ({ names: [view.name], createdAtMs: 0, json: () => jsonOf(api.StackView, view) }));
    }
    case "service": {
      const { services } = await call(client.listServices.bind(client), { stack: "" }, limits);
      return services.map((view) => {
        const { id = "", stack = "", spec, createdAtMs = 0 } = view.service ?? {};
        const name = spec?.name ?? "";
        return { names: [`${stack}_${name}`, name, id], createdAtMs, json: () => jsonOf(api.ServiceView, view) };
      });
    }
    case "task": {
      const request = { stack: "", service: "", node: "", all: true };
      const { tasks } = await call(client.listTasks.bind(client), request, limits);
      return tasks.map((view) => ({
        names: [taskName(view), taskName(view).slice((view.task?.stack.length ?? 0) + 1), view.task?.id ?? ""],
        createdAtMs: view.task?.createdAtMs ?? 0,
        json: () => jsonOf(api.TaskView, view),
      }));
    }
    case "node": {
      const { nodes } = await call(client.listNodes.bind(client), {}, limits);
      return nodes.map((view) => ({
        names: [view.spec?.name ?? "", view.spec?.id ?? ""],
        createdAtMs: 0,
        json: () => jsonOf(api.NodeView, view),
      }));
    }
    case "network": {
      const { networks } = await call(client.listNetworks.bind(client), {}, limits);
      return networks.map((view) => {
        const { id = "", stack = "", spec } = view.network ?? {};
        const name = spec?.name ?? "";
        return { names: [`${stack}_${name}`, name, id], createdAtMs: 0, json: () => jsonOf(api.NetworkView, view) };
      });
    }
    case "volume": {
      const { rows } = await volumes("").read(client, signal);
      return rows.map((row) => ({ names: [row.name], createdAtMs: 0, json: () => row }));
    }
    case "secret":
    case "config": {
      const { rows } = await blobs(`${kind}s`, "").read(client, signal);
      return rows.map((row) => ({ names: [`${row.stack}_${row.name}`, row.name], createdAtMs: 0, json: () => row }));
    }
    default:
      return kind satisfies never;
  }
}
