import { describe, expect, it } from "vitest";
import { parseConfig } from "./config.ts";

describe("parseConfig", () => {
  it("has the paths and ports that the other programs expect", () => {
    expect(parseConfig([])).toMatchObject({
      command: "run",
      socket: "/run/embassy/netd.sock",
      nodedDir: "/var/lib/embassy/noded",
      httpListen: { host: "127.0.0.1", port: 7412 },
    });
    expect(parseConfig(["cleanup"])).toMatchObject({ command: "cleanup", runDir: "/run/embassy/netns" });
    expect(parseConfig(["--help"])).toBe("help");
    expect(parseConfig(["--version"])).toBe("version");
    expect(parseConfig(["version"])).toBe("version");
  });

  it.each([
    [["--state-dir", "here"], '--state-dir "here": must be an absolute path'],
    [["--http-listen", "localhost"], '--http-listen "localhost": must be IP:PORT, port 1-65535'],
    [["--http-listen", "127.0.0.1:70000"], '--http-listen "127.0.0.1:70000": must be IP:PORT, port 1-65535'],
    [["--pool", "99"], '--pool "99": must be a number of 0-64'],
    [["--log-level", "loud"], '--log-level "loud": must be one of debug, info, warn, error'],
    [["--nonsense"], "Unknown option '--nonsense'"],
    [["walk"], 'command "walk": must be run, cleanup, version or help'],
  ])("refuses %j and says what it takes", (args, message) => {
    expect(() => parseConfig(args)).toThrow(
      expect.objectContaining({ code: "invalid", message: expect.stringContaining(message) }),
    );
  });
});
