import type { Command } from "commander";
import { ClusterError } from "../../lib/errors/errors.ts";
import { type Cli, globalOptions, printJson, type Register } from "../cli.ts";
import { parseCount } from "../duration.ts";
import { count, formatSeconds } from "../render/format.ts";
import { styled } from "../render/style.ts";
import { table } from "../render/table.ts";

// The lab is imported by the commands that need it only.
const lab = async (cli: Cli, name: string | undefined) => {
  const layout = await import("../lab/layout.ts");
  const record = await import("../lab/record.ts");
  const root = layout.labRoot(cli.environment);
  const paths = new layout.LabPaths(root, name ?? record.unnamedLab(root));
  return { layout, paths, require: () => record.requireRecord(paths) };
};

const faultVerbs = {
  kill: "Kills a host with all that runs on it, or one process (SIGKILL)",
  pause: "Stops a host or a process without ending it (SIGSTOP)",
  resume: "Lets a paused host or process go on",
  cut: "Takes a host off the network",
  heal: "Puts a host back on the network",
  start: "Starts a host, or what does not run of it",
} as const;

const faultsDone: Readonly<Record<string, string>> = {
  kill: "is killed",
  pause: "is paused",
  resume: "goes on",
  cut: "is off the network",
  heal: "is on the network",
};

export const registerLab: Register = (program, cli) => {
  const group = program
    .command("lab")
    .summary("a cluster of several hosts on this machine")
    .description(
      "A whole cluster on this machine: its hosts are namespaces, joined by a network of their own. Needs root.",
    );
  const named = (command: Command) =>
    command.option("--name <name>", "name of the lab (default: lab, or the only one that is up)");

  group
    .command("up")
    .description("Brings a lab up, or mends one: hosts, control plane, registry. Makes it the current context.")
    .option("--name <name>", "name of the lab", "lab")
    .option("--hosts <number>", "how many hosts (default: 3, or as many as it has)", parseCount(1))
    .option("--managers <number>", "how many of them are managers (default: 1, or as many as it has)", parseCount(1))
    .option("--subnet <cidr>", "network of the hosts (default: a free one of 10.213.0.0/16)")
    .option("--keep", "when a new lab does not come up, leave it as it is")
    .action(
      async (
        options: { name: string; hosts?: number; managers?: number; subnet?: string; keep?: boolean },
        command,
      ) => {
        const { layout, paths } = await lab(cli, options.name);
        const { bringUp } = await import("../lab/up.ts");
        const startedMs = performance.now();
        const screen = globalOptions(command).output === "json" ? cli.err : cli.out;
        const record = await bringUp(paths, {
          hosts: options.hosts,
          managers: options.managers,
          subnet: options.subnet,
          keep: options.keep === true,
          contexts: cli.contexts,
          step: (text) => {
            const time = ((performance.now() - startedMs) / 1_000).toFixed(1).padStart(5);
            screen.write(`${styled(screen, "dim", `${time}s`)}  ${text}\n`);
          },
          signal: cli.signal,
        });
        screen.write(
          `lab ${record.name} is up: ${count(record.hosts, "host")}, after ${formatSeconds(performance.now() - startedMs)}\n`,
        );
        const registry = `${layout.registryAddress(record)}:${layout.registryPort}`;
        if (globalOptions(command).output === "json") {
          const hosts = layout
            .hostNames(record.hosts)
            .map((name) => ({ name, address: layout.hostAddress(record, name) }));
          printJson(cli, { ...record, registry, hosts });
        } else {
          screen.write(`Push images to ${registry}; in stack files it is registry.lab:${layout.registryPort}.\n`);
          screen.write(`Published ports answer on ${layout.hostAddress(record, "host-1")} and every other host.\n`);
        }
      },
    );

  named(group.command("down"))
    .description("Ends a lab and removes all that it made, also when `lab up` was interrupted.")
    .action(async (options: { name?: string }) => {
      const { paths } = await lab(cli, options.name);
      const { requireRoot } = await import("../lab/requirements.ts");
      requireRoot();
      const { takeDown } = await import("../lab/down.ts");
      const startedMs = performance.now();
      const was = await takeDown(paths);
      cli.contexts.remove(paths.name);
      cli.err.write(
        was
          ? `lab ${paths.name} is down, after ${formatSeconds(performance.now() - startedMs)}\n`
          : `there is no lab ${paths.name}\n`,
      );
    });

  named(group.command("status"))
    .description("Shows the hosts of a lab and what runs on them.")
    .action(async (options: { name?: string }, command) => {
      const { layout, paths, require } = await lab(cli, options.name);
      const record = require();
      const { requireRoot } = await import("../lab/requirements.ts");
      requireRoot();
      const { status } = await import("../lab/faults.ts");
      const hosts = await status(paths, record, (host) => layout.hostAddress(record, host));
      const registry = `${layout.registryAddress(record)}:${layout.registryPort}`;
      if (globalOptions(command).output === "json") printJson(cli, { ...record, registry, hosts });
      else {
        cli.out.write(
          table(
            cli.out,
            [
              { title: "HOST", value: (row) => row.name },
              { title: "ADDRESS", value: (row) => row.address },
              {
                title: "STATE",
                value: (row) => row.state,
                style: (row) => (row.state === "running" ? "green" : "red"),
              },
              { title: "LINK", value: (row) => row.link, style: (row) => (row.link === "up" ? undefined : "red") },
              {
                title: "PROCESSES",
                value: (row) =>
                  Object.entries(row.processes)
                    .map(([name, state]) => (state === "running" ? name : `${name} (${state})`))
                    .join(", "),
              },
            ],
            hosts,
          ),
        );
        cli.err.write(`registry ${registry}; logs in ${paths.directory}/hosts/HOST/log\n`);
      }
    });

  named(group.command("exec"))
    .description("Runs a command on a host: clusterctl lab exec host-1 ip address. Exits with its exit code.")
    .argument("<host>", "host")
    .argument("<command...>", "command and its arguments")
    .action(async (host: string, words: string[], options: { name?: string }) => {
      const { layout, paths, require } = await lab(cli, options.name);
      const { requireRoot } = await import("../lab/requirements.ts");
      requireRoot();
      const target = layout.parseTarget(host, require());
      const { inside, requireInit } = await import("../lab/namespaces.ts");
      const { passThrough } = await import("../lab/run.ts");
      const environment = { ...cli.environment, EMBASSY_LAB: paths.directory };
      cli.exitCode = await passThrough(inside(requireInit(paths, target.host), words), environment);
    });

  for (const [verb, description] of Object.entries(faultVerbs)) {
    named(group.command(verb))
      .description(`${description}.`)
      .argument("<target>", "host-1, or host-1:PROC with PROC clusterd, etcd, noded or netd")
      .action(async (word: string, options: { name?: string }, command) => {
        const { layout, paths, require } = await lab(cli, options.name);
        const record = require();
        const { requireRoot } = await import("../lab/requirements.ts");
        requireRoot();
        const faults = await import("../lab/faults.ts");
        const target = layout.parseTarget(word, record);
        switch (verb) {
          case "kill":
            await faults.kill(paths, target);
            break;
          case "pause":
            faults.pause(paths, target);
            break;
          case "resume":
            faults.resume(paths, target);
            break;
          case "cut":
            await faults.cut(paths, target);
            break;
          case "heal":
            await faults.heal(paths, target);
            break;
          case "start": {
            const started = await faults.start(paths, record, target);
            cli.err.write(started.length === 0 ? `${word} runs already\n` : `started ${started.join(", ")}\n`);
            return;
          }
          default:
            throw new ClusterError(`no such fault: ${verb}`, { code: "internal" });
        }
        if (globalOptions(command).output !== "json") cli.err.write(`${word} ${faultsDone[verb]}\n`);
      });
  }
};
