import type { Command } from "commander";
import { ClusterError } from "../../lib/errors/errors.ts";
import type { ClusterClient, TaintName, UpdateNodeRequest } from "../../proto/gen/embassy/v1/api.ts";
import { Availability, type Taint } from "../../proto/gen/embassy/v1/state.ts";
import { globalOptions, type Register, withCluster } from "../cli.ts";
import { parseDuration } from "../duration.ts";
import { goingOn } from "../exit.ts";
import { oneLine } from "../render/style.ts";
import { formatTaint, parseTaint, taintEffects } from "../taints.ts";

interface DrainOptions {
  readonly timeout: number;
  readonly detach?: boolean;
  readonly dryRun?: boolean;
  readonly force?: boolean;
}

const verbs = {
  activate: {
    availability: Availability.AVAILABILITY_ACTIVE,
    summary: "let nodes have tasks again, several at once, so that what waits is spread over them",
    done: "is active",
  },
  pause: {
    availability: Availability.AVAILABILITY_PAUSE,
    summary: "give nodes no new tasks, and leave those they have",
    done: "is paused: it gets no new tasks",
  },
} as const;

export const registerNode: Register = (program, cli) => {
  const node = program
    .command("node")
    .summary("change nodes")
    .description("Changes nodes; `clusterctl nodes` lists them.");
  /** All of them or none, and all at once: what waits finds places on each that is activated, and none on one that is drained next. */
  const update = async (
    command: Command,
    [name = "", ...more]: readonly string[],
    change: Partial<UpdateNodeRequest>,
  ) => {
    await withCluster(cli, globalOptions(command), async (client) => {
      const { call } = await import("../../lib/grpc/client.ts");
      const request: UpdateNodeRequest = {
        node: name,
        more,
        availability: change.availability,
        setLabels: change.setLabels ?? {},
        removeLabels: change.removeLabels ?? [],
        setTaints: change.setTaints ?? [],
        removeTaints: change.removeTaints ?? [],
        force: change.force ?? false,
      };
      await call(client.updateNode.bind(client), request, { signal: cli.signal });
    });
  };
  const say = (command: Command, text: string) => {
    if (globalOptions(command).output !== "json") cli.err.write(`${oneLine(text)}\n`);
  };
  node
    .command("drain")
    .description(
      "Moves nodes' tasks away, gives them no new ones, and waits until none runs there. Of several, none's tasks move to another of them. A service keeps as many tasks up as its x-disruption.min_available says: what may not stop yet goes on, and the drain waits and says why. Of a node that is down nobody can tell what still runs there: it is stopped when the node comes back.",
    )
    .argument("<name...>", "node's name or id")
    .option("--timeout <time>", "how long to wait", parseDuration, 300_000)
    .option("-d, --detach", "do not wait")
    .option("--force", "although services have to keep tasks up there")
    .option("--dry-run", "only say what would become of its tasks")
    .action(async (names: string[], options: DrainOptions, command) => {
      if (options.dryRun === true) {
        const { foretell } = await import("./simulate.ts");
        await foretell(cli, command, { drain: names, force: options.force === true });
        return;
      }
      const availability = Availability.AVAILABILITY_DRAIN;
      await update(command, names, { availability, force: options.force === true });
      if (options.detach === true) {
        for (const name of names) say(command, `${name} is being drained`);
        return;
      }
      const work = async (client: ClusterClient) => {
        const { replacedOfDown, unplacedTasks, untilDrained } = await import("../convergence/drained.ts");
        const limits = { timeoutMs: options.timeout, screen: cli.err, signal: cli.signal };
        for (const name of names) {
          await untilDrained(client, name, limits);
          const unplaced = await unplacedTasks(client, name, cli.signal);
          const replaced = await replacedOfDown(client, name, cli.signal);
          if (replaced === undefined) say(command, `${name} is drained: no task runs there`);
          else {
            say(
              command,
              `warning: ${name} is drained and down: what still runs there cannot be told, and is stopped when it comes back`,
            );
            if (replaced.length > 0) say(command, `replaced: ${replaced.join(", ")}`);
          }
          for (const { name: task, why } of unplaced) say(command, `warning: ${task} has no place: ${why}`);
        }
      };
      const hint = () =>
        `The cluster goes on with it: \`clusterctl ps --node ${names[0]}\` shows what is left there, \`clusterctl node activate ${names.join(" ")}\` undoes it.`;
      await goingOn(cli.signal, hint, async () => await withCluster(cli, globalOptions(command), work));
    });
  for (const [verb, { availability, summary, done }] of Object.entries(verbs)) {
    node
      .command(verb)
      .description(`${summary.charAt(0).toUpperCase()}${summary.slice(1)}.`)
      .argument("<name...>", "node's name or id")
      .action(async (names: string[], _options, command) => {
        await update(command, names, { availability });
        for (const name of names) say(command, `${name} ${done}`);
      });
  }
  node
    .command("label")
    .description("Sets labels of a node, or removes them: clusterctl node label host-1 zone=a old-.")
    .argument("<name>", "node's name or id")
    .argument("<label...>", "key=value to set, key- to remove")
    .action(async (name: string, words: string[], _options, command) => {
      const setLabels: Record<string, string> = {};
      const removeLabels: string[] = [];
      for (const word of words) {
        const equals = word.indexOf("=");
        if (equals > 0) setLabels[word.slice(0, equals)] = word.slice(equals + 1);
        else if (equals < 0 && word.length > 1 && word.endsWith("-")) removeLabels.push(word.slice(0, -1));
        else {
          throw new ClusterError(`${JSON.stringify(word)} is no label`, {
            code: "invalid",
            subject: word,
            hint: "Give key=value to set one, or key- to remove it.",
          });
        }
      }
      await update(command, [name], { setLabels, removeLabels });
      const set = Object.entries(setLabels).map(([key, value]) => `${key}=${value}`);
      const changes = [
        ...(set.length > 0 ? [`has ${set.join(", ")}`] : []),
        ...(removeLabels.length > 0 ? [`has no ${removeLabels.join(", ")}`] : []),
      ];
      say(command, `${name} ${changes.join("; ")}`);
    });
  node
    .command("taint")
    .description(
      `Keeps tasks off a node that do not tolerate it (x-placement.tolerations), or ends that: clusterctl node taint host-1 gpu:no-schedule old-. An effect is ${[...taintEffects].map(([word, { meaning }]) => `${word} (${meaning})`).join(", ")}.`,
    )
    .argument("<name>", "node's name or id")
    .argument("<taint...>", "key=value:effect or key:effect to set, key- or key:effect- to remove")
    .action(async (name: string, words: string[], _options, command) => {
      const setTaints: Taint[] = [];
      const removeTaints: TaintName[] = [];
      for (const word of words) {
        const parsed = parseTaint(word);
        if (parsed.remove) removeTaints.push({ key: parsed.key, effect: parsed.effect });
        else setTaints.push(parsed.taint);
      }
      await update(command, [name], { setTaints, removeTaints });
      const changes = [
        ...(setTaints.length > 0 ? [`has the taint ${setTaints.map(formatTaint).join(", ")}`] : []),
        ...(removeTaints.length > 0
          ? [
              `has no taint ${words
                .filter((word) => word.endsWith("-"))
                .map((word) => word.slice(0, -1))
                .join(", ")}`,
            ]
          : []),
      ];
      say(command, `${name} ${changes.join("; ")}`);
    });
  node
    .command("rm")
    .description(
      "Forgets nodes that are down. One that is the home of volumes only with --force: tasks that wait for it begin elsewhere with empty volumes.",
    )
    .argument("<name...>", "node's name or id")
    .option("--force", "although volumes have their data there")
    .action(async (names: string[], options: { force?: boolean }, command) => {
      await withCluster(cli, globalOptions(command), async (client) => {
        const { call } = await import("../../lib/grpc/client.ts");
        for (const name of names) {
          const request = { node: name, force: options.force ?? false };
          const { volumes } = await call(client.removeNode.bind(client), request, { signal: cli.signal });
          const lost = volumes.length === 0 ? "" : `, and what it had of ${volumes.join(", ")}`;
          say(command, `${name} is forgotten${lost}`);
        }
      });
    });
};
