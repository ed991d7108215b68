/**
 * A netd without a control plane, for tests: run in a host's network namespace, it reads one JSON command a line from stdin
 * and answers each with one line.
 */
import { createInterface } from "node:readline";
import { messageOf } from "../../lib/errors/errors.ts";
import { createLog } from "../../lib/log/log.ts";
import { NetworkState } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { AttachRequest } from "../../proto/gen/embassy/v1/local.ts";
import { Netd } from "../netd.ts";
import { describeBusy } from "../publish/claims.ts";

const [directory = "", level = "warn"] = process.argv.slice(2);

const netd = new Netd({
  log: createLog("netd", level === "debug" ? "debug" : "warn"),
  stateDir: `${directory}/state`,
  runDir: `${directory}/netns`,
  resolvConf: `${directory}/resolv.conf`,
  poolSize: 1,
  connected: () => false,
  portRetryMs: 200,
});

/** How long the test lets an attach wait. */
function waitMsOf(argument: unknown): number {
  const given = typeof argument === "object" && argument !== null && "waitMs" in argument ? argument.waitMs : undefined;
  return typeof given === "number" ? given : 15_000;
}

async function run(command: string, argument: unknown): Promise<unknown> {
  switch (command) {
    case "update":
      await netd.update(NetworkState.fromJSON(argument));
      return netd.status();
    case "attach":
      return await netd.attach(AttachRequest.fromJSON(argument), AbortSignal.timeout(waitMsOf(argument)));
    case "detach":
      await netd.detach(String(argument));
      return {};
    case "attachments":
      return netd.attachments();
    case "status":
      return netd.status();
    case "verify":
      return await netd.verify(argument === true);
    case "busy":
      return netd.busyPorts().map(describeBusy);
    case "repaired":
      return netd.metrics.driftsRepaired;
    case "metrics":
      return netd.formatMetrics();
    case "stop":
      await netd[Symbol.asyncDispose]();
      setImmediate(() => process.exit(0));
      return {};
    default:
      throw new Error(`no command ${command}`);
  }
}

await netd.start();
process.stdout.write('{"ready":true}\n');
for await (const line of createInterface({ input: process.stdin })) {
  const { id, command, argument } = JSON.parse(line) as { id: number; command: string; argument: unknown };
  run(command, argument).then(
    (result) => process.stdout.write(`${JSON.stringify({ id, result })}\n`),
    (error: unknown) => process.stdout.write(`${JSON.stringify({ id, error: messageOf(error) })}\n`),
  );
}
