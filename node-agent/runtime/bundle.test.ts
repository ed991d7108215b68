import { describe, expect, it } from "vitest";
import { ContainerSpec, Resources } from "../../proto/gen/embassy/v1/stack.ts";
import type { ImageConfig } from "../images/types.ts";
import { type BundleContext, formatOci, planBundle, planHostname } from "./bundle.ts";
import type { HostFacts } from "./host.ts";
import type { SeccompProfile } from "./seccomp.ts";
import type { CreateRequest } from "./types.ts";

const image: ImageConfig = {
  os: "linux",
  architecture: "amd64",
  entrypoint: ["/entry"],
  command: ["default"],
  environment: ["PATH=/image/bin", "A=image", "B=image"],
  user: "",
  workingDir: "/work",
  exposedPorts: [],
  volumes: [],
  stopSignal: "",
  labels: {},
  healthcheck: undefined,
};

const full: HostFacts = {
  capabilities: ["CHOWN", "SETUID", "NET_ADMIN", "SYS_RESOURCE"],
  rlimits: { RLIMIT_NOFILE: 20_000, RLIMIT_NPROC: Number.POSITIVE_INFINITY, RLIMIT_CORE: 0 },
  mayRaise: true,
  oomScoreAdj: 0,
  architecture: "amd64",
  kernel: "6.1.0-13-amd64",
  bootId: "b",
};

const seccomp: SeccompProfile = {
  defaultAction: "SCMP_ACT_ERRNO",
  defaultErrnoRet: 38,
  syscalls: [{ names: ["read"], action: "SCMP_ACT_ALLOW", args: null }],
};

function context(overrides: Partial<BundleContext> = {}): BundleContext {
  return {
    user: { uid: 0, gid: 0, groups: [], home: "/root" },
    host: full,
    seccomp,
    cgroupsPath: "/embassy-n/t",
    cgroups: "hybrid",
    swapAccounting: true,
    bundleDir: "/bundle",
    initPath: "/usr/bin/tini-static",
    ...overrides,
  };
}

function request(container: Partial<ContainerSpec> = {}, overrides: Partial<CreateRequest> = {}): CreateRequest {
  return {
    id: "t",
    name: "shop_web.1",
    container: ContainerSpec.create(container),
    resources: undefined,
    image,
    rootfs: "/rootfs",
    netnsPath: "/run/netns/t",
    environment: {},
    mounts: [],
    hosts: [],
    address: undefined,
    resolver: { nameservers: ["169.254.42.1"], search: [], options: [] },
    ...overrides,
  };
}

const plan = (
  container: Partial<ContainerSpec> = {},
  overrides: Partial<CreateRequest> = {},
  more: Partial<BundleContext> = {},
) => planBundle(request(container, overrides), context(more));

describe("planBundle", () => {
  it.each([
    ["the image's own", {}, ["/entry", "default"]],
    ["a new command", { commandSet: true, command: ["x"] }, ["/entry", "x"]],
    ["an empty command", { commandSet: true }, ["/entry"]],
    ["a new entrypoint, which drops the image's command", { entrypointSet: true, entrypoint: ["/mine"] }, ["/mine"]],
    ["an empty entrypoint and a command", { entrypointSet: true, commandSet: true, command: ["x"] }, ["x"]],
    ["an init in front", { init: true }, ["/dev/init", "--", "/entry", "default"]],
  ])("runs %s", (_, container, args) => {
    expect(plan(container).config.process.args).toEqual(args);
  });

  it("refuses a container with nothing to run", () => {
    expect(() => plan({ entrypointSet: true })).toThrow("neither the image nor the service says what to run");
  });

  it("lays environments over one another: defaults, image, links, service", () => {
    const { config } = plan({ environment: { B: "service" } }, { environment: { A: "link", B: "link" } });
    expect(config.process.env).toEqual(["PATH=/image/bin", "HOSTNAME=shop-web-1", "HOME=/root", "A=link", "B=service"]);
  });

  it("gives default capabilities less what is dropped plus what is added, and names what the node lacks", () => {
    const { config, warnings } = plan({ capAdd: ["NET_ADMIN", "SYS_TIME"], capDrop: ["CHOWN"] });
    expect(config.process.capabilities.bounding).toEqual(["CAP_SETUID", "CAP_NET_ADMIN"]);
    expect(warnings).toEqual(["capability SYS_TIME is not given: this node does not have it itself"]);
    expect(plan({ capAdd: ["ALL"] }).config.process.capabilities.effective).toHaveLength(4);
    expect(plan({ capAdd: ["ALL"] }).warnings).toEqual([]);
    expect(plan({ capDrop: ["ALL"] }).config.process.capabilities.permitted).toEqual([]);
    expect(() => plan({ capAdd: ["NOPE"] })).toThrow("there is no capability NOPE");
  });

  it("asks for no more open files than the node may give, and never fails for it", () => {
    const limit = (host: HostFacts) => plan({}, {}, { host }).config.process.rlimits;
    expect(limit(full)).toEqual([{ type: "RLIMIT_NOFILE", soft: 1_048_576, hard: 1_048_576 }]);
    expect(limit({ ...full, mayRaise: false })).toEqual([{ type: "RLIMIT_NOFILE", soft: 20_000, hard: 20_000 }]);
  });

  it("takes ulimits, unlimited ones too, and clamps what the node may not raise", () => {
    const ulimits = [
      { name: "nproc", soft: -1, hard: -1 },
      { name: "core", soft: 5, hard: 10 },
    ];
    const { config } = plan({ ulimits });
    expect(config.process.rlimits.slice(1)).toEqual([
      { type: "RLIMIT_NPROC", soft: Number.POSITIVE_INFINITY, hard: Number.POSITIVE_INFINITY },
      { type: "RLIMIT_CORE", soft: 5, hard: 10 },
    ]);
    expect(formatOci(config)).toContain(
      '{"type":"RLIMIT_NPROC","soft":18446744073709551615,"hard":18446744073709551615}',
    );
    const clamped = plan({ ulimits }, {}, { host: { ...full, mayRaise: false } });
    expect(clamped.config.process.rlimits[2]).toEqual({ type: "RLIMIT_CORE", soft: 0, hard: 0 });
    expect(clamped.warnings).toEqual(["ulimit core is 0 in place of 10: this node may not go higher"]);
    expect(() => plan({ ulimits: [{ name: "nope", soft: 1, hard: 1 }] })).toThrow('there is no resource limit "nope"');
  });

  it("never asks for an oom_score_adj below the node's own without leave", () => {
    const host = { ...full, mayRaise: false, oomScoreAdj: 100 };
    expect(plan({ oomScoreAdj: 0 }, {}, { host }).config.process.oomScoreAdj).toBe(100);
    expect(plan({ oomScoreAdj: 500 }, {}, { host }).config.process.oomScoreAdj).toBe(500);
    expect(plan({ oomScoreAdj: -500 }).config.process.oomScoreAdj).toBe(-500);
  });

  it("turns limits into cgroup settings, which the runtimes translate for v2", () => {
    const resources = Resources.create({
      limits: { milliCpus: 1500, memoryBytes: 1000, pids: 50 },
      reservations: { milliCpus: 500 },
    });
    expect(plan({}, { resources }).config.linux).toMatchObject({
      cgroupsPath: "/embassy-n/t",
      resources: {
        cpu: { shares: 512, period: 100_000, quota: 150_000 },
        memory: { limit: 1000, swap: 1000 },
        pids: { limit: 50 },
      },
    });
    expect(plan({}, { resources }, { swapAccounting: false }).config.linux.resources).toMatchObject({
      memory: { limit: 1000 },
    });
    expect(plan().config.linux.resources).toEqual({ devices: [{ allow: false, access: "rwm" }], cpu: {}, memory: {} });
  });

  it.each([
    [1, "1"],
    [250, "25"],
    [1_000, "100"],
    [64_000, "6400"],
    [200_000, "10000"],
  ])(
    "on v2 reserving %i/1000 CPUs is weight %s: one CPU is what a container without a reservation has",
    (milliCpus, weight) => {
      const resources = Resources.create({ reservations: { milliCpus } });
      expect(plan({}, { resources }, { cgroups: "v2" }).config.linux.resources).toEqual({
        devices: [{ allow: false, access: "rwm" }],
        cpu: {},
        memory: {},
        unified: { "cpu.weight": weight },
      });
    },
  );

  it("joins the task's network namespace and has all others to itself", () => {
    const { namespaces } = plan().config.linux;
    expect(namespaces.map(({ type }) => type).sort()).toEqual(["cgroup", "ipc", "mount", "network", "pid", "uts"]);
    expect(namespaces.find(({ type }) => type === "network")?.path).toBe("/run/netns/t");
  });

  it("mounts outer targets before inner ones, and the service's in place of its own", () => {
    const { config } = plan(
      { shmBytes: 1024 },
      {
        mounts: [
          { type: "bind", source: "/host/inner", target: "/data/inner", readOnly: true },
          { type: "tmpfs", target: "/data/", readOnly: false, sizeBytes: 4096, mode: 0o700 },
          { type: "bind", source: "/host/hosts", target: "/etc/hosts", readOnly: false },
        ],
      },
    );
    expect(config.mounts.slice(-3)).toEqual([
      {
        destination: "/data",
        type: "tmpfs",
        source: "tmpfs",
        options: ["nosuid", "nodev", "rw", "mode=700", "size=4096"],
      },
      { destination: "/data/inner", type: "bind", source: "/host/inner", options: ["rbind", "rprivate", "ro"] },
      { destination: "/etc/hosts", type: "bind", source: "/host/hosts", options: ["rbind", "rprivate", "rw"] },
    ]);
    expect(config.mounts.filter(({ destination }) => destination === "/etc/hosts")).toHaveLength(1);
    expect(config.mounts.find(({ destination }) => destination === "/dev/shm")?.options).toContain("size=1024");
    const twice = [
      { type: "bind", source: "/a", target: "/x", readOnly: true },
      { type: "bind", source: "/b", target: "/x/", readOnly: true },
    ] as const;
    expect(() => plan({}, { mounts: twice })).toThrow("two mounts have the same target");
    expect(() => plan({}, { mounts: [{ ...twice[0], target: "/a/../b" }] })).toThrow("is no absolute path");
  });

  it("writes resolv.conf, hosts and hostname", () => {
    const { files } = plan(
      {},
      {
        address: "10.96.0.5",
        hosts: [{ address: "10.0.0.9", names: ["db", "db.old"] }],
        resolver: { nameservers: ["169.254.42.1"], search: ["shop"], options: ["ndots:0"] },
      },
    );
    expect(files["resolv.conf"]).toBe("nameserver 169.254.42.1\nsearch shop\noptions ndots:0\n");
    expect(files.hosts.split("\n").slice(2)).toEqual(["10.96.0.5\tshop-web-1", "10.0.0.9\tdb db.old", ""]);
    expect(files.hostname).toBe("shop-web-1\n");
  });

  it("refuses sysctls that belong to the whole host", () => {
    expect(plan({ sysctls: { "net.core.somaxconn": "9" } }).config.linux.sysctl).toMatchObject({
      "net.core.somaxconn": "9",
      "net.ipv4.ping_group_range": "0 2147483647",
    });
    expect(() => plan({ sysctls: { "vm.swappiness": "1" } })).toThrow("sysctl vm.swappiness is the whole host's");
  });

  it("keeps privileges from growing unless the service says so", () => {
    expect(plan().config.process.noNewPrivileges).toBe(true);
    expect(plan({ allowNewPrivileges: true }).config.process.noNewPrivileges).toBe(false);
    expect(plan().config.linux.seccomp?.architectures).toEqual(["SCMP_ARCH_X86_64"]);
    expect(plan().config.linux.maskedPaths).toContain("/proc/kcore");
  });
});

describe("planHostname", () => {
  it.each([
    ["shop_web.1", "shop-web.1"],
    ["-._x", "x"],
    ["___", "container"],
    ["n".repeat(80), "n".repeat(63)],
  ])("%s becomes %s", (name, hostname) => {
    expect(planHostname(name)).toBe(hostname);
  });
});
