import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Protocol, PublishMode } from "../../proto/gen/embassy/v1/stack.ts";
import { Ledger } from "./ledger.ts";

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "netd-ledger-"));
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

const attachment = (taskId: string) => ({
  taskId,
  serviceId: "web",
  slot: 1,
  addresses: [{ networkId: "net", address: "10.96.0.2" }],
  hostPorts: [
    {
      target: 80,
      published: 8080,
      protocol: Protocol.PROTOCOL_UDP,
      mode: PublishMode.PUBLISH_MODE_HOST,
      hostIp: "",
      name: "",
    },
  ],
  netns: "/run/x",
  resolvers: [],
});

describe("Ledger", () => {
  it("holds what was saved, and nothing beside it", async () => {
    const path = join(directory, "deep", "attachments.json");
    const ledger = new Ledger(path);
    await ledger.load();
    ledger.attachments.set("a", attachment("a"));
    ledger.resting.set("10.96.0.9", Date.now());
    ledger.resting.set("10.96.0.8", 0);
    await ledger.save();
    const again = new Ledger(path);
    await again.load();
    expect(again.attachments).toEqual(ledger.attachments);
    expect([...again.resting.keys()]).toEqual(["10.96.0.9"]);
    expect(await readdir(join(directory, "deep"))).toEqual(["attachments.json"]);
  });

  it("has in the file, when a save resolves, what it held when save was called", async () => {
    const path = join(directory, "attachments.json");
    const ledger = new Ledger(path);
    const saves = ["a", "b", "c", "d"].map(async (id) => {
      ledger.attachments.set(id, attachment(id));
      await ledger.save();
      expect(await readFile(path, "utf8")).toContain(`"taskId":"${id}"`);
    });
    await Promise.all(saves);
  });

  it("is an error when it cannot be understood, and not an empty one", async () => {
    const path = join(directory, "attachments.json");
    await writeFile(path, '{"format":9}');
    await expect(new Ledger(path).load()).rejects.toThrow(/cannot be read/);
  });
});
