import { describe, expect, it } from "vitest";
import { Healthcheck } from "../../proto/gen/embassy/v1/stack.ts";
import { Health } from "../../proto/gen/embassy/v1/state.ts";
import type { ImageHealthcheck } from "../images/types.ts";
import { afterCheck, type HealthState, healthPolicy, nextCheckMs } from "./policy.ts";

const image: ImageHealthcheck = {
  test: ["CMD", "/probe"],
  intervalMs: 7_000,
  timeoutMs: 0,
  startPeriodMs: 20_000,
  startIntervalMs: 0,
  retries: 2,
};

describe("healthPolicy", () => {
  it("takes the service's fields over the image's over the defaults", () => {
    const own = Healthcheck.create({ test: ["CMD-SHELL", "curl -f localhost || exit 1"], timeoutMs: 1_000 });
    expect(healthPolicy(own, image)).toEqual({
      command: ["/bin/sh", "-c", "curl -f localhost || exit 1"],
      intervalMs: 7_000,
      timeoutMs: 1_000,
      retries: 2,
      startPeriodMs: 20_000,
      startIntervalMs: 5_000,
    });
    expect(healthPolicy(undefined, image)?.command).toEqual(["/probe"]);
    expect(healthPolicy(Healthcheck.create({ retries: 9 }), image)).toMatchObject({ command: ["/probe"], retries: 9 });
  });

  it("has none without a test, and none when the service disables the image's", () => {
    expect(healthPolicy(undefined, undefined)).toBeUndefined();
    expect(healthPolicy(Healthcheck.create({ test: ["NONE"] }), image)).toBeUndefined();
    expect(healthPolicy(undefined, { ...image, test: ["NONE"] })).toBeUndefined();
    expect(healthPolicy(undefined, { ...image, test: [] })).toBeUndefined();
  });
});

describe("afterCheck", () => {
  const policy = healthPolicy(undefined, { ...image, retries: 2, startPeriodMs: 20_000 });
  const good = { ok: true, output: "" };
  const bad = { ok: false, output: "refused" };
  const run = (results: readonly [result: typeof good, atMs: number][]) => {
    let state: HealthState = { health: Health.HEALTH_STARTING, failures: 0, output: "" };
    if (policy === undefined) throw new Error("no policy");
    for (const [result, atMs] of results) state = afterCheck(state, result, policy, atMs);
    return state.health;
  };

  it("does not count failures while it starts, and counts them in a row afterwards", () => {
    expect(
      run([
        [bad, 1_000],
        [bad, 2_000],
        [bad, 3_000],
      ]),
    ).toBe(Health.HEALTH_STARTING);
    expect(
      run([
        [bad, 1_000],
        [bad, 21_000],
      ]),
    ).toBe(Health.HEALTH_STARTING);
    expect(
      run([
        [bad, 21_000],
        [bad, 22_000],
      ]),
    ).toBe(Health.HEALTH_UNHEALTHY);
  });

  it("counts failures within the start period once it was healthy", () => {
    expect(run([[good, 1_000]])).toBe(Health.HEALTH_HEALTHY);
    expect(
      run([
        [good, 1_000],
        [bad, 2_000],
      ]),
    ).toBe(Health.HEALTH_HEALTHY);
    expect(
      run([
        [good, 1_000],
        [bad, 2_000],
        [bad, 3_000],
      ]),
    ).toBe(Health.HEALTH_UNHEALTHY);
    expect(
      run([
        [good, 1_000],
        [bad, 2_000],
        [good, 3_000],
        [bad, 4_000],
      ]),
    ).toBe(Health.HEALTH_HEALTHY);
    expect(
      run([
        [good, 1_000],
        [bad, 2_000],
        [bad, 3_000],
        [good, 4_000],
      ]),
    ).toBe(Health.HEALTH_HEALTHY);
  });

  it("looks more often while it starts", () => {
    if (policy === undefined) throw new Error("no policy");
    const starting: HealthState = { health: Health.HEALTH_STARTING, failures: 0, output: "" };
    expect(nextCheckMs(starting, policy, 0)).toBe(5_000);
    expect(nextCheckMs(starting, policy, 30_000)).toBe(7_000);
    expect(nextCheckMs({ ...starting, health: Health.HEALTH_HEALTHY }, policy, 0)).toBe(7_000);
  });
});
