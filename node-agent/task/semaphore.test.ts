import { expect, it } from "vitest";
import { Semaphore } from "./semaphore.ts";

it("runs no more at once than it may, the most urgent first, and goes on after a failure", async () => {
  const semaphore = new Semaphore(2);
  const order: string[] = [];
  let active = 0;
  const work = (name: string, urgency: number, fails = false) =>
    semaphore
      .run(urgency, async () => {
        active++;
        expect(active).toBeLessThanOrEqual(2);
        order.push(name);
        await new Promise((resolve) => setImmediate(resolve));
        active--;
        if (fails) throw new Error("no");
      })
      .catch(() => undefined);
  await Promise.all([work("a0", 0, true), work("b0", 0), work("c0", 0), work("d2", 2), work("e1", 1), work("f2", 2)]);
  expect(order).toEqual(["a0", "b0", "d2", "f2", "e1", "c0"]);
});
