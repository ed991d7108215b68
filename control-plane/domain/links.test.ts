import { describe, expect, it } from "vitest";
import { ExposedPort, Link, Protocol, PublishedPort } from "../../proto/gen/embassy/v1/stack.ts";
import { SteppedCluster } from "../controllers/testing.ts";
import { linkEnvironment } from "./links.ts";
import { aService, aStack, replicas } from "./testing.ts";

describe("the environment of a link", () => {
  it("is Docker's, with the provider's virtual address", async () => {
    using cluster = new SteppedCluster();
    await cluster.addNodes("a");
    const exposed = [
      ExposedPort.create({ port: 6380 }),
      ExposedPort.create({ port: 53, protocol: Protocol.PROTOCOL_UDP }),
    ];
    const ports = [PublishedPort.create({ target: 6379, published: 6379 })];
    await cluster.deploy(
      aStack("s", [
        aService("web", { mode: replicas(1), links: [Link.create({ service: "redis", alias: "my-db" })] }),
        aService("redis", { mode: replicas(1), exposed, ports }),
      ]),
    );
    await cluster.settle();
    const [task] = cluster.tasks("s", "web");
    const vip = Object.values(cluster.index.view.serviceStatuses.get(cluster.service("s", "redis").id)?.vips ?? {})[0];
    expect(task && linkEnvironment(cluster.index, task)).toEqual({
      MY_DB_NAME: "/s_web.1/my-db",
      MY_DB_PORT: `udp://${vip}:53`,
      MY_DB_PORT_53_UDP: `udp://${vip}:53`,
      MY_DB_PORT_53_UDP_ADDR: vip,
      MY_DB_PORT_53_UDP_PORT: "53",
      MY_DB_PORT_53_UDP_PROTO: "udp",
      MY_DB_PORT_6379_TCP: `tcp://${vip}:6379`,
      MY_DB_PORT_6379_TCP_ADDR: vip,
      MY_DB_PORT_6379_TCP_PORT: "6379",
      MY_DB_PORT_6379_TCP_PROTO: "tcp",
      MY_DB_PORT_6380_TCP: `tcp://${vip}:6380`,
      MY_DB_PORT_6380_TCP_ADDR: vip,
      MY_DB_PORT_6380_TCP_PORT: "6380",
      MY_DB_PORT_6380_TCP_PROTO: "tcp",
    });
  });
});
