import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import * as z from "zod/mini";
import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import { type IdentityFiles, writeWhole } from "../../lib/pki/identity.ts";

/** What lies in a member's state directory. */
export interface StateFiles {
  readonly directory: string;
  /** Which cluster and member this is. */
  readonly cluster: string;
  readonly caKey: string;
  /** 32 random bytes, hex: encrypts secrets in etcd. */
  readonly storeKey: string;
  readonly manager: IdentityFiles;
  readonly etcd: IdentityFiles;
  readonly etcdData: string;
  readonly etcdLog: string;
  /** A CLI context of user admin. */
  readonly admin: string;
}

/** The files of a state directory. */
export function stateFiles(directory: string): StateFiles {
  const file = (name: string) => join(directory, name);
  const ca = file("ca.pem");
  return {
    directory,
    cluster: file("cluster.json"),
    caKey: file("ca.key"),
    storeKey: file("store.key"),
    manager: { ca, certificate: file("manager.pem"), key: file("manager.key") },
    etcd: { ca, certificate: file("etcd/etcd.pem"), key: file("etcd/etcd.key") },
    etcdData: file("etcd/data"),
    etcdLog: file("etcd/etcd.log"),
    admin: file("admin.json"),
  };
}

const clusterSchema = z.object({
  version: z.literal(1),
  clusterId: z.string(),
  member: z.string(),
  /** Random: tells this state directory from another one that carries the same member name. */
  instance: z.string(),
  /** host:port of the main listener, as nodes and users reach it. */
  advertise: z.string(),
  /** A join token that `init` printed before there was an etcd to keep it. */
  firstToken: z.optional(
    z.object({ id: z.string(), secretSha256: z.string(), createdAtMs: z.number(), expiresAtMs: z.number() }),
  ),
  /** Its record is in the state: one that is missing there was removed. */
  registered: z.optional(z.boolean()),
  /** A restore has begun and has not ended. */
  restoring: z.optional(z.boolean()),
  /** Of the embedded etcd; missing until the first start of the first member. */
  etcd: z.optional(
    z.object({
      /** It was let into an etcd that others had made. */
      joined: z.boolean(),
      /** It has served: an empty data directory is a lost one. */
      started: z.boolean(),
      /** Client addresses (host:port) of the other members. */
      others: z.array(z.string()),
      /** What it was started with when it joined. */
      initialCluster: z.optional(z.string()),
    }),
  ),
});
export type ClusterFile = z.infer<typeof clusterSchema>;

/**
 * Reads which cluster and member a state directory belongs to. Throws `not-found` before `clusterd init`, `denied` when it
 * cannot be read, `invalid` when it is not such a file.
 */
export async function readClusterFile(files: StateFiles): Promise<ClusterFile> {
  let text: string;
  try {
    text = await readFile(files.cluster, "utf8");
  } catch (cause) {
    if (isErrno(cause, "ENOENT")) {
      throw new ClusterError(`${files.directory} holds no cluster`, {
        code: "not-found",
        subject: files.directory,
        hint: "Make one with `clusterd init --advertise HOST`, or give the right --state-dir.",
        cause,
      });
    }
    throw new ClusterError(`the state directory ${files.directory} cannot be read: ${messageOf(cause)}`, {
      code: "denied",
      subject: files.directory,
      hint: "Run clusterd as the user who owns it (root), or give another --state-dir.",
      cause,
    });
  }
  try {
    return clusterSchema.parse(JSON.parse(text));
  } catch (cause) {
    throw new ClusterError(`${files.cluster} is damaged`, {
      code: "invalid",
      subject: files.cluster,
      hint: "Restore the state directory from a backup.",
      cause,
    });
  }
}

/** The file of a running member: what is changed is on disk, whole, before `change` resolves. */
export class ClusterFileKeeper {
  readonly #files: StateFiles;
  #value: ClusterFile;
  #last: Promise<unknown> = Promise.resolve();

  private constructor(files: StateFiles, value: ClusterFile) {
    this.#files = files;
    this.#value = value;
  }

  /** Throws what `readClusterFile` throws. */
  static async open(files: StateFiles): Promise<ClusterFileKeeper> {
    return new ClusterFileKeeper(files, await readClusterFile(files));
  }

  get value(): ClusterFile {
    return this.#value;
  }

  async change(fields: { readonly [K in keyof ClusterFile]?: ClusterFile[K] | undefined }): Promise<void> {
    const mine = this.#last.then(async () => {
      const next = clusterSchema.parse({ ...this.#value, ...fields });
      await writeClusterFile(this.#files, next);
      this.#value = next;
    });
    this.#last = mine.catch(() => undefined);
    await mine;
  }
}

export async function writeClusterFile(files: StateFiles, cluster: ClusterFile): Promise<void> {
  await writeWhole(files.cluster, `${JSON.stringify(cluster, undefined, 2)}\n`, 0o600);
}

/** The 32 bytes of a store key file. Throws `invalid`. */
export function parseStoreKey(text: string): Buffer {
  if (!/^[0-9a-f]{64}\n?$/.test(text)) {
    throw new ClusterError("the store key is not 64 hex digits", { code: "invalid", subject: "store.key" });
  }
  return Buffer.from(text.trim(), "hex");
}

/** Is there such a file? Throws `denied` when that cannot be told. */
export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (cause) {
    if (isErrno(cause, "ENOENT")) return false;
    throw new ClusterError(`${path} cannot be read: ${messageOf(cause)}`, { code: "denied", subject: path, cause });
  }
}
