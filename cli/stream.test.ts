import { credentials } from "@grpc/grpc-js";
import { expect, it } from "vitest";
import { ClusterClient } from "../proto/gen/embassy/v1/api.ts";
import { messages } from "./stream.ts";

const client = () => new ClusterClient("ipv4:127.0.0.1:1", credentials.createInsecure());
const signal = new AbortController().signal;
// Streams fail from the event loop's next turns on; what nobody listens to ends the process, and fails this test.
const turns = async () => {
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
};

it("a stream that nobody reads fails in silence when its client is closed, and whoever reads it later is told", async () => {
  const one = client();
  const unread = messages(one.watchStack({ stack: "a" }), signal);
  const duplex = messages(one.exec(), signal);
  one.close();
  await turns();
  for (const late of [unread, duplex]) await expect(late.next()).rejects.toMatchObject({ code: "unavailable" });
});
