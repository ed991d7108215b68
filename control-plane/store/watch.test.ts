import { expect, it } from "vitest";
import { Event, KeyValue } from "../../proto/gen/etcd/kv.ts";
import { Gatherer } from "./watch.ts";
import { WatchedEvent } from "./watch-response.ts";

const event = (revision: number, key: string) => {
  const kv = KeyValue.create({ key: Buffer.from(key), modRevision: BigInt(revision) });
  const bytes = Buffer.from(Event.encode(Event.create({ kv })).finish());
  return new WatchedEvent(bytes, 0, bytes.length);
};

it("a Gatherer gives out whole revisions, however etcd cuts its responses", () => {
  const events = [event(2, "a"), event(3, "b"), event(3, "c"), event(3, "d"), event(5, "e")];
  for (let first = 0; first <= events.length; first++) {
    for (let second = first; second <= events.length; second++) {
      const seen: string[] = [];
      const gatherer = new Gatherer(({ revision, events: all }) =>
        seen.push(`${revision}:${all.map(({ key }) => key).join("")}`),
      );
      gatherer.add(events.slice(0, first), true);
      gatherer.add(events.slice(first, second), true);
      expect(seen).toEqual([]);
      gatherer.add(events.slice(second), false);
      expect(seen).toEqual(["2:a", "3:bcd", "5:e"]);
    }
  }
});
