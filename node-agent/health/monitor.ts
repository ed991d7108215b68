import type { Clock } from "../../lib/clock/clock.ts";
import { messageOf } from "../../lib/errors/errors.ts";
import { Health } from "../../proto/gen/embassy/v1/state.ts";
import type { Runtime } from "../runtime/types.ts";
import { afterCheck, type CheckResult, type HealthPolicy, type HealthState, nextCheckMs } from "./policy.ts";

export interface MonitorOptions {
  readonly runtime: Pick<Runtime, "exec">;
  readonly clock: Clock;
  readonly taskId: string;
  readonly policy: HealthPolicy;
  /** Where it stood before this process; HEALTH_STARTING for a new container. */
  readonly health: Health;
  readonly startedAtMs: number;
  readonly onChange: (state: HealthState) => void;
}

// What a failed check printed is for a line of a table.
const outputBytes = 256;

/** Checks a container until the signal is aborted, and tells when its health changes. Never rejects. */
export async function watchHealth(options: MonitorOptions, signal: AbortSignal): Promise<void> {
  const { clock, policy } = options;
  const initial = options.health === Health.HEALTH_NONE ? Health.HEALTH_STARTING : options.health;
  let state: HealthState = { health: initial, failures: 0, output: "" };
  if (initial !== options.health) options.onChange(state);
  while (!signal.aborted) {
    const waitMs = nextCheckMs(state, policy, clock.nowMs() - options.startedAtMs);
    await clock.sleep(waitMs, signal).catch(() => undefined);
    if (signal.aborted) return;
    const result = await check(options, signal);
    if (signal.aborted) return;
    const next = afterCheck(state, result, policy, clock.nowMs() - options.startedAtMs);
    const changed = next.health !== state.health;
    state = next;
    if (changed) options.onChange(state);
  }
}

async function check(options: MonitorOptions, signal: AbortSignal): Promise<CheckResult> {
  const { policy } = options;
  const limit = AbortSignal.timeout(policy.timeoutMs);
  try {
    const session = await options.runtime.exec(
      options.taskId,
      { command: policy.command, tty: false, environment: {}, user: "", workingDir: "" },
      AbortSignal.any([signal, limit]),
    );
    const stop = () => session.kill();
    limit.addEventListener("abort", stop, { once: true });
    signal.addEventListener("abort", stop, { once: true });
    try {
      session.stdin.end();
      const output: string[] = [];
      let bytes = 0;
      const keep = (chunk: Buffer | string) => {
        // Read to the end, so that the command never blocks on its output, and kept only as far as it is shown.
        if (bytes < outputBytes) output.push(chunk.toString().slice(0, outputBytes - bytes));
        bytes += chunk.length;
      };
      session.stdout.on("data", keep);
      session.stderr.on("data", keep);
      const { exitCode, message } = await session.exit;
      if (limit.aborted) return { ok: false, output: `no result within ${policy.timeoutMs} ms` };
      const said = (output.join("") || message).trim().replace(/\s+/g, " ");
      return { ok: exitCode === 0, output: said === "" ? `exit code ${exitCode}` : said };
    } finally {
      limit.removeEventListener("abort", stop);
      signal.removeEventListener("abort", stop);
    }
  } catch (error) {
    return { ok: false, output: limit.aborted ? `no result within ${policy.timeoutMs} ms` : messageOf(error) };
  }
}
