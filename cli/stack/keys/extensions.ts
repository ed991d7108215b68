import { plainName, plainNameWords } from "../../../lib/words/plain-name.ts";
import { bool, duration, integer, matching, number, oneOf, text } from "../scalars.ts";
import type { Fail } from "../schema.ts";
import { Bad, key, list, object, record, type ScalarType, scalarType } from "../schema.ts";
import { describeKind, type MapTree } from "../tree.ts";
import { attribute, constraint } from "./deploy.ts";

/** Keys of a service that Compose does not have. Each is strict: an unknown key inside is an error. */

export const loadBalancing = object(
  {
    policy: key(oneOf("rr", "least", "hash", "random2", "nearest"), {
      doc: "Round robin, fewest connections, by the client's address, the better of two at random, or tasks on the same node first.",
      example: "least",
      default: "rr",
    }),
    affinity: key(oneOf("none", "client_ip"), {
      doc: "Whether a client stays with the task it reached first.",
      example: "client_ip",
      default: "none",
    }),
    affinity_ttl: key(duration(1000), {
      doc: "How long it stays after its last connection.",
      example: "30m",
      default: 10_800_000,
    }),
    hold: key(duration(), {
      doc: "How long a new connection waits for a task when there is none; 0s refuses at once.",
      example: "30s",
      default: 10_000,
    }),
    drain: key(duration(), {
      doc: "How long connections may go on to a task that is being stopped.",
      example: "1m",
      default: 10_000,
    }),
    retry: key(integer(0, 10, "a whole number from 0 to 10"), {
      doc: "Further tasks tried when one does not answer a connect.",
      example: "2",
      default: 1,
    }),
    max_connections: key(integer(0, 10_000_000, "a whole number, 0 for no limit"), {
      doc: "Connections to one task at a time; 0 is no limit.",
      example: "500",
      default: 0,
    }),
    tunnel: key(oneOf("auto", "always", "never"), {
      doc: "Whether traffic between hosts goes through a mutual TLS tunnel; `auto` takes it where the overlay is found broken.",
      example: "always",
      default: "auto",
    }),
  },
  { extensions: false, accepts: "a mapping with policy, affinity, hold, drain, retry, max_connections, tunnel" },
);

const portNumber = integer(1, 65535, "a port from 1 to 65535");

const probe = object(
  {
    http: key(
      object(
        {
          path: key(matching(/^\/\S*$/, "a path that begins with /"), {
            doc: "Path asked for.",
            example: "/ready",
            beside: "port: 8080",
            default: "/",
          }),
          port: key(portNumber, { doc: "Port of the container.", example: "8080" }),
          scheme: key(oneOf("http", "https"), {
            doc: "Protocol; a certificate is not checked.",
            example: "https",
            beside: "port: 8443",
            default: "http",
          }),
        },
        { extensions: false, required: ["port"] },
      ),
      { doc: "Passes with a status from 200 to 399.", example: "{path: /ready, port: 8080}" },
    ),
    tcp: key(
      object(
        { port: key(portNumber, { doc: "Port of the container.", example: "5432" }) },
        { extensions: false, required: ["port"] },
      ),
      {
        doc: "Passes when a connection is accepted.",
        example: "{port: 5432}",
      },
    ),
    grpc: key(
      object(
        {
          port: key(portNumber, { doc: "Port of the container.", example: "50051" }),
          service: key(text("a name"), {
            doc: "Service asked about.",
            example: "search",
            beside: "port: 50051",
            default: "",
          }),
        },
        { extensions: false, required: ["port"] },
      ),
      { doc: "Passes when grpc.health.v1 says SERVING.", example: "{port: 50051}" },
    ),
    interval: key(duration(100), {
      doc: "Time between probes.",
      example: "5s",
      beside: "tcp: {port: 5432}",
      default: 10_000,
    }),
    timeout: key(duration(1), {
      doc: "Time that one may take.",
      example: "1s",
      beside: "tcp: {port: 5432}",
      default: 1000,
    }),
    failures: key(integer(1, 1000, "a whole number from 1 to 1000"), {
      doc: "Failures in a row that count.",
      example: "5",
      beside: "tcp: {port: 5432}",
      default: 3,
    }),
    successes: key(integer(1, 1000, "a whole number from 1 to 1000"), {
      doc: "Successes in a row that count.",
      example: "2",
      beside: "tcp: {port: 5432}",
      default: 1,
    }),
  },
  {
    extensions: false,
    accepts: "a mapping with one of http, tcp, grpc",
    check: (tree: MapTree, fail: Fail) => {
      const kinds = ["http", "tcp", "grpc"].filter((kind) => tree.entries.has(kind));
      if (kinds.length !== 1)
        fail(
          tree,
          `takes exactly one of http, tcp, grpc, and found ${kinds.length === 0 ? "none" : kinds.join(" and ")}`,
        );
    },
  },
);

/** `x-probe` */
export const probes = object(
  {
    startup: key(probe, { doc: "Until it passes, the others wait.", example: "{tcp: {port: 5432}, failures: 30}" }),
    readiness: key(probe, {
      doc: "While it fails, no new connections come.",
      example: "{http: {path: /ready, port: 8080}}",
    }),
    liveness: key(probe, { doc: "When it fails, the task is replaced.", example: "{grpc: {port: 50051}}" }),
  },
  { extensions: false, accepts: "a mapping with startup, readiness, liveness" },
);

const CRON_FIELDS = [
  ["minute", 0, 59],
  ["hour", 0, 23],
  ["day of the month", 1, 31],
  ["month", 1, 12],
  ["day of the week", 0, 7],
] as const;
const CRON_NAMES: Readonly<Record<string, readonly string[]>> = {
  month: ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
  "day of the week": ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};
const CRON_WORDS = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/** Five fields of cron(5), or one of its words. */
function cron(): ScalarType<string> {
  const accepts = 'five cron fields such as "30 3 * * *", or a word such as @daily';
  return text(accepts, (value) => {
    if (CRON_WORDS.includes(value)) return undefined;
    const fields = value.trim().split(/\s+/);
    if (fields.length !== 5) return new Bad(`takes ${accepts}, and found ${JSON.stringify(value)}`);
    for (const [index, [name, min, max]] of CRON_FIELDS.entries()) {
      const field = fields[index] ?? "";
      if (!field.split(",").every((part) => isCronPart(part, name, min, max))) {
        return new Bad(`${JSON.stringify(field)} cannot be the ${name}, which goes from ${min} to ${max}`);
      }
    }
    return undefined;
  });
}

function isCronPart(part: string, name: string, min: number, max: number): boolean {
  const match = /^(?:\*|([0-9a-z]+)(?:-([0-9a-z]+))?)(?:\/(\d{1,3}))?$/i.exec(part);
  if (match === null || match[3] === "0") return false;
  const number = (word: string | undefined): number | undefined => {
    if (word === undefined) return undefined;
    if (/^\d+$/.test(word)) return Number(word);
    const at = CRON_NAMES[name]?.indexOf(word.toLowerCase()) ?? -1;
    return at === -1 ? Number.NaN : at + min;
  };
  const from = number(match[1]) ?? min;
  const to = number(match[2]) ?? from;
  return from >= min && to <= max && from <= to;
}

function timezone(): ScalarType<string> {
  return text("a time zone such as Europe/Berlin", (value) => {
    try {
      new Intl.DateTimeFormat("en", { timeZone: value });
      return undefined;
    } catch {
      return new Bad(
        `${JSON.stringify(value)} is not a time zone`,
        "Use a name of the IANA data base, such as Europe/Berlin or UTC.",
      );
    }
  });
}

/** `x-schedule` */
export const schedule = object(
  {
    cron: key(cron(), {
      doc: "When the job starts: five fields of cron(5), or a word such as `@daily`.",
      example: '"30 3 * * *"',
    }),
    timezone: key(timezone(), {
      doc: "Time zone of the fields.",
      example: "Europe/Berlin",
      beside: 'cron: "@daily"',
      default: "UTC",
    }),
    overlap: key(oneOf("forbid", "replace", "allow"), {
      doc: "What happens when the last run is still going.",
      example: "replace",
      beside: 'cron: "@daily"',
      default: "forbid",
    }),
    catch_up: key(duration(), {
      doc: "How late a missed start may still happen; 0s is never.",
      example: "1h",
      beside: 'cron: "@daily"',
      default: 3_600_000,
    }),
    keep: key(integer(0, 1000, "a whole number from 0 to 1000"), {
      doc: "Ended runs that are kept to look at.",
      example: "10",
      beside: 'cron: "@daily"',
      default: 5,
    }),
  },
  { extensions: false, required: ["cron"], accepts: "a mapping with cron, timezone, overlap, catch_up, keep" },
);

/** `x-autoscale` */
export const autoscale = object(
  {
    min: key(integer(0, 100_000, "a whole number"), {
      doc: "Fewest tasks.",
      example: "2",
      beside: "max: 10",
      default: 1,
    }),
    max: key(integer(1, 100_000, "a whole number from 1"), { doc: "Most tasks.", example: "10" }),
    signal: key(oneOf("cpu", "memory", "connections"), {
      doc: "What is watched: use of the reserved CPU or memory in percent, or connections to a task.",
      example: "connections",
      beside: "max: 10\ntarget: 200",
      default: "cpu",
    }),
    target: key(integer(1, 1_000_000, "a whole number from 1"), {
      doc: "Value of the signal that is aimed at.",
      example: "60",
      beside: "max: 10",
      default: 70,
    }),
    window: key(duration(1000), {
      doc: "Time over which the signal is averaged.",
      example: "2m",
      beside: "max: 10",
      default: 60_000,
    }),
  },
  {
    extensions: false,
    required: ["max"],
    accepts: "a mapping with min, max, signal, target, window",
    check: (tree, fail) => {
      const of = (name: string): number | undefined => {
        const value = tree.entries.get(name)?.value;
        return value?.kind === "scalar" && typeof value.value === "number" ? value.value : undefined;
      };
      const max = of("max");
      if (max !== undefined && (of("min") ?? 1) > max)
        fail(tree, `min (${of("min") ?? 1}) is greater than max (${max})`);
    },
  },
);

/** A count or a share in percent. */
function countOrPercent(): ScalarType<string> {
  return matching(/^(\d{1,6}|(\d{1,2}|100)%)$/, "a count such as 2 or a share such as 50%");
}

/** `x-disruption` */
export const disruption = object(
  {
    min_available: key(countOrPercent(), {
      doc: "Slots that stay up, with a healthy task, whatever the cluster does of its own will: a count, or a share of the replicas, rounded up. A drain, an update and a service of higher priority (`x-priority`) stop only tasks above it, and wait for what is down. Where it leaves none to stop, as it is all the replicas, each new task is started before the old one is stopped, also with `order: stop-first`; a deploy is refused when two may not run at once, as they write to a volume or a directory of the host. It does not hold back what is lost, scaled away or removed. See [operations](operations.md#what-a-drain-and-an-update-may-stop).",
      example: "50%",
      default: "0",
    }),
    rebalance: key(bool(), {
      doc: "Whether the cluster moves running tasks by itself to spread the service evenly again: once a node has joined, come back, been activated or labelled anew, and all is at rest. One task after the other, each started before the old one is stopped, and no more of them in a row than there are above `min_available`. Services with volumes stay where their data is, and so do those with a `container_name`.",
      example: "true",
      default: false,
    }),
  },
  { extensions: false, accepts: "a mapping with min_available, rebalance" },
);

const taintKey = matching(plainName, `the key of a taint: ${plainNameWords}`);

const weight = key(integer(1, 100, "a whole number from 1 to 100"), {
  doc: "How strong the wish is; 100 weighs as much as one more task of the same service on the node; of another service each of its tasks counts, up to ten.",
  example: "80",
  beside: "service: db",
  default: 50,
});

const affinity = object(
  {
    node: key(constraint(), {
      doc: "Nodes that meet this constraint.",
      example: "node.labels.disk == ssd",
    }),
    service: key(text("a service"), { doc: "Where tasks of this service of the stack are.", example: "db" }),
    over: key(attribute(), {
      doc: "With `service`: what has to be the same, `node.id` for the same node or a label for the same zone.",
      example: "node.labels.zone",
      beside: "service: db",
      defaultNote: "`node.id`",
    }),
    weight,
  },
  {
    extensions: false,
    accepts: "a mapping with node or service, over, weight",
    check: (tree, fail) => {
      if (tree.entries.has("node") === tree.entries.has("service")) fail(tree, "takes exactly one of node, service");
      if (tree.entries.has("node") && tree.entries.has("over")) fail(tree, "over goes with service only");
    },
  },
);

/** `x-placement` */
export const placement = object(
  {
    spread: key(
      list(
        object(
          {
            over: key(attribute(), {
              doc: "Attribute over whose values tasks are spread.",
              example: "node.labels.zone",
            }),
            max_skew: key(integer(1, 100_000, "a whole number from 1"), {
              doc: "Most tasks that one value may have more than the emptiest that the service could use. Above that a task waits; nodes without the attribute get none, and values whose nodes are all drained, paused or down do not count.",
              example: "1",
              beside: "over: node.labels.zone",
            }),
            shares: key(
              record(number(0, 1_000_000, "a number from 0 to 1000000"), { accepts: "a mapping of values to shares" }),
              {
                doc: "How many tasks each value should have, relative to the others; without it, as many each.",
                example: "{a: 70, b: 30}",
                beside: "over: node.labels.zone",
                defaultNote: "equal shares",
              },
            ),
            other_share: key(number(0, 1_000_000, "a number from 0 to 1000000"), {
              doc: "Share of each value that `shares` does not name.",
              example: "0",
              beside: "over: node.labels.zone\nshares: {a: 1}",
              defaultNote: "1",
            }),
          },
          {
            extensions: false,
            required: ["over"],
            accepts: "a mapping with over, max_skew, shares, other_share",
            check: (tree, fail) => {
              if (tree.entries.has("other_share") && !tree.entries.has("shares"))
                fail(tree, "has other_share, and no shares");
            },
          },
        ),
        { accepts: "a list of attributes to spread over" },
      ),
      {
        doc: "Spreads tasks over the values of attributes, the first above all, in the shares and within the bounds that are given. In place of `deploy.placement.preferences`, which spreads evenly.",
        example: "[{over: node.labels.zone, max_skew: 1}]",
      },
    ),
    affinity: key(list(affinity, { accepts: "a list of affinities" }), {
      doc: "What tasks are drawn to: nodes, or tasks of other services. A wish and no condition: they run elsewhere rather than not at all.",
      example: "[{service: db, over: node.labels.zone}]",
    }),
    anti_affinity: key(list(affinity, { accepts: "a list of affinities" }), {
      doc: "What tasks keep away from, in the same words.",
      example: "[{node: node.labels.disk == hdd, weight: 20}]",
    }),
    strategy: key(oneOf("spread", "binpack"), {
      doc: "Between nodes that are as good otherwise: the one with most free, or the one with least free that has room.",
      example: "binpack",
      default: "spread",
    }),
    tolerations: key(
      list(
        object(
          {
            key: key(taintKey, { doc: "Key of the taint; without it every taint is meant.", example: "gpu" }),
            value: key(text("the value of a taint"), {
              doc: "Its value; without it every value is meant.",
              example: "a100",
              beside: "key: gpu",
            }),
            effect: key(oneOf("no-schedule", "prefer-no-schedule", "no-execute"), {
              doc: "Its effect; without it every effect is meant.",
              example: "no-schedule",
              beside: "key: gpu",
            }),
          },
          {
            extensions: false,
            accepts: "a mapping with key, value, effect",
            check: (tree, fail) => {
              if (tree.entries.has("value") && !tree.entries.has("key")) fail(tree, "has a value, and no key");
            },
          },
        ),
        { accepts: "a list of tolerations" },
      ),
      {
        doc: "Taints of nodes (`clusterctl node taint`) that do not keep the service's tasks off. Each says which by key, value and effect; what is left out matches all.",
        example: "[{key: gpu, effect: no-schedule}]",
      },
    ),
  },
  { extensions: false, accepts: "a mapping with spread, affinity, anti_affinity, strategy, tolerations" },
);

/** What running tasks do when a config or secret that they use changes. */
export function onChange(): ScalarType<string> {
  const accepts = "restart, none or a signal such as SIGHUP";
  return scalarType({
    accepts,
    parse: (scalar) =>
      /^(restart|none|SIG[A-Z0-9+-]{2,9})$/.test(scalar.text)
        ? scalar.text
        : new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`),
    format: (value) => value,
  });
}
