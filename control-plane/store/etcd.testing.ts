import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "../../lib/clock/clock.ts";
import type { TlsIdentity } from "../../lib/grpc/tls.ts";
import { silentLog } from "../../lib/log/log.ts";
import { Authority, createAuthority } from "../../lib/pki/authority.ts";
import { type IdentityFiles, writeIdentity } from "../../lib/pki/identity.ts";
import { DeleteRangeRequest } from "../../proto/gen/etcd/rpc.ts";
import { type EtcdSettings, etcdHostName } from "../etcd/arguments.ts";
import { EtcdSupervisor } from "../etcd/supervisor.ts";
import { EtcdClient } from "./client.ts";
import { EtcdStore, type EtcdStoreOptions } from "./etcd.ts";
import { prefixEnd } from "./list.ts";
import { createCodecs, rootPrefix } from "./schema.ts";
import { createBlobCodec } from "./seal.ts";
import type { View } from "./types.ts";

/** Free at the moment of asking. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return port;
}

export interface EtcdDirectory extends AsyncDisposable {
  readonly directory: string;
  readonly settings: EtcdSettings;
  readonly identity: TlsIdentity;
  readonly authority: Authority;
}

/** A temporary directory with certificates and settings for an embedded etcd. */
export async function etcdDirectory(over: Partial<EtcdSettings> = {}): Promise<EtcdDirectory> {
  const directory = await mkdtemp(join(tmpdir(), "embassy-etcd-"));
  const { certificate, key } = await createAuthority("embassy test", Date.now());
  const authority = await Authority.load(certificate, key);
  const identity = await authority.issue({
    commonName: "m1",
    role: "manager",
    nowMs: Date.now(),
    hosts: ["127.0.0.1", "localhost", etcdHostName],
  });
  const files: IdentityFiles = {
    ca: join(directory, "ca.pem"),
    certificate: join(directory, "etcd.pem"),
    key: join(directory, "etcd.key"),
  };
  await writeIdentity(files, identity);
  await mkdir(join(directory, "data"), { mode: 0o700 });
  const settings = {
    name: "m1",
    clusterId: "testtesttest",
    dataDir: join(directory, "data"),
    clientListen: `127.0.0.1:${await freePort()}`,
    peerListen: `127.0.0.1:${await freePort()}`,
    files,
    quotaBytes: 2 ** 31,
    ...over,
  };
  return {
    directory,
    settings,
    identity,
    authority,
    [Symbol.asyncDispose]: async () => await rm(directory, { recursive: true }),
  };
}

/** Starts etcd there. */
export async function startEtcd({ settings, directory }: EtcdDirectory): Promise<EtcdSupervisor> {
  const options = { settings, binary: "etcd", logFile: join(directory, "etcd.log") };
  return await EtcdSupervisor.start({ log: silentLog, clock: systemClock }, options);
}

export interface Wire extends AsyncDisposable {
  readonly endpoint: string;
  /** Ends all connections and refuses new ones. */
  cut(): void;
  /** Keeps the connections and lets nothing through. */
  hang(): void;
  /** Lets connections through again, to the same etcd or another. */
  heal(target?: string): void;
}

/** A network between a client and etcd that can be cut. */
export async function wireTo(target: string): Promise<Wire> {
  const sockets = new Set<Socket>();
  let to = target;
  let whole = true;
  const server = createServer((near) => {
    if (!whole) return void near.destroy();
    const far = connect(Number(to.split(":")[1]), "127.0.0.1");
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => {
        sockets.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = () => {
    whole = false;
    for (const socket of sockets) socket.destroy();
  };
  return {
    endpoint: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    cut,
    hang: () => {
      for (const socket of sockets) socket.unpipe().pause();
    },
    heal: (other = to) => {
      to = other;
      whole = true;
    },
    [Symbol.asyncDispose]: async () => {
      cut();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

export interface TestEtcd extends AsyncDisposable {
  readonly directory: EtcdDirectory;
  readonly supervisor: EtcdSupervisor;
  client(endpoint?: string): EtcdClient;
  store(client: EtcdClient, options?: EtcdStoreOptions): Promise<EtcdStore>;
  /** Removes everything of ours. */
  clear(): Promise<void>;
}

/** A real etcd on loopback; `like` lends it the certificates of another. */
export async function testEtcd(over: Partial<EtcdSettings> = {}, like?: EtcdDirectory): Promise<TestEtcd> {
  const directory = await etcdDirectory(like === undefined ? over : { ...over, files: like.settings.files });
  const supervisor = await startEtcd(directory);
  const codecs = createCodecs(createBlobCodec(randomBytes(32)));
  const client = (endpoint = directory.settings.clientListen) =>
    new EtcdClient({ endpoints: [endpoint], identity: directory.identity, log: silentLog });
  return {
    directory,
    supervisor,
    client,
    store: async (of, options) =>
      await EtcdStore.open(
        { client: of, codecs, log: silentLog, clock: systemClock },
        AbortSignal.timeout(20_000),
        options,
      ),
    clear: async () => {
      using own = client();
      const request = DeleteRangeRequest.create({ key: Buffer.from(rootPrefix), rangeEnd: prefixEnd(rootPrefix) });
      await own.call(({ kv }) => kv.deleteRange.bind(kv), request, { deadlineMs: 20_000 });
    },
    [Symbol.asyncDispose]: async () => {
      await supervisor[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

export type OpenStore<Client extends EtcdClient = EtcdClient> = AsyncDisposable & {
  readonly store: EtcdStore;
  readonly client: Client;
};

/** A store over that client; both go together. */
export async function openStore<Client extends EtcdClient>(etcd: TestEtcd, client: Client): Promise<OpenStore<Client>> {
  const store = await etcd.store(client);
  return {
    store,
    client,
    [Symbol.asyncDispose]: async () => {
      await store[Symbol.asyncDispose]();
      client[Symbol.dispose]();
    },
  };
}

/** Resolves once the view is so. */
export async function untilView(store: EtcdStore, what: string, met: (view: View) => boolean): Promise<void> {
  if (met(store.view)) return;
  const done = Promise.withResolvers<void>();
  const look = () => met(store.view) && done.resolve();
  using _changes = store.subscribe(look);
  using _leader = store.onLeaderChange(look);
  const signal = AbortSignal.timeout(20_000);
  signal.addEventListener("abort", () => done.reject(new Error(`never: ${what}, at revision ${store.view.revision}`)));
  await done.promise;
}
