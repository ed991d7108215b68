import { plainName, plainNameWords } from "../../../lib/words/plain-name.ts";
import { bytes, cpus, duration, integer, matching, number, oneOf, text } from "../scalars.ts";
import { Bad, key, later, list, object, type ScalarType } from "../schema.ts";
import type { Tree } from "../tree.ts";
import { labels } from "./common.ts";

const MAX_UINT32 = 4_294_967_295;

const OPERATORS = '==, !=, =~, !~, <, <=, >, >=, "in (a, b)", "not in (a, b)", exists and "not exists"';
const CONSTRAINT =
  /^([^\s=!<>~]+)\s*(?:(?:==|!=|=~|!~|<=|>=|<|>)\s*(\S.*)|(?:not\s+)?in\s*(\(.*\))|(?:not\s+)?exists)$/i;

/** An attribute of a node, for tasks to be spread over. */
export function attribute(): ScalarType<string> {
  return text("an attribute such as node.labels.zone", checkAttribute);
}

/** An attribute of a node, an operator, a value: the part of the scheduler's language that can be checked without it. */
export function constraint(): ScalarType<string> {
  const accepts = "a constraint such as node.labels.zone == a or node.role != manager";
  return text(accepts, (value) => {
    const match = CONSTRAINT.exec(value.trim());
    if (match === null)
      return new Bad(`takes ${accepts}, and found ${JSON.stringify(value)}`, `Operators are ${OPERATORS}.`);
    if (match[3] !== undefined && !/^\(\s*[^\s,()]+(\s*,\s*[^\s,()]+)*\s*\)$/.test(match[3])) {
      return new Bad(`takes values in brackets such as (a, b), and found ${match[3]}`);
    }
    return checkAttribute(match[1] ?? "");
  });
}

const ATTRIBUTES = ["node.id", "node.hostname", "node.role", "node.platform.os", "node.platform.arch"];

function checkAttribute(attribute: string): Bad | undefined {
  if (ATTRIBUTES.includes(attribute.toLowerCase()) || /^node\.labels\../i.test(attribute)) return undefined;
  const hint = attribute.startsWith("engine.labels.")
    ? "Nodes have labels of the cluster only: clusterctl node sets them, and node.labels.<name> reads them."
    : `Attributes are ${ATTRIBUTES.join(", ")} and node.labels.<name>.`;
  return new Bad(`${JSON.stringify(attribute)} is not an attribute of a node`, hint);
}

const UPDATE_FAILS =
  "What follows when more tasks fail while they are watched than `max_failure_ratio` allows. `pause`: no other is replaced until those stay up. `rollback`: the service goes back to what it was when all of it last ran, as `rollback_config` says, and `deploy` ends with exit code 3. `continue`: the others are replaced all the same.";
const ROLLBACK_FAILS =
  "What follows when tasks fail while the service goes back. `pause`: no other is put back until those stay up. `continue`: the others are put back all the same.";

const updateConfig = (what: string, explained: string, actions: ScalarType<"continue" | "pause" | "rollback">) =>
  object({
    parallelism: key(integer(0, MAX_UINT32, "a whole number, 0 for all at once"), {
      doc: `Tasks ${what} at a time; 0 is all at once.`,
      example: "2",
      default: 1,
    }),
    delay: key(duration(), { doc: "Pause between one group and the next.", example: "10s", default: 0 }),
    failure_action: key(actions, {
      doc: explained,
      example: "continue",
      default: "pause",
    }),
    monitor: key(duration(), {
      doc: "How long a new task is watched for failure: one that ends within that, or is never up, has failed, and so has one that fits nowhere for as long though the one before had a place.",
      example: "30s",
      default: 5000,
    }),
    max_failure_ratio: key(number(0, 1, "a number from 0 to 1"), {
      doc: "Share of the service's tasks that may fail without action.",
      example: "0.2",
      default: 0,
    }),
    order: key(oneOf("stop-first", "start-first"), {
      doc: "Whether the old task stops before or after the new one is ready. After it, whatever is said here, where `x-disruption.min_available` leaves none to stop.",
      example: "start-first",
      default: "stop-first",
    }),
  });

const DEVICES = ["[].capabilities", "[].count", "[].device_ids", "[].driver", "[].options"];

export { DEVICES as DEVICE_KEYS };

/** A file on top gives another count of the same resource. */
function resourceOf(item: Tree): string | undefined {
  const spec = item.kind === "map" ? item.entries.get("discrete_resource_spec")?.value : undefined;
  const kind = spec?.kind === "map" ? spec.entries.get("kind")?.value : undefined;
  return kind?.kind === "scalar" ? kind.text : undefined;
}

/** `services.*.deploy` */
export const deploy = object({
  mode: key(oneOf("replicated", "global", "replicated-job", "global-job"), {
    doc: "`replicated` keeps a number of tasks, `global` one on each node; the `-job` modes run tasks to their end.",
    example: "global",
    default: "replicated",
  }),
  replicas: key(integer(0, 100_000, "a whole number from 0 to 100000"), {
    doc: "How many tasks.",
    example: "3",
    defaultNote: "1 in the replicated modes",
  }),
  endpoint_mode: key(oneOf("vip", "dnsrr"), {
    doc: "Whether the service's name answers with one stable address or with those of its tasks.",
    example: "dnsrr",
    default: "vip",
  }),
  labels: key(labels(), {
    doc: "Labels of the service (those of its containers are `labels` beside `deploy`).",
    example: "{team: search}",
  }),
  placement: key(
    object({
      constraints: key(list(constraint(), { accepts: "a list of constraints" }), {
        doc: "All of these must hold for a node: an attribute (id, hostname, role, platform, labels), an operator (`==`, `!=`, `=~`, `!~`, `<`, `<=`, `>`, `>=`, `in (a, b)`, `not in (a, b)`, `exists`, `not exists`) and a value. The role of a node is `manager` when its host runs clusterd (a member has its address or name), else `worker`. Architectures have their OCI names (amd64, arm64) or those of the kernel (x86_64, aarch64).",
        example: '["node.labels.zone == a"]',
      }),
      preferences: key(
        list(
          object(
            {
              spread: key(attribute(), {
                doc: "Spreads tasks evenly over the values of an attribute.",
                example: "node.labels.zone",
              }),
            },
            { required: ["spread"] },
          ),
          { accepts: "a list of preferences" },
        ),
        { doc: "What decides between nodes that fit, in order.", example: "[{spread: node.labels.zone}]" },
      ),
      max_replicas_per_node: key(integer(0, MAX_UINT32, "a whole number, 0 for no limit"), {
        doc: "Most tasks of the service on one node; 0 is no limit.",
        example: "1",
        default: 0,
      }),
    }),
    { doc: "Where tasks may run.", example: "{max_replicas_per_node: 1}" },
  ),
  resources: key(
    object({
      limits: key(
        object({
          cpus: key(cpus(), { doc: "Most CPU time, in CPUs.", example: '"0.5"' }),
          memory: key(bytes(4 * 2 ** 20), {
            doc: "Most memory; the task is killed when it needs more.",
            example: "512m",
          }),
          pids: key(integer(-1, 4_194_304, "a whole number, or -1 for no limit"), {
            doc: "Most processes and threads; -1 is no limit.",
            example: "200",
          }),
        }),
        { doc: "What a task cannot exceed.", example: "{memory: 512m}" },
      ),
      reservations: key(
        object({
          cpus: key(cpus(), { doc: "CPUs that the scheduler keeps free for a task.", example: '"0.25"' }),
          memory: key(bytes(0), { doc: "Memory that the scheduler keeps free for a task.", example: "256m" }),
          generic_resources: key(
            list(
              object(
                {
                  discrete_resource_spec: key(
                    object(
                      {
                        kind: key(matching(plainName, `the name of a resource: ${plainNameWords}`), {
                          doc: "Name of the resource.",
                          example: "ssd",
                          beside: "value: 2",
                        }),
                        value: key(integer(0, Number.MAX_SAFE_INTEGER, "a whole number"), {
                          doc: "How many.",
                          example: "2",
                          beside: "kind: ssd",
                        }),
                      },
                      { required: ["kind", "value"] },
                    ),
                    { doc: "A resource that is counted.", example: "{kind: ssd, value: 2}" },
                  ),
                },
                { required: ["discrete_resource_spec"] },
              ),
              { unique: resourceOf },
            ),
            {
              doc: "Counted resources that nodes announce (`noded --generic-resource`): a task runs where as many are free.",
              example: "[{discrete_resource_spec: {kind: ssd, value: 2}}]",
            },
          ),
          devices: later({
            doc: "Devices such as GPUs.",
            example: "[{capabilities: [gpu], count: 1}]",
            why: "devices are not scheduled yet",
            instead: "announce them as generic resources and constrain the service to the nodes that have them",
            below: DEVICES,
          }),
        }),
        { doc: "What the scheduler keeps free for a task.", example: "{memory: 256m}" },
      ),
    }),
    { doc: "Processor, memory and other resources of one task.", example: "{limits: {memory: 512m}}" },
  ),
  restart_policy: key(
    object({
      condition: key(oneOf("any", "on-failure", "none"), {
        doc: "Which ends of a task are followed by a new one. A job, and a service whose completion another waits for, has `on-failure` when nothing is said.",
        example: "on-failure",
        default: "any",
      }),
      delay: key(duration(), {
        doc: "First delay; it doubles with each failure in the window, up to one minute.",
        example: "2s",
        default: 1000,
      }),
      max_attempts: key(integer(0, MAX_UINT32, "a whole number, 0 for no limit"), {
        doc: "New tasks within the window before giving up; 0 is no limit.",
        example: "5",
        default: 0,
      }),
      window: key(duration(), {
        doc: "Time over which attempts are counted; 0 is forever.",
        example: "2m",
        default: 0,
      }),
    }),
    { doc: "What happens when a task ends.", example: "{condition: on-failure}", defaultNote: "`restart`, else any" },
  ),
  update_config: key(updateConfig("are replaced", UPDATE_FAILS, oneOf("continue", "pause", "rollback")), {
    doc: "How a change of the service is rolled out.",
    example: "{parallelism: 2, order: start-first}",
  }),
  rollback_config: key(
    updateConfig(
      "are put back",
      ROLLBACK_FAILS,
      oneOf("continue", "pause") as unknown as ScalarType<"continue" | "pause" | "rollback">,
    ),
    { doc: "How a change that failed is taken back, with `failure_action: rollback`.", example: "{parallelism: 0}" },
  ),
});
