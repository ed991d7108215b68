import { hostname } from "node:os";
import { describe, expect, it } from "vitest";
import { parseConfig, parseListen } from "./config.ts";

describe("parseConfig", () => {
  it("runs with defaults", () => {
    const expected = {
      command: "run",
      stateDir: "/var/lib/embassy/noded",
      runDir: "/run/embassy/noded",
      netdSocket: "/run/embassy/netd.sock",
      agentListen: undefined,
      httpListen: { host: "127.0.0.1", port: 7411 },
      insecureRegistries: [],
      genericResources: {},
      diskLow: { lowPercent: 10, lowBytes: 5 * 2 ** 30 },
      runtime: undefined,
      logLevel: "info",
    };
    expect(parseConfig([])).toEqual(expected);
    expect(parseConfig(["run"])).toEqual(expected);
    expect(parseConfig(["--log-level", "debug"])).toEqual({ ...expected, logLevel: "debug" });
  });

  it("says its version and its help", () => {
    for (const words of [["version"], ["--version"]]) expect(parseConfig(words)).toEqual({ command: "version" });
    for (const words of [["help"], ["join", "--help"], ["-h"]]) expect(parseConfig(words)).toEqual({ command: "help" });
  });

  it("takes several registries", () => {
    const config = parseConfig(["run", "--insecure-registry", "r:5000", "--insecure-registry", "10.0.0.1:5000"]);
    expect(config).toMatchObject({ insecureRegistries: ["r:5000", "10.0.0.1:5000"] });
  });

  it("counts resources by kind", () => {
    const config = parseConfig(["run", "--generic-resource", "gpu=2", "--generic-resource=example.com/fpga=1"]);
    expect(config).toMatchObject({ genericResources: { gpu: 2, "example.com/fpga": 1 } });
  });

  it("takes when a disk is low", () => {
    const config = parseConfig(["run", "--disk-low-percent", "2.5", "--disk-low-bytes", "512m"]);
    expect(config).toMatchObject({ diskLow: { lowPercent: 2.5, lowBytes: 512 * 2 ** 20 } });
  });

  it("joins with the manager's default port and this host's name", () => {
    expect(parseConfig(["join", "--manager", "10.0.0.1", "--token", "t"])).toMatchObject({
      manager: { host: "10.0.0.1", port: 7401 },
      name: hostname(),
      underlay: undefined,
    });
  });

  it.each<[string[], RegExp]>([
    [["stop"], /no command "stop"/],
    [["run", "--no-such"], /no-such/],
    [["run", "extra"], /extra/],
    [["run", "--state-dir", "relative"], /--state-dir "relative": must be an absolute path/],
    [["run", "--http-listen", "7411"], /--http-listen "7411"/],
    [["run", "--http-listen", "h:0"], /--http-listen "h:0"/],
    [["run", "--agent-listen", "h:70000"], /port 1-65535/],
    [["run", "--generic-resource", "gpu"], /--generic-resource "gpu": must be KIND=COUNT/],
    [["run", "--generic-resource", "=2"], /KIND is 1-63 letters/],
    [["run", "--generic-resource", "gpu=0"], /COUNT is a whole number from 1/],
    [["run", "--generic-resource", "gpu=GPU-1"], /COUNT is a whole number from 1/],
    [["run", "--generic-resource", "gpu=1", "--generic-resource", "gpu=2"], /given once for each kind/],
    [["run", "--disk-low-percent", "51"], /--disk-low-percent "51": must be 0-50/],
    [["run", "--disk-low-percent", "5%"], /must be 0-50/],
    [["run", "--disk-low-bytes", "much"], /--disk-low-bytes "much": must be a size such as 512m or 5g/],
    [["run", "--runtime", "youki"], /--runtime "youki": must be runc, crun or an absolute path/],
    [["run", "--log-level", "loud"], /debug, info, warn, error/],
    [["join", "--token", "t"], /needs --manager/],
    [["join", "--manager", "m"], /needs --token/],
    [["join", "--manager", "m", "--token", "t", "--underlay", "10.0.0.256"], /--underlay "10.0.0.256"/],
    [["join", "--manager", "m", "--token", "t", "--name", "a b"], /--name "a b"/],
  ])("refuses %j in a sentence", (argv, message) => {
    expect(() => parseConfig(argv)).toThrow(expect.objectContaining({ code: "invalid" }));
    expect(() => parseConfig(argv)).toThrow(message);
  });
});

describe("parseListen", () => {
  it("knows names, addresses and IPv6", () => {
    expect(parseListen("--x", "host:1")).toEqual({ host: "host", port: 1 });
    expect(parseListen("--x", "[::1]:65535")).toEqual({ host: "::1", port: 65_535 });
    expect(parseListen("--x", "[fd00::1]", 7401)).toEqual({ host: "fd00::1", port: 7401 });
  });
});
