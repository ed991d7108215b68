import { expect, it } from "vitest";
import { Outages } from "./followed-logs.ts";

it("an outage is told once, and its end when the last stream is back", () => {
  const said: string[] = [];
  const outages = new Outages((text) => said.push(text.split(":")[0] ?? ""));
  const broke = "the connection to the cluster broke off, trying again";
  outages.broke();
  outages.broke();
  outages.back();
  expect(said).toEqual([broke]);
  outages.back();
  outages.broke();
  expect(said).toEqual([broke, "connected again", broke]);
});
