import { describe, expect, it } from "vitest";
import { silentLog } from "../log/log.ts";
import { ReconcileLoop } from "./loop.ts";

describe("ReconcileLoop", () => {
  it("makes one pass of two marks, and one more for a mark during a pass", async () => {
    const passes: string[] = [];
    await using loop: ReconcileLoop = new ReconcileLoop({
      name: "t",
      log: silentLog,
      reconcile: async (key) => {
        passes.push(key);
        if (passes.length === 1) {
          loop.mark("a");
          loop.mark("a");
        }
        await Promise.resolve();
      },
    });
    loop.mark("a");
    loop.mark("a");
    await loop.idle();
    expect(passes).toEqual(["a", "a"]);
  });

  it("tries a failed key again and goes on with the others", async () => {
    const passes: string[] = [];
    let failures = 2;
    await using loop = new ReconcileLoop({
      name: "t",
      log: silentLog,
      minRetryMs: 1,
      reconcile: async (key) => {
        passes.push(key);
        if (key === "bad" && failures-- > 0) throw new Error("no");
        await Promise.resolve();
      },
    });
    loop.mark("bad");
    loop.mark("good");
    await loop.idle();
    expect(passes.filter((key) => key === "bad")).toHaveLength(3);
    expect(passes.filter((key) => key === "good")).toHaveLength(1);
  });

  it("never works on one key twice at once, and on no more keys than allowed", async () => {
    const active = new Set<string>();
    let most = 0;
    await using loop = new ReconcileLoop({
      name: "t",
      log: silentLog,
      concurrency: 3,
      reconcile: async (key) => {
        expect(active.has(key)).toBe(false);
        active.add(key);
        most = Math.max(most, active.size);
        await new Promise((resolve) => setImmediate(resolve));
        active.delete(key);
      },
    });
    for (let i = 0; i < 50; i++) loop.mark(`k${i % 7}`);
    await loop.idle();
    expect(most).toBe(3);
  });

  it("marks later, and the earliest request counts", async () => {
    const seen = Promise.withResolvers<void>();
    await using loop = new ReconcileLoop({
      name: "t",
      log: silentLog,
      reconcile: async () => {
        seen.resolve();
        await Promise.resolve();
      },
    });
    loop.markAfter("a", 3_600_000);
    loop.markAfter("a", 1);
    await seen.promise;
  });
});
