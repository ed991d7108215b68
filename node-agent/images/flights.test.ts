import { describe, expect, it } from "vitest";
import { Flights, Gate } from "./flights.ts";

/** A promise to be settled by hand. */
function deferred<T>() {
  let resolve: (value: T) => void = () => {};
  let reject: (error: unknown) => void = () => {};
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

describe("Flights", () => {
  it("does work once for all who want it, and again afterwards", async () => {
    const flights = new Flights<number>();
    const work = deferred<number>();
    let begun = 0;
    const begin = async () => {
      begun += 1;
      return await work.promise;
    };
    const both = [flights.join("a", undefined, begin), flights.join("a", undefined, begin)];
    work.resolve(7);
    expect(await Promise.all(both)).toEqual([7, 7]);
    expect(begun).toBe(1);
    await flights.join("a", undefined, begin);
    expect(begun).toBe(2);
  });

  it("lets one caller leave without ending the work of the other", async () => {
    const flights = new Flights<number>();
    const work = deferred<number>();
    const leaving = new AbortController();
    const left = flights.join("a", leaving.signal, async () => await work.promise);
    const stays = flights.join("a", undefined, async () => await work.promise);
    leaving.abort(new Error("enough"));
    await expect(left).rejects.toThrow("enough");
    work.resolve(1);
    expect(await stays).toBe(1);
  });

  it("aborts the work when the last caller has left", async () => {
    const flights = new Flights<number>();
    const leaving = new AbortController();
    let seen: AbortSignal | undefined;
    const work = deferred<number>();
    const left = flights.join("a", leaving.signal, async (signal) => {
      seen = signal;
      return await work.promise;
    });
    leaving.abort(new Error("enough"));
    await expect(left).rejects.toThrow("enough");
    expect(seen?.aborted).toBe(true);
    work.reject(new Error("stopped"));
  });
});

describe("Gate", () => {
  it("runs no more at once than its limit, in order", async () => {
    const gate = new Gate(2);
    const order: number[] = [];
    let running = 0;
    let most = 0;
    await Promise.all(
      [0, 1, 2, 3, 4].map(async (index) => {
        await gate.run(async () => {
          running += 1;
          most = Math.max(most, running);
          order.push(index);
          await Promise.resolve();
          running -= 1;
        });
      }),
    );
    expect(most).toBe(2);
    expect(order).toEqual([0, 1, 2, 3, 4]);
  });

  it("goes on after work that failed", async () => {
    const gate = new Gate(1);
    await expect(gate.run(async () => await Promise.reject(new Error("no")))).rejects.toThrow("no");
    expect(await gate.run(async () => await Promise.resolve(1))).toBe(1);
  });
});
