import { describe, expect, it } from "vitest";
import { PlacementStrategy, StackSpec, TaintEffect } from "../../proto/gen/embassy/v1/stack.ts";
import { convertStack, qualifyImage } from "./convert.ts";
import { diagnosticJson, loadStack, memoryFiles } from "./index.ts";

function convert(text: string) {
  const loaded = loadStack({
    files: ["stack.yml"],
    workingDirectory: "/shop",
    reader: memoryFiles({ "/shop/stack.yml": text, "/shop/pw.txt": "hunter2" }),
    environment: { APP: "from the environment" },
  });
  if (!loaded.ok) throw new Error(loaded.errors.map((error) => error.message).join("; "));
  return convertStack(loaded);
}

function specOf(text: string): StackSpec {
  const converted = convert(text);
  if (!converted.ok) throw new Error(converted.errors.map((error) => error.message).join("; "));
  return converted.spec;
}

const WHOLE = `
services:
  web:
    image: nginx
    entrypoint: [/entry.sh]
    command: []
    environment: {A: "1"}
    working_dir: /srv
    user: "1000:1000"
    group_add: [audio]
    hostname: www
    init: true
    tty: true
    stdin_open: true
    read_only: true
    cap_add: [CAP_NET_ADMIN]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:false"]
    ulimits: {nofile: 1024, nproc: {soft: 10, hard: -1}}
    sysctls: {net.core.somaxconn: 1024}
    shm_size: 128m
    stop_signal: SIGINT
    stop_grace_period: 0s
    volumes: ["data:/data:ro", "/srv/x:/x", {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0700}}]
    tmpfs: ["/run:size=2m,mode=755,nosuid"]
    configs: [{source: app, target: app.conf, uid: "1", gid: "2", mode: 0440}]
    secrets: [pw]
    healthcheck: {test: "true", interval: 5s}
    extra_hosts: ["a=10.0.0.1", "a=10.0.0.2", "gw=host-gateway"]
    dns: 10.0.0.53
    dns_search: [example.com]
    dns_opt: ["ndots:1"]
    labels: {l: "1"}
    annotations: {n: "1"}
    pull_policy: always
    platform: linux/arm64
    logging: {options: {max-size: 1m, max-file: "5"}}
    oom_score_adj: 10
    container_name: the-web
    expose: ["3000-3001", "53/udp"]
    ports: ["8080:80", {target: 81, mode: host, published: 81, host_ip: 127.0.0.1, name: alt}, "90/udp"]
    links: [db]
    depends_on: {db: {condition: service_healthy}}
    networks: {back: {aliases: [www], priority: 1}, front: {gw_priority: 5}}
    restart: on-failure:4
    deploy:
      endpoint_mode: dnsrr
      labels: {d: "1"}
      placement: {constraints: ["node.labels.zone == a "], max_replicas_per_node: 2}
      resources:
        limits: {cpus: "0.5", memory: 64m, pids: 100}
        reservations: {cpus: "0.25", memory: 32m, generic_resources: [{discrete_resource_spec: {kind: ssd, value: 2}}]}
      update_config: {parallelism: 2, delay: 3s, order: stop-first}
    x-placement:
      tolerations: [{key: gpu, value: a100, effect: no-execute}, {}]
      spread: [{over: node.labels.zone, shares: {a: 2, b: 0.5}, other_share: 0}, {over: node.labels.rack, max_skew: 2}]
      affinity: [{node: "node.labels.disk == ssd ", weight: 10}, {service: db}, {service: off}]
      anti_affinity: [{service: web, over: node.labels.zone, weight: 100}]
      strategy: binpack
    x-priority: -10
    x-disruption: {min_available: 50%, rebalance: true}
  db:
    image: postgres
    networks: [back]
    healthcheck: {test: [CMD, pg_isready], retries: 5}
    deploy: {mode: global, placement: {preferences: [{spread: node.labels.rack}]}}
    x-disruption: {min_available: 2}
  "off": {image: busybox, profiles: [debug]}
networks: {back: {driver_opts: {icc: "false", mtu: 1400}, ipam: {config: [{subnet: 10.1.0.0/16}]}, labels: {n: "1"}}, front: {internal: true}, shared: {external: true, name: infra_net}}
volumes: {data: {}}
configs: {app: {environment: APP}}
secrets: {pw: {file: pw.txt, labels: {s: "1"}}}
`;

describe("what the contract has a place for", () => {
  it("arrives whole", () => {
    const spec = specOf(WHOLE);
    expect(spec.name).toBe("shop");
    expect(spec.networks).toEqual([
      {
        name: "back",
        subnet: "10.1.0.0/16",
        internal: false,
        isolated: true,
        mtu: 1400,
        external: false,
        externalName: "",
        labels: { n: "1" },
      },
      {
        name: "front",
        subnet: "",
        internal: true,
        isolated: false,
        mtu: 0,
        external: false,
        externalName: "",
        labels: {},
      },
      {
        name: "shared",
        subnet: "",
        internal: false,
        isolated: false,
        mtu: 0,
        external: true,
        externalName: "infra_net",
        labels: {},
      },
    ]);
    expect(spec.configs.map((blob) => [blob.name, blob.content.toString()])).toEqual([["app", "from the environment"]]);
    expect(spec.secrets.map((blob) => [blob.name, blob.content.toString(), blob.labels])).toEqual([
      ["pw", "hunter2", { s: "1" }],
    ]);
    const [db, web] = spec.services;
    expect(db).toMatchObject({
      name: "db",
      mode: { $case: "global" },
      placement: { spread: ["node.labels.rack"], spreadRules: [], affinities: [] },
      priority: 0,
      disruption: { minAvailable: 2, minAvailablePercent: 0, rebalance: false },
      container: {
        image: "docker.io/library/postgres:latest",
        healthcheck: { test: ["CMD", "pg_isready"], retries: 5 },
        entrypointSet: false,
        commandSet: false,
      },
    });
    expect(web).toMatchObject({
      name: "web",
      mode: { $case: "replicated", value: { replicas: 1 } },
      priority: -10,
      disruption: { minAvailable: 0, minAvailablePercent: 50, rebalance: true },
      placement: {
        constraints: ["node.labels.zone == a"],
        spread: [],
        spreadRules: [
          { over: "node.labels.zone", shares: { a: 2, b: 0.5 }, otherShare: 0, maxSkew: 0 },
          { over: "node.labels.rack", shares: {}, otherShare: 1, maxSkew: 2 },
        ],
        affinities: [
          { to: { $case: "node", value: "node.labels.disk == ssd" }, weight: 10 },
          { to: { $case: "service", value: { service: "db", over: "node.id" } }, weight: 50 },
          { to: { $case: "service", value: { service: "web", over: "node.labels.zone" } }, weight: -100 },
        ],
        strategy: PlacementStrategy.PLACEMENT_STRATEGY_BINPACK,
        maxReplicasPerNode: 2,
        platforms: ["linux/arm64"],
        tolerations: [
          { key: "gpu", value: "a100", effect: TaintEffect.TAINT_EFFECT_NO_EXECUTE },
          { key: "", value: undefined, effect: undefined },
        ],
      },
      resources: {
        limits: { milliCpus: 500, memoryBytes: 64 * 2 ** 20, pids: 100 },
        reservations: { milliCpus: 250, memoryBytes: 32 * 2 ** 20, generic: { ssd: 2 } },
      },
      restart: { condition: 1, maxAttempts: 4 },
      update: { parallelism: 2, delayMs: 3000, order: 0 },
      // The default route is on the network of the highest gw_priority.
      networks: [
        { network: "front", aliases: ["the-web"] },
        { network: "back", aliases: ["www", "the-web"] },
      ],
      links: [{ service: "db", alias: "db" }],
      exposed: [
        { port: 3000, protocol: 0 },
        { port: 3001, protocol: 0 },
        { port: 53, protocol: 1 },
      ],
      ports: [
        { target: 80, published: 8080, protocol: 0, mode: 0, hostIp: "", name: "" },
        { target: 81, published: 81, protocol: 0, mode: 1, hostIp: "127.0.0.1", name: "alt" },
        { target: 90, published: 0, protocol: 1, mode: 0 },
      ],
      dependsOn: [{ service: "db", condition: 1, required: true }],
      labels: { d: "1" },
      endpointMode: 1,
    });
    expect(web?.container).toMatchObject({
      image: "docker.io/library/nginx:latest",
      entrypoint: ["/entry.sh"],
      entrypointSet: true,
      command: [],
      commandSet: true,
      environment: { A: "1" },
      workingDir: "/srv",
      user: "1000:1000",
      groupAdd: ["audio"],
      hostname: "www",
      init: true,
      tty: true,
      stdinOpen: true,
      readOnly: true,
      capAdd: ["NET_ADMIN"],
      capDrop: ["ALL"],
      allowNewPrivileges: true,
      ulimits: [
        { name: "nofile", soft: 1024, hard: 1024 },
        { name: "nproc", soft: 10, hard: -1 },
      ],
      sysctls: { "net.core.somaxconn": "1024" },
      shmBytes: 128 * 2 ** 20,
      stopSignal: "SIGINT",
      stopGraceMs: 1,
      mounts: [
        { type: 0, source: "shop_data", target: "/data", readOnly: true },
        { type: 1, source: "/srv/x", target: "/x", readOnly: false, createHostPath: true },
        { type: 2, target: "/t", tmpfsBytes: 2 ** 20, tmpfsMode: 0o700 },
        { type: 2, target: "/run", tmpfsBytes: 2 * 2 ** 20, tmpfsMode: 0o755 },
      ],
      configs: [{ source: "app", target: "/app.conf", uid: 1, gid: 2, mode: 0o440 }],
      secrets: [{ source: "pw", target: "/run/secrets/pw", uid: 0, gid: 0, mode: 0o444 }],
      healthcheck: {
        test: ["CMD-SHELL", "true"],
        // 0: the image's, else the default.
        intervalMs: 5000,
        timeoutMs: 0,
        retries: 0,
        startPeriodMs: 0,
        startIntervalMs: 0,
      },
      extraHosts: [
        { name: "a", address: "10.0.0.1" },
        { name: "a", address: "10.0.0.2" },
        { name: "gw", address: "host-gateway" },
      ],
      dns: ["10.0.0.53"],
      dnsSearch: ["example.com"],
      dnsOptions: ["ndots:1"],
      labels: { l: "1" },
      annotations: { n: "1" },
      pullPolicy: 1,
      platform: "linux/arm64",
      log: { maxBytes: 2 ** 20, maxFiles: 5 },
      oomScoreAdj: 10,
    });
  });

  it("a volume says what becomes of its tasks without its node, and whether another stack makes it", () => {
    const of = (volumes: string) =>
      specOf(`name: shop\nservices: {web: {image: a, volumes: ["data:/v"]}}\nvolumes: {data: {${volumes}}}`).services[0]
        ?.container?.mounts[0];
    expect(of("")).toMatchObject({ source: "shop_data", onNodeLoss: 0, external: false });
    expect(of("x-on-node-loss: recreate")).toMatchObject({ source: "shop_data", onNodeLoss: 1, external: false });
    expect(of("external: true, name: infra_data")).toMatchObject({
      source: "infra_data",
      onNodeLoss: 0,
      external: true,
    });
  });

  it("a health check that is switched off is NONE", () => {
    const [web] = specOf("services: {web: {image: a, healthcheck: {disable: true}}}").services;
    expect(web?.container?.healthcheck?.test).toEqual(["NONE"]);
  });

  it("survives the wire", () => {
    const spec = specOf(WHOLE);
    expect(StackSpec.decode(StackSpec.encode(spec).finish())).toEqual(spec);
  });

  it("does not depend on the order in the file", () => {
    const a = "services: {b: {image: x}, a: {image: y}}\nnetworks: {n: {}, m: {}}\n";
    const b = "networks: {m: {}, n: {}}\nservices: {a: {image: y}, b: {image: x}}\n";
    expect(specOf(a)).toEqual(specOf(b));
  });
});

describe("what it has no place for is refused, with its place", () => {
  const service = (keys: string): string => `services: {web: {image: nginx, ${keys}}}\nvolumes: {data: {}}\n`;
  it.each([
    [service('domainname: "example.com"'), "services.web.domainname"],
    [service("privileged: true"), "services.web.privileged"],
    [service("devices: [/dev/fuse]"), "services.web.devices"],
    [service("pid: host"), "services.web.pid"],
    [service("network_mode: host"), "services.web.network_mode"],
    [service("cpu_shares: 512"), "services.web.cpu_shares"],
    [service("post_start: [{command: [a]}]"), "services.web.post_start"],
    [service('external_links: ["a/b"]'), "services.web.external_links"],
    [service("logging: {driver: syslog}"), "services.web.logging.driver"],
    [service("logging: {options: {tag: x}}"), "services.web.logging.options.tag"],
    [service('hostname: "w{{.Task.Slot}}"'), "services.web.hostname"],
    [service("pull_policy: daily"), "services.web.pull_policy"],
    [service('security_opt: ["seccomp=a.json"]'), "services.web.security_opt[0]"],
    [service('tmpfs: ["/a:uid=3"]'), "services.web.tmpfs[0]"],
    [service(`tmpfs: ["/a:noexec"]`), "services.web.tmpfs[0]"],
    [service('ports: ["8000-8010:80"]'), "services.web.ports[0].published"],
    [service("ports: [{target: 80, app_protocol: http}]"), "services.web.ports[0].app_protocol"],
    [service("volumes: [/anonymous]"), "services.web.volumes[0]"],
    [
      service("volumes: [{type: volume, source: data, target: /d, volume: {subpath: a}}]"),
      "services.web.volumes[0].volume.subpath",
    ],
    [service("deploy: {mode: replicated-job}"), "services.web.deploy.mode"],
    // Its defaults too: this version holds no connections for ten seconds.
    [service("x-lb: {hold: 10s}"), "services.web.x-lb"],
    [service("x-singleton: true"), "services.web.x-singleton"],
    ["services: {web: {image: a}}\nvolumes: {v: {driver_opts: {type: nfs}}}", "volumes.v.driver_opts.type"],
    ["services: {web: {image: a}}\nnetworks: {n: {name: other}}", "networks.n.name"],
    [
      "services: {web: {image: a}}\nnetworks: {n: {driver_opts: {encrypted: 'true'}}}",
      "networks.n.driver_opts.encrypted",
    ],
    ["services: {web: {image: a}}\nsecrets: {s: {external: true}}", "secrets.s.external"],
    ["services: {web: {image: a}}\nx-external-services: {e: 'tcp://a:1'}", "x-external-services.e.address"],
  ])("%s", (text, path) => {
    const converted = convert(text);
    const errors = converted.ok ? [] : converted.errors.map(diagnosticJson);
    expect(errors).toContainEqual(
      expect.objectContaining({
        path,
        file: "stack.yml",
        line: expect.any(Number),
        message: expect.stringContaining("not run by this version's cluster yet"),
      }),
    );
  });
});

it.each([
  ["nginx", "docker.io/library/nginx:latest"],
  ["nginx:1", "docker.io/library/nginx:1"],
  ["acme/app", "docker.io/acme/app:latest"],
  ["localhost/app:1", "localhost/app:1"],
  ["registry:5000/app", "registry:5000/app:latest"],
  ["ghcr.io/a/b/c:1", "ghcr.io/a/b/c:1"],
  [
    "nginx@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "docker.io/library/nginx@sha256:0000000000000000000000000000000000000000000000000000000000000000",
  ],
])("the image %s is %s", (image, full) => {
  expect(qualifyImage(image)).toBe(full);
});
