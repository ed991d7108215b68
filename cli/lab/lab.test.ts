import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { parseCidr } from "../../lib/cidr/cidr.ts";
import { cut, heal } from "./faults.ts";
import { hostAddress, LabPaths, labRoot, parseTarget, registryAddress } from "./layout.ts";
import { findProcess, isAlive } from "./processes.ts";
import {
  listLabs,
  lock,
  makeDirectory,
  readRecord,
  removeRoot,
  requireRecord,
  unnamedLab,
  writeRecord,
} from "./record.ts";
import { missingPrograms } from "./requirements.ts";
import { clashOf, parseRoutes } from "./subnet.ts";

const lab = { name: "lab", subnet: "10.213.0.0/24", hosts: 3 };

describe("layout", () => {
  it("gives addresses within the subnet", () => {
    expect(registryAddress(lab)).toBe("10.213.0.2");
    expect(hostAddress(lab, "host-1")).toBe("10.213.0.11");
    expect(hostAddress(lab, "host-3")).toBe("10.213.0.13");
  });

  it("parses fault targets and names what exists", () => {
    expect(parseTarget("host-2", lab)).toEqual({ host: "host-2", process: undefined });
    expect(parseTarget("host-1:etcd", lab)).toEqual({ host: "host-1", process: "etcd" });
    expect(() => parseTarget("host-4", lab)).toThrow(
      expect.objectContaining({ code: "not-found", hint: "Its hosts: host-1, host-2, host-3." }),
    );
    expect(() => parseTarget("host-1:sshd", lab)).toThrow(expect.objectContaining({ code: "invalid" }));
  });

  it("refuses names and roots that could leave their place", () => {
    expect(() => new LabPaths("/var/lib/embassy-lab", "../x")).toThrow(/not valid/);
    expect(() => labRoot({ EMBASSY_LAB_DIR: "relative" })).toThrow(/EMBASSY_LAB_DIR/);
    expect(() => labRoot({ EMBASSY_LAB_DIR: "/with,comma" })).toThrow(/EMBASSY_LAB_DIR/);
  });

  it("names the machine's link in the 15 characters the kernel takes", () => {
    expect(new LabPaths("/var/lib/embassy-lab", "a-name-of-thirty-one-characters").machineLink).toMatch(/^.{1,15}$/);
  });
});

describe("routes", () => {
  const routes = parseRoutes(
    JSON.stringify([
      { dst: "default", gateway: "192.0.2.1", dev: "eth0" },
      { dst: "192.0.2.0/24", dev: "eth0" },
      { type: "local", dst: "127.0.0.0/8", dev: "lo" },
      { type: "blackhole", dst: "10.213.4.0/27" },
      { dst: "10.213.9.9", dev: "tun0" },
    ]),
  );

  it("clash with a subnet that holds any of their addresses", () => {
    expect(clashOf(parseCidr("10.213.4.0/24"), routes)?.device).toBe("blackhole");
    expect(clashOf(parseCidr("10.213.9.0/24"), routes)?.device).toBe("tun0");
    expect(clashOf(parseCidr("192.0.0.0/16"), routes)?.device).toBe("eth0");
    expect(clashOf(parseCidr("10.213.0.0/24"), routes)).toBeUndefined();
  });
});

describe("records", () => {
  let root: string;
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), "embassy-lab-"));
  });
  afterEach(() => rmSync(root, { recursive: true, force: true }));

  it("are read as written, and missing ones name the labs there are", () => {
    const paths = new LabPaths(root, "lab");
    mkdirSync(paths.directory);
    expect(readRecord(paths)).toBeUndefined();
    writeRecord(paths, lab);
    expect(readRecord(paths)).toEqual(lab);
    expect(listLabs(root)).toEqual(["lab"]);
    expect(() => requireRecord(new LabPaths(root, "other"))).toThrow(
      expect.objectContaining({ code: "not-found", hint: expect.stringContaining("Labs here: lab.") }),
    );
  });

  it("are the only one's when no lab is named, and the default one's beside others or what is left of it", () => {
    const add = (name: string) => {
      const paths = new LabPaths(root, name);
      mkdirSync(paths.directory);
      writeRecord(paths, { ...lab, name });
    };
    expect(unnamedLab(join(root, "absent"))).toBe("lab");
    expect(unnamedLab(root)).toBe("lab");
    add("five");
    expect(unnamedLab(root)).toBe("five");
    mkdirSync(new LabPaths(root, "lab").directory);
    expect(unnamedLab(root)).toBe("lab");
    rmSync(new LabPaths(root, "lab").directory, { recursive: true });
    add("six");
    expect(() => unnamedLab(root)).toThrow(
      expect.objectContaining({ message: "there are 2 labs: five, six", hint: "Say which: --name five" }),
    );
  });

  it("are below a directory that goes with the last lab when a lab has made it, and stays when it was there", () => {
    const down = (paths: LabPaths) => {
      rmSync(paths.directory, { recursive: true });
      removeRoot(paths);
    };
    const [one, two] = [new LabPaths(join(root, "made"), "one"), new LabPaths(join(root, "made"), "two")];
    makeDirectory(one);
    makeDirectory(two);
    down(one);
    expect(existsSync(one.root)).toBe(true);
    down(two);
    expect(existsSync(one.root)).toBe(false);
    const own = new LabPaths(root, "one");
    makeDirectory(own);
    down(own);
    expect(existsSync(root)).toBe(true);
  });

  it("say of a host that is down that it cannot be cut or healed", async () => {
    const paths = new LabPaths(root, "lab");
    const target = { host: "host-1", process: undefined };
    for (const change of [cut, heal]) await expect(change(paths, target)).rejects.toThrow("host-1 of lab lab is down");
  });

  it("are changed by one command at a time, and a killed one's lock is taken over", () => {
    const paths = new LabPaths(root, "lab");
    mkdirSync(paths.directory);
    {
      using _held = lock(paths);
      expect(() => lock(paths)).toThrow(expect.objectContaining({ code: "conflict" }));
    }
    writeFileSync(paths.lock, JSON.stringify({ pid: process.pid, startTime: "of another process" }));
    using _taken = lock(paths);
  });
});

describe("processes", () => {
  it("are known by pid and start time together", () => {
    const own = findProcess(process.pid);
    expect(own?.parent).toBe(process.ppid);
    expect(isAlive(own)).toBe(true);
    expect(isAlive({ pid: process.pid, startTime: "0" })).toBe(false);
  });
});

describe("missingPrograms", () => {
  it("names each with its Debian package", () => {
    expect(missingPrograms("/nowhere")).toContainEqual({ program: "etcd", debianPackage: "etcd-server" });
  });
});
