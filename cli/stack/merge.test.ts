import { describe, expect, it } from "vitest";
import { loadStack, memoryFiles, stackFile } from "./index.ts";

/** The service `web` of two files, the second laid over the first, in canonical form. */
function merged(base: string, over: string): Record<string, unknown> {
  const file = (keys: string) =>
    `name: demo\nservices: {web: {image: nginx, ${keys}}}\nvolumes: {one: {}, two: {}}\nconfigs: {a: {content: x}, b: {content: y}}\n`;
  const loaded = loadStack({
    files: ["base.yml", "over.yml"],
    workingDirectory: "/p",
    reader: memoryFiles({ "/p/base.yml": file(base), "/p/over.yml": file(over) }),
    environment: {},
  });
  if (!loaded.ok) throw new Error(loaded.errors.map((error) => error.message).join("; "));
  return (stackFile(loaded.stack)["services"] as Record<string, Record<string, unknown>>)["web"] ?? {};
}

describe("lists append, and an item that is the same thing takes the earlier one's place", () => {
  it.each([
    [
      "ports with other numbers are added",
      'ports: ["8080:80", "8081:80"]',
      'ports: ["9090:80"]',
      "ports",
      ["8080", "8081", "9090"],
      "published",
    ],
    [
      "a port of the same numbers is replaced",
      'ports: ["8080:80"]',
      "ports: [{target: 80, published: 8080, mode: host}]",
      "ports",
      ["host"],
      "mode",
    ],
    ["a udp port is another", 'ports: ["53:53"]', 'ports: ["53:53/udp"]', "ports", ["tcp", "udp"], "protocol"],
    [
      "a mount of the same target is replaced",
      'volumes: ["one:/x", "one:/y"]',
      'volumes: ["two:/x"]',
      "volumes",
      ["two", "one"],
      "source",
    ],
    [
      "a config of the same file is replaced",
      "configs: [{source: a, target: /f}, b]",
      "configs: [{source: b, target: f}]",
      "configs",
      ["b", "b"],
      "source",
    ],
    [
      "devices without a target are themselves",
      "devices: [{source: /dev/a}]",
      "devices: [{source: /dev/b}]",
      "devices",
      ["/dev/a", "/dev/b"],
      "source",
    ],
  ])("%s", (_name, base, over, key, values, part) => {
    expect((merged(base, over)[key] as Record<string, unknown>[]).map((item) => item[part])).toEqual(values);
  });

  it.each([
    ["cap_add: [NET_ADMIN]", "cap_add: [CAP_NET_ADMIN, SYS_TIME]", "cap_add", ["NET_ADMIN", "SYS_TIME"]],
    ["dns: 10.0.0.1", "dns: [10.0.0.2]", "dns", ["10.0.0.1", "10.0.0.2"]],
    ["expose: [80]", 'expose: ["80/tcp", "81"]', "expose", ["80", "81"]],
    ["external_links: [a/b]", 'external_links: ["c/d:b"]', "external_links", ["c/d:b"]],
    [
      'extra_hosts: ["h=10.0.0.1"]',
      "extra_hosts: {h: 10.0.0.2, i: 10.0.0.3}",
      "extra_hosts",
      { h: ["10.0.0.1", "10.0.0.2"], i: ["10.0.0.3"] },
    ],
  ])("%s with %s", (base, over, key, expected) => {
    expect(merged(base, over)[key]).toEqual(expected);
  });
});

it("a resource counted again has the later count", () => {
  const reserve = (counts: Record<string, number>) => {
    const specs = Object.entries(counts).map(
      ([kind, value]) => `{discrete_resource_spec: {kind: ${kind}, value: ${value}}}`,
    );
    return `deploy: {resources: {reservations: {generic_resources: [${specs.join(", ")}]}}}`;
  };
  expect(merged(reserve({ gpu: 1, ssd: 1 }), reserve({ gpu: 4 }))["deploy"]).toMatchObject({
    resources: {
      reservations: {
        generic_resources: [
          { discrete_resource_spec: { kind: "gpu", value: 4 } },
          { discrete_resource_spec: { kind: "ssd", value: 1 } },
        ],
      },
    },
  });
});

describe("mappings merge key by key, in whichever form they are written", () => {
  it.each([
    ["environment: [A=1, B=1]", "environment: {B: 2}", "environment", { A: "1", B: "2" }],
    ["labels: {a: 1}", "labels: [b=2]", "labels", { a: "1", b: "2" }],
    ["ulimits: {nofile: {soft: 1, hard: 2}}", "ulimits: {nofile: 3}", "ulimits", { nofile: { soft: 3, hard: 3 } }],
    ["sysctls: {net.a: 1}", "sysctls: [net.b=2]", "sysctls", { "net.a": "1", "net.b": "2" }],
    [
      "logging: {driver: syslog, options: {a: b}}",
      "logging: {options: {c: d}}",
      "logging",
      { driver: "syslog", options: { a: "b", c: "d" } },
    ],
    ["logging: {driver: syslog, options: {a: b}}", "logging: {driver: journald}", "logging", { driver: "journald" }],
  ])("%s with %s", (base, over, key, expected) => {
    expect(merged(base, over)[key]).toEqual(expected);
  });
});

describe("single values and commands are replaced, tags remove and replace", () => {
  it.each([
    ["command: [a, b]", "command: c d", "command", ["c", "d"]],
    ["entrypoint: [a, b]", "entrypoint: []", "entrypoint", []],
    ["command: [a]", "command: ", "command", ["a"]],
    ["command: [a]", "command: !reset null", "command", undefined],
    ["user: a", "user: b", "user", "b"],
    ["cap_add: [NET_ADMIN]", "cap_add: !override [SYS_TIME]", "cap_add", ["SYS_TIME"]],
    ["cap_add: [NET_ADMIN]", "cap_add: !reset []", "cap_add", undefined],
    ["environment: {A: 1, B: 2}", "environment: {A: !reset null}", "environment", { B: "2" }],
    ["environment: {A: 1}", "environment: !override {C: 3}", "environment", { C: "3" }],
  ])("%s with %s", (base, over, key, expected) => {
    expect(merged(base, over)[key]).toEqual(expected);
  });
});
