import type { Healthcheck } from "../../proto/gen/embassy/v1/stack.ts";
import { Health } from "../../proto/gen/embassy/v1/state.ts";
import type { ImageHealthcheck } from "../images/types.ts";

/** A health check with every default filled in. */
export interface HealthPolicy {
  /** What to execute in the container. */
  readonly command: readonly string[];
  readonly intervalMs: number;
  readonly timeoutMs: number;
  /** Failures in a row that make it unhealthy. */
  readonly retries: number;
  /** After the start, failures do not count until one check has succeeded. */
  readonly startPeriodMs: number;
  /** Between checks while it is starting. */
  readonly startIntervalMs: number;
}

/** The service's check over the image's, field by field; undefined: none, or disabled by ["NONE"]. */
export function healthPolicy(
  service: Healthcheck | undefined,
  image: ImageHealthcheck | undefined,
): HealthPolicy | undefined {
  const test = service !== undefined && service.test.length > 0 ? service.test : (image?.test ?? []);
  const command = commandOf(test);
  if (command === undefined) return undefined;
  const pick = (own: number | undefined, inherited: number | undefined, otherwise: number) =>
    own || inherited || otherwise;
  return {
    command,
    intervalMs: pick(service?.intervalMs, image?.intervalMs, 30_000),
    timeoutMs: pick(service?.timeoutMs, image?.timeoutMs, 30_000),
    retries: pick(service?.retries, image?.retries, 3),
    startPeriodMs: pick(service?.startPeriodMs, image?.startPeriodMs, 0),
    startIntervalMs: pick(service?.startIntervalMs, image?.startIntervalMs, 5_000),
  };
}

function commandOf(test: readonly string[]): readonly string[] | undefined {
  const [form, ...words] = test;
  if (words.length === 0) return undefined;
  if (form === "CMD") return words;
  if (form === "CMD-SHELL") return ["/bin/sh", "-c", words.join(" ")];
  return undefined;
}

/** What the checks so far say. */
export interface HealthState {
  readonly health: Health;
  /** In a row. */
  readonly failures: number;
  /** Of the last failure; empty after a success. */
  readonly output: string;
}

export interface CheckResult {
  readonly ok: boolean;
  readonly output: string;
}

/** What one more result makes of it. Pure. */
export function afterCheck(
  state: HealthState,
  result: CheckResult,
  policy: HealthPolicy,
  sinceStartMs: number,
): HealthState {
  if (result.ok) return { health: Health.HEALTH_HEALTHY, failures: 0, output: "" };
  const { output } = result;
  const starting = state.health === Health.HEALTH_STARTING;
  if (starting && sinceStartMs < policy.startPeriodMs) return { ...state, output };
  const failures = state.failures + 1;
  return { health: failures >= policy.retries ? Health.HEALTH_UNHEALTHY : state.health, failures, output };
}

/** How long until the next check. */
export function nextCheckMs(state: HealthState, policy: HealthPolicy, sinceStartMs: number): number {
  const starting = state.health === Health.HEALTH_STARTING && sinceStartMs < policy.startPeriodMs;
  return starting ? Math.min(policy.startIntervalMs, policy.intervalMs) : policy.intervalMs;
}
