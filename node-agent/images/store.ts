import { createHash } from "node:crypto";
import { lstat, mkdir, open, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Clock, systemClock } from "../../lib/clock/clock.ts";
import { asClusterError, ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import { formatReference, parseReference, type Reference } from "../../lib/images/reference.ts";
import type { Log } from "../../lib/log/log.ts";
import { runOk } from "../../lib/process/run.ts";
import type { Spawner } from "../../lib/process/spawner.ts";
import { compareTexts } from "../../lib/words/compare.ts";
import { diskFull, exists, readIfThere, syncDirectory, temporaryName, writeDurably } from "./files.ts";
import { Flights, Gate } from "./flights.ts";
import { HttpClient } from "./http.ts";
import { chooseEntry, type Descriptor, parseConfig, parseManifest } from "./manifest.ts";
import { formatPlatform, type Platform, parsePlatform } from "./platform.ts";
import { type Manifest, Registry } from "./registry.ts";
import type { Collected, Credentials, Image, ImageStore, KeepSet, PullOptions, PullProgress } from "./types.ts";
import { adoptMetadata, unpackLayer } from "./unpack.ts";

export interface ImageStoreOptions {
  /** Everything lies under it; made when it is missing. Overlayfs must take it as an upper directory. */
  readonly stateDir: string;
  readonly log: Log;
  readonly spawner: Pick<Spawner, "mount" | "unmount">;
  /** Registries ("host:port") to talk to in plain HTTP; all others speak TLS. */
  readonly insecureRegistries?: readonly string[];
  readonly credentials?: (registry: string) => Promise<Credentials | undefined>;
  readonly clock?: Clock;
  /** Longest silence of a registry; default 30,000. */
  readonly idleTimeoutMs?: number;
  /** Waits between attempts at a registry; default 200, 1000, 3000. */
  readonly retryDelaysMs?: readonly number[];
  /** Layers unpacked at the same time; default 3. */
  readonly parallelLayers?: number;
  /** Where HTTP_PROXY and its like are read; default this process's. */
  readonly proxyEnv?: NodeJS.ProcessEnv;
}

/** What is kept beside an unpacked layer, in layer.json. */
interface LayerRecord {
  readonly diffId: string;
  readonly blobDigest: string;
  /** latin1 names of directories that hide everything below them. */
  readonly opaque: readonly string[];
  /** Boot in which it was unpacked: not trusted in another one unless it was synced to disk. */
  readonly bootId: string;
}

// mount(2) takes one page of options; names are relative to the layers' directory to fit as many as possible.
const maxMountOptionBytes = 4095;

/**
 * An image store in a directory:
 *
 *     images/<hash>.json      one per reference and platform: the Image, written last
 *     layers/<key>/fs         an unpacked layer; beside it layer.json, and `synced` once it is on disk
 *     rootfs/<container>/     upper, work, merged and image.json of a container
 *     tmp/                    half-made things; emptied when the store is opened
 *
 * Only one process may have it open.
 */
export async function openImageStore(options: ImageStoreOptions): Promise<ImageStore & AsyncDisposable> {
  const store = new DirectoryStore(options);
  await store.open();
  return store;
}

class DirectoryStore implements ImageStore, AsyncDisposable {
  readonly #options: ImageStoreOptions;
  readonly #log: Log;
  readonly #http: HttpClient;
  readonly #registries = new Map<string, Registry>();
  readonly #pulls = new Flights<Image>();
  readonly #layerFlights = new Flights<void>();
  readonly #gate: Gate;
  /** Mounts, collections and new layers exclude one another: no layer goes between the look at it and its mount. */
  readonly #exclusive = new Gate(1);
  readonly #layers = new Map<string, LayerRecord>();
  readonly #unsynced = new Set<string>();
  /** Compressed bytes received, by layer under way. */
  readonly #received = new Map<string, number>();
  #syncing: Promise<void> = Promise.resolve();
  #bootId = "";

  constructor(options: ImageStoreOptions) {
    this.#options = options;
    this.#log = options.log;
    this.#gate = new Gate(options.parallelLayers ?? 3);
    this.#http = new HttpClient({
      idleTimeoutMs: options.idleTimeoutMs ?? 30_000,
      proxyEnv: options.proxyEnv ?? process.env,
    });
  }

  #path(...parts: readonly string[]): string {
    return join(this.#options.stateDir, ...parts);
  }

  async open(): Promise<void> {
    await rm(this.#path("tmp"), { recursive: true, force: true });
    for (const folder of ["images", "layers", "rootfs", "tmp"]) {
      await mkdir(this.#path(folder), { recursive: true, mode: 0o711 });
    }
    this.#bootId = ((await readIfThere("/proc/sys/kernel/random/boot_id")) ?? "").trim();
    for (const key of await readdir(this.#path("layers"))) await this.#openLayer(key);
    this.#startSync();
  }

  async #openLayer(key: string): Promise<void> {
    const text = await readIfThere(this.#path("layers", key, "layer.json"));
    const synced = await exists(this.#path("layers", key, "synced"));
    const record = text === undefined ? undefined : parseLayerRecord(text);
    // After a power cut, files that were never synced may be empty although their names are there.
    if (record === undefined || (!synced && record.bootId !== this.#bootId)) {
      this.#log.warn("layer of an interrupted boot is dropped", { layer: key });
      await this.#discard(this.#path("layers", key));
      return;
    }
    this.#layers.set(key, record);
    if (!synced) this.#unsynced.add(key);
  }

  async pull(reference: string, options: PullOptions = {}): Promise<Image> {
    const parsed = parseReference(reference);
    const platform = parsePlatform(options.platform ?? "");
    const full = formatReference(parsed);
    const policy = options.policy ?? "missing";
    if (policy !== "always") {
      const present = await this.find(full, formatPlatform(platform));
      if (present !== undefined) return present;
      if (policy === "never") {
        throw new ClusterError(`image ${full} is not on this node, and its pull policy is never`, {
          code: "not-found",
          subject: `image/${full}`,
          hint: "Set pull_policy: missing, or load the image on this node.",
        });
      }
    }
    const wanted = new Set<string>();
    const totals = { layers: [] as readonly string[], bytes: 0 };
    const report = this.#reporter(wanted, totals, options.onProgress);
    try {
      return await this.#pulls.join(`${full} ${formatPlatform(platform)}`, options.signal, async (signal) => {
        return await this.#pullNow(parsed, platform, signal, (keys, missing, bytes) => {
          for (const key of missing) wanted.add(key);
          totals.layers = keys;
          totals.bytes = bytes;
        });
      });
    } catch (error) {
      options.signal?.throwIfAborted();
      const known = asClusterError(diskFull(error, this.#options.stateDir));
      throw new ClusterError(`image ${full}: ${known.message}`, {
        code: known.code,
        subject: `image/${full}`,
        hint: known.hint,
        cause: error,
      });
    } finally {
      report();
    }
  }

  #reporter(
    wanted: ReadonlySet<string>,
    totals: { readonly layers: readonly string[]; readonly bytes: number },
    onProgress: ((progress: PullProgress) => void) | undefined,
  ): () => void {
    if (onProgress === undefined) return () => {};
    const report = () => {
      const keys = [...wanted];
      onProgress({
        layersTotal: totals.layers.length,
        layersDone: totals.layers.filter((key) => this.#layers.has(key)).length,
        bytesTotal: totals.bytes,
        bytesDone: keys.reduce((sum, key) => sum + (this.#received.get(key) ?? 0), 0),
      });
    };
    const timer = setInterval(report, 100);
    return () => {
      clearInterval(timer);
      report();
    };
  }

  async #pullNow(
    reference: Reference,
    platform: Platform,
    signal: AbortSignal,
    onPlan: (layers: readonly string[], missing: readonly string[], bytes: number) => void,
  ): Promise<Image> {
    const registry = this.#registry(reference.registry);
    const { manifest, parsed } = await this.#platformManifest(registry, reference, platform, signal);
    const { repository } = reference;
    if (parsed.config.size > 8 * 1024 * 1024)
      throw new ClusterError("the image configuration is over 8 MiB", { code: "invalid" });
    const configBytes = await registry.smallBlob(repository, parsed.config.digest, parsed.config.size, signal);
    const { config, diffIds } = parseConfig(configBytes, platform);
    if (diffIds.length !== parsed.layers.length) {
      throw new ClusterError(
        `the manifest has ${parsed.layers.length} layers and the configuration ${diffIds.length}`,
        {
          code: "invalid",
        },
      );
    }
    if (diffIds.length === 0) throw new ClusterError("the image has no layers", { code: "invalid" });
    const keys = chainKeys(diffIds);
    const missing = parsed.layers.filter((_, index) => !this.#layers.has(keys[index] ?? ""));
    onPlan(
      keys,
      keys.filter((key) => !this.#layers.has(key)),
      missing.reduce((sum, layer) => sum + layer.size, 0),
    );
    const done: Promise<void>[] = [];
    // One failed layer ends the others of this pull, unless another pull waits for them too.
    const failed = new AbortController();
    const either = AbortSignal.any([signal, failed.signal]);
    for (const [index, layer] of parsed.layers.entries()) {
      const key = keys[index] ?? "";
      const lower = done.slice();
      const work = this.#ensureLayer(
        { key, lowerKeys: keys.slice(0, index), lower, registry, repository, layer, diffId: diffIds[index] ?? "" },
        either,
      );
      work.catch((error: unknown) => failed.abort(error));
      done.push(work);
    }
    const results = await Promise.allSettled(done);
    signal.throwIfAborted();
    if (failed.signal.aborted) throw failed.signal.reason;
    for (const result of results) if (result.status === "rejected") throw result.reason;

    // overlayfs does not look at the opaque mark on a layer's root: leave out what it hides.
    const hidden = keys.findLastIndex((key) => this.#layers.get(key)?.opaque.includes("") === true);
    const image: Image = {
      reference: formatReference(reference),
      platform: formatPlatform(platform),
      manifestDigest: manifest.digest,
      configDigest: parsed.config.digest,
      config,
      layers: keys.slice(Math.max(0, hidden)),
      sizeBytes: parsed.layers.reduce((sum, layer) => sum + layer.size, 0),
    };
    const path = this.#path("images", recordName(image.reference, image.platform));
    await writeDurably(this.#path("tmp"), path, JSON.stringify(image));
    this.#startSync();
    return image;
  }

  async #platformManifest(registry: Registry, reference: Reference, platform: Platform, signal: AbortSignal) {
    let manifest: Manifest = await registry.manifest(reference, signal);
    let parsed = parseManifest(manifest.bytes);
    if (parsed.kind === "index") {
      const { digest } = chooseEntry(parsed, platform);
      manifest = await registry.manifest({ ...reference, digest }, signal);
      parsed = parseManifest(manifest.bytes);
      if (parsed.kind === "index") throw new ClusterError("the manifest list names another list", { code: "invalid" });
    }
    return { manifest, parsed };
  }

  async #ensureLayer(
    wanted: {
      readonly key: string;
      readonly lowerKeys: readonly string[];
      readonly lower: readonly Promise<void>[];
      readonly registry: Registry;
      readonly repository: string;
      readonly layer: Descriptor;
      readonly diffId: string;
    },
    signal: AbortSignal,
  ): Promise<void> {
    if (this.#layers.has(wanted.key)) return;
    await this.#layerFlights.join(wanted.key, signal, async (shared) => {
      if (this.#layers.has(wanted.key)) return;
      const draft = this.#path("tmp", temporaryName());
      try {
        await mkdir(join(draft, "fs"), { recursive: true, mode: 0o755 });
        const unpacked = await this.#gate.run(async () => {
          shared.throwIfAborted();
          return await unpackLayer(this.#counted(wanted, shared), join(draft, "fs"), shared);
        });
        if (unpacked.diffId !== wanted.diffId) {
          throw new ClusterError(
            `layer ${wanted.layer.digest} unpacks to ${unpacked.diffId}, its configuration says ${wanted.diffId}`,
            { code: "invalid", hint: "The image is damaged: build and push it again." },
          );
        }
        // Directories that the archive only implies look like those of the layers below, which have to be there first.
        await Promise.all(wanted.lower);
        const lowers = wanted.lowerKeys.toReversed().map((key) => ({
          directory: this.#path("layers", key, "fs"),
          opaque: new Set(this.#layers.get(key)?.opaque),
        }));
        await adoptMetadata(join(draft, "fs"), unpacked.implicit, lowers, shared);
        const record: LayerRecord = {
          diffId: wanted.diffId,
          blobDigest: wanted.layer.digest,
          opaque: unpacked.opaque,
          bootId: this.#bootId,
        };
        const file = await open(join(draft, "layer.json"), "w", 0o600);
        try {
          await file.writeFile(JSON.stringify(record));
        } finally {
          await file.close();
        }
        await this.#exclusive.run(async () => {
          await rename(draft, this.#path("layers", wanted.key));
          this.#layers.set(wanted.key, record);
          this.#unsynced.add(wanted.key);
        });
      } catch (error) {
        await this.#discard(draft);
        throw error;
      }
    });
  }

  async *#counted(
    wanted: {
      readonly key: string;
      readonly registry: Registry;
      readonly repository: string;
      readonly layer: Descriptor;
    },
    signal: AbortSignal,
  ): AsyncGenerator<Buffer> {
    const { key, registry, repository, layer } = wanted;
    let received = 0;
    for await (const chunk of registry.blob(repository, layer.digest, layer.size, signal)) {
      received += chunk.length;
      this.#received.set(key, received);
      yield chunk;
    }
  }

  #registry(name: string): Registry {
    let registry = this.#registries.get(name);
    if (registry === undefined) {
      registry = new Registry(name, {
        http: this.#http,
        clock: this.#options.clock ?? systemClock,
        insecure: this.#options.insecureRegistries ?? [],
        credentials: this.#options.credentials ?? (async () => await Promise.resolve(undefined)),
        retryDelaysMs: this.#options.retryDelaysMs ?? [200, 1_000, 3_000],
      });
      this.#registries.set(name, registry);
    }
    return registry;
  }

  /** Brings new layers to disk in the background, and then marks them as safe against a power cut. */
  #startSync(): void {
    this.#syncing = this.#syncing.then(async () => {
      const keys = [...this.#unsynced];
      if (keys.length === 0) return;
      try {
        await runOk("sync", ["-f", this.#path("layers")]);
        for (const key of keys) {
          this.#unsynced.delete(key);
          const file = await open(this.#path("layers", key, "synced"), "w", 0o600);
          await file.close();
        }
        await syncDirectory(this.#path("layers"));
      } catch (error) {
        // A layer collected meanwhile; or a full disk, and then a power cut costs a new pull.
        if (!isErrno(error, "ENOENT")) this.#log.warn("new layers are not on disk yet", { error });
      }
    });
  }

  async find(reference: string, platform = ""): Promise<Image | undefined> {
    const full = formatReference(parseReference(reference));
    const text = await readIfThere(this.#path("images", recordName(full, formatPlatform(parsePlatform(platform)))));
    if (text === undefined) return undefined;
    const image = parseImage(text);
    return image?.layers.every((key) => this.#layers.has(key)) === true ? image : undefined;
  }

  async list(): Promise<readonly Image[]> {
    const images: Image[] = [];
    for (const name of await readdir(this.#path("images"))) {
      const image = parseImage((await readIfThere(this.#path("images", name))) ?? "");
      if (image?.layers.every((key) => this.#layers.has(key)) === true) images.push(image);
    }
    return images.sort((a, b) => compareTexts(`${a.reference} ${a.platform}`, `${b.reference} ${b.platform}`));
  }

  async mount(image: Image, containerId: string): Promise<string> {
    checkContainerId(containerId);
    return await this.#exclusive.run(async () => {
      const lost = image.layers.find((key) => !this.#layers.has(key));
      if (lost !== undefined || image.layers.length === 0) {
        throw new ClusterError(`image ${image.reference} is no longer whole in the store`, {
          code: "not-found",
          subject: `image/${image.reference}`,
          hint: "Pull it again.",
        });
      }
      const home = this.#path("rootfs", containerId);
      const merged = join(home, "merged");
      for (const folder of ["", "upper", "work", "merged"])
        await mkdir(join(home, folder), { recursive: true, mode: 0o755 });
      if (await isMountPoint(merged)) return merged;
      // Not synced: after a power cut nothing is mounted, and the next mount writes it anew.
      await writeFile(join(home, "image.json"), JSON.stringify({ layers: image.layers }));
      const lower = image.layers
        .toReversed()
        .map((key) => `${key}/fs`)
        .join(":");
      const own = `../rootfs/${containerId}`;
      const mountOptions = `lowerdir=${lower},upperdir=${own}/upper,workdir=${own}/work`;
      if (mountOptions.length > maxMountOptionBytes) {
        throw new ClusterError(`image ${image.reference} has ${image.layers.length} layers, more than a mount takes`, {
          code: "invalid",
          subject: `image/${image.reference}`,
          hint: "Build it with fewer layers (about 140 fit).",
        });
      }
      try {
        await this.#options.spawner.mount({
          cwd: this.#path("layers"),
          source: "overlay",
          target: `${own}/merged`,
          type: "overlay",
          options: mountOptions,
        });
      } catch (cause) {
        throw new ClusterError(`cannot mount image ${image.reference}: ${messageOf(cause)}`, {
          code: "internal",
          subject: `task/${containerId}`,
          cause,
        });
      }
      return merged;
    });
  }

  async unmount(containerId: string): Promise<void> {
    checkContainerId(containerId);
    await this.#exclusive.run(async () => {
      const home = this.#path("rootfs", containerId);
      if (!(await exists(home))) return;
      const merged = join(home, "merged");
      // More than once only if somebody else mounted over it.
      for (let attempt = 0; attempt < 4 && (await isMountPoint(merged)); attempt += 1) {
        await this.#options.spawner.unmount(merged);
      }
      await this.#discard(home);
    });
  }

  async containers(): Promise<readonly string[]> {
    return (await readdir(this.#path("rootfs"))).sort();
  }

  async collect(keep: KeepSet): Promise<Collected> {
    return await this.#exclusive.run(async () => {
      const kept = new Set(keep.references.map((reference) => formatReference(parseReference(reference))));
      const busy = new Set(this.#pulls.keys());
      const used = new Set<string>();
      let images = 0;
      for (const name of await readdir(this.#path("images"))) {
        const image = parseImage((await readIfThere(this.#path("images", name))) ?? "");
        if (image !== undefined && (kept.has(image.reference) || busy.has(`${image.reference} ${image.platform}`))) {
          for (const key of image.layers) used.add(key);
          continue;
        }
        await rm(this.#path("images", name), { force: true });
        images += 1;
      }
      for (const id of await readdir(this.#path("rootfs"))) {
        for (const key of parseLayers(await readIfThere(this.#path("rootfs", id, "image.json")))) used.add(key);
      }
      // A pull under way may count on any layer that it found at its start: leave all of them for the next time.
      const unused = this.#pulls.keys().length > 0 ? [] : [...this.#layers.keys()].filter((key) => !used.has(key));
      // All at once, before anything else can run: a pull that begins now has to see them as missing.
      for (const key of unused) {
        this.#layers.delete(key);
        this.#unsynced.delete(key);
        this.#received.delete(key);
      }
      for (const key of unused) await this.#discard(this.#path("layers", key));
      return { images, layers: unused.length };
    });
  }

  /** Away from its place at once, so that what is half deleted is never found; its files then. */
  async #discard(path: string): Promise<void> {
    const trash = this.#path("tmp", temporaryName());
    try {
      await rename(path, trash);
    } catch (error) {
      if (isErrno(error, "ENOENT")) return;
      throw error;
    }
    await rm(trash, { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#syncing;
    this.#http.close();
  }
}

/** Names of layers by what they are and what lies below them, so that a layer's implied directories are right for its place. */
export function chainKeys(diffIds: readonly string[]): readonly string[] {
  const alphabet = "abcdefghijklmnopqrstuvwxyz234567";
  let chain = "";
  return diffIds.map((diffId) => {
    const hash = createHash("sha256").update(`${chain} ${diffId}`).digest();
    chain = hash.toString("hex");
    // 120 bits in 24 characters: short, for the mount's one page of options.
    return [...hash.subarray(0, 24)].map((byte) => alphabet[byte & 31]).join("");
  });
}

function recordName(reference: string, platform: string): string {
  return `${createHash("sha256").update(`${reference} ${platform}`).digest("hex").slice(0, 40)}.json`;
}

function parseImage(text: string): Image | undefined {
  try {
    return JSON.parse(text) as Image;
  } catch {
    return undefined;
  }
}

function parseLayers(text: string | undefined): readonly string[] {
  try {
    return (JSON.parse(text ?? "{}") as { layers?: readonly string[] }).layers ?? [];
  } catch {
    return [];
  }
}

function parseLayerRecord(text: string): LayerRecord | undefined {
  try {
    return JSON.parse(text) as LayerRecord;
  } catch {
    return undefined;
  }
}

function checkContainerId(id: string): void {
  if (!/^[a-z0-9][a-z0-9_.-]{0,63}$/.test(id)) {
    throw new ClusterError(`"${id}" is no container id`, {
      code: "invalid",
      hint: "Ids are 1-64 characters of a-z0-9_.-",
    });
  }
}

async function isMountPoint(path: string): Promise<boolean> {
  try {
    const [here, above] = await Promise.all([lstat(path), stat(join(path, ".."))]);
    return here.dev !== above.dev;
  } catch (error) {
    if (isErrno(error, "ENOENT")) return false;
    throw new ClusterError(`cannot look at ${path}: ${messageOf(error)}`, { code: "internal", cause: error });
  }
}
