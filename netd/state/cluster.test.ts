import { describe, expect, it } from "vitest";
import { NetworkState } from "../../proto/gen/embassy/v1/dispatcher.ts";
import { StateBuilder } from "../testing/states.ts";
import { ClusterState } from "./cluster.ts";

const full = () =>
  new StateBuilder()
    .host("h0", "172.31.99.1")
    .host("h1", "172.31.99.2")
    .network("net", 1, ["h0", "h1"])
    .service("web", { net: "10.112.0.1" }, { links: [{ serviceId: "db", alias: "db" }] })
    .service("db", { net: "10.112.0.2" })
    .endpoint("t2", "db", "h1", { net: "10.96.16.35" }, { slot: 2 })
    .endpoint("t1", "db", "h0", { net: "10.96.16.2" });

const sizes = (state: ClusterState) =>
  [state.hosts, state.networks, state.services, state.endpoints].map(({ size }) => size);

describe("ClusterState", () => {
  it("takes a snapshot as a delta that also removes what it lacks", () => {
    const state = new ClusterState();
    const cluster = full();
    state.apply(cluster.for("h0"));
    cluster.endpoints.delete("t1");
    cluster.services.delete("web");
    const changes = state.apply(cluster.for("h0"));
    expect(sizes(state)).toEqual([2, 1, 1, 1]);
    expect([[...changes.services.keys()], [...changes.endpoints.keys()], changes.hosts.size]).toEqual([
      ["web"],
      ["t1"],
      0,
    ]);
    expect(changes.endpoints.get("t1")?.addresses[0]?.address).toBe("10.96.16.2");
    expect([...state.consumersOf("db")]).toEqual([]);
  });

  it("keeps, in a delta, what it does not name", () => {
    const state = new ClusterState();
    state.apply(full().for("h0"));
    const delta = NetworkState.fromPartial({ revision: 9, removed: { endpoints: ["t2", "unknown"] } });
    expect([...state.apply(delta).endpoints.keys()]).toEqual(["t2"]);
    expect(sizes(state)).toEqual([2, 1, 2, 1]);
    expect([state.revision, state.settings.vipPool, state.settings.nodeId]).toEqual([9, "10.112.0.0/16", "h0"]);
  });

  it("sees no change in what is the same", () => {
    const state = new ClusterState();
    const cluster = full();
    state.apply(cluster.for("h0"));
    const changes = state.apply(cluster.for("h0"));
    expect([changes.settings, changes.hosts.size, changes.networks.size, changes.services.size]).toEqual([
      false,
      0,
      0,
      0,
    ]);
  });

  it("answers by its indexes, endpoints by slot", () => {
    const state = new ClusterState();
    state.apply(full().for("h0"));
    expect(state.endpointsOf("db").map(({ taskId }) => taskId)).toEqual(["t1", "t2"]);
    expect([...state.consumersOf("db")]).toEqual(["web"]);
    expect([...state.servicesOfNetwork("net")].sort()).toEqual(["db", "web"]);
    expect(state.ownBlocks("net")).toEqual(["10.96.16.0/27"]);
    expect([...state.networksOfHost("h1")]).toEqual(["net"]);
  });

  it("comes back from its snapshot as it was", () => {
    const state = new ClusterState();
    state.apply(full().for("h0"));
    const again = new ClusterState();
    again.apply(NetworkState.decode(NetworkState.encode(state.snapshot()).finish()));
    expect(again.snapshot()).toEqual(state.snapshot());
  });
});
