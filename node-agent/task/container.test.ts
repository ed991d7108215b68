import { describe, expect, it } from "vitest";
import { Assignment } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { Image } from "../images/types.ts";
import type { ContainerMount } from "../runtime/types.ts";
import { createRequest, stopGraceMs, stopSignal } from "./container.ts";

const image: Image = {
  reference: "r/web:1",
  platform: "linux/amd64",
  manifestDigest: "sha256:aa",
  configDigest: "sha256:bb",
  config: {
    os: "linux",
    architecture: "amd64",
    entrypoint: [],
    command: ["/web"],
    environment: [],
    user: "",
    workingDir: "",
    exposedPorts: [],
    volumes: [],
    stopSignal: "SIGQUIT",
    labels: {},
    healthcheck: undefined,
  },
  layers: ["l1"],
  sizeBytes: 1,
};
const network = {
  netnsPath: "/ns",
  addresses: [
    { networkId: "n1", address: "10.96.0.5" },
    { networkId: "n2", address: "10.96.16.5" },
  ],
  dnsAddress: "169.254.42.1",
};
const bind = (target: string): ContainerMount => ({ type: "bind", source: "/s", target, readOnly: false });
const assignment = (container: object = {}, more: object = {}) =>
  Assignment.create({ taskId: "aaaaaaaaaaaa", taskName: "s_web.1", container, ...more });
const request = (container?: object, more?: object, mounts: ContainerMount[] = []) =>
  createRequest(assignment(container, more), image, "/rootfs", network, mounts);

describe("createRequest", () => {
  it("mounts what lies below another mount after it, and keeps the order of the others", () => {
    const mounts = ["/a/b/c", "/z", "/a/b", "/a", "/b/"].map(bind);
    expect(request({}, {}, mounts).mounts.map(({ target }) => target)).toEqual(["/z", "/a", "/b/", "/a/b", "/a/b/c"]);
  });

  it("asks this host's resolver, and names as they are first", () => {
    expect(request().resolver).toEqual({ nameservers: ["169.254.42.1"], search: [], options: ["ndots:0"] });
    expect(request({ dnsSearch: ["corp"], dnsOptions: ["ndots:2"] }).resolver).toEqual({
      nameservers: ["169.254.42.1"],
      search: ["corp"],
      options: ["ndots:2"],
    });
  });

  it("knows the task by its first address, and the host by its gateway", () => {
    const extraHosts = [
      { name: "host.internal", address: "host-gateway" },
      { name: "db", address: "192.0.2.7" },
    ];
    expect(request({ extraHosts })).toMatchObject({
      address: "10.96.0.5",
      hosts: [
        { address: "169.254.42.1", names: ["host.internal"] },
        { address: "192.0.2.7", names: ["db"] },
      ],
    });
  });

  it("refuses an assignment without a container", () => {
    const empty = Assignment.create({ taskId: "aaaaaaaaaaaa" });
    expect(() => createRequest(empty, image, "/rootfs", network, [])).toThrow(/nothing of a container/);
  });
});

describe("stopping", () => {
  it("takes the service's signal over the image's over SIGTERM, and ten seconds unless told", () => {
    expect(stopSignal(assignment({ stopSignal: "SIGINT" }), image)).toBe("SIGINT");
    expect(stopSignal(assignment(), image)).toBe("SIGQUIT");
    expect(stopSignal(assignment(), undefined)).toBe("SIGTERM");
    expect(stopGraceMs(assignment({ stopGraceMs: 300 }))).toBe(300);
    expect(stopGraceMs(assignment())).toBe(10_000);
  });
});
