/** What a container of the image runs with unless its service says otherwise: the OCI image configuration, checked. */
export interface ImageConfig {
  readonly os: string;
  /** OCI name: amd64, arm64. */
  readonly architecture: string;
  readonly entrypoint: readonly string[];
  readonly command: readonly string[];
  /** "NAME=value", in the image's order. */
  readonly environment: readonly string[];
  /** Name, uid, name:group or uid:gid; empty: root. */
  readonly user: string;
  /** Empty: "/". */
  readonly workingDir: string;
  /** "80/tcp", ascending. */
  readonly exposedPorts: readonly string[];
  /** Paths the image declares as volumes, ascending. */
  readonly volumes: readonly string[];
  /** Empty: SIGTERM. */
  readonly stopSignal: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly healthcheck: ImageHealthcheck | undefined;
}

export interface ImageHealthcheck {
  /** ["CMD", ...], ["CMD-SHELL", script] or ["NONE"]. */
  readonly test: readonly string[];
  /** Each 0 when the image does not say. */
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly startPeriodMs: number;
  readonly startIntervalMs: number;
  readonly retries: number;
}

/** An image whose layers are unpacked in the store. Plain data: it may be kept as JSON and given back to `mount`. */
export interface Image {
  /** In full: registry/repository[:tag][@digest]. */
  readonly reference: string;
  /** os/arch[/variant] it was chosen for. */
  readonly platform: string;
  /** Of the platform's own manifest: "sha256:<hex>". What a task's `image_digest` holds. */
  readonly manifestDigest: string;
  readonly configDigest: string;
  readonly config: ImageConfig;
  /** The store's names of the unpacked layers, lowest first. */
  readonly layers: readonly string[];
  /** Sum of the compressed layers. */
  readonly sizeBytes: number;
}

export type PullPolicy = "missing" | "always" | "never";

export interface PullProgress {
  readonly layersTotal: number;
  readonly layersDone: number;
  /** Compressed bytes, of the layers that had to be fetched. */
  readonly bytesTotal: number;
  readonly bytesDone: number;
}

export interface PullOptions {
  /** Default "missing": the registry is not asked when the reference is in the store. */
  readonly policy?: PullPolicy | undefined;
  /** os/arch[/variant]; default or empty: this machine's. */
  readonly platform?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called at most every 100 ms, and once at the end. */
  readonly onProgress?: ((progress: PullProgress) => void) | undefined;
}

export interface Credentials {
  readonly username: string;
  readonly password: string;
}

/** Which images stay when the store is collected. */
export interface KeepSet {
  /** References in full or short form. */
  readonly references: readonly string[];
}

export interface Collected {
  readonly images: number;
  readonly layers: number;
}

/**
 * Images of one node: pulled from registries, unpacked once per layer, mounted with overlayfs. Everything lies under one
 * directory; whatever is killed at whatever instant, a layer in the store is whole.
 */
export interface ImageStore {
  /**
   * The image, its layers unpacked. Pulls of one image or of one layer at the same time are one transfer; a layer that was
   * complete before a crash is not fetched again, and a connection cut within a layer goes on where it was.
   *
   * Throws ClusterError, subject `image/<reference>`, the registry's own words in the message: `not-found` (no such
   * manifest or repository, or policy "never" and absent), `denied` (credentials), `unavailable` (registry unreachable, or
   * it failed), `invalid` (reference, digest mismatch, malformed or foreign-platform image), `exhausted` (disk full).
   */
  pull(reference: string, options?: PullOptions): Promise<Image>;

  /** The image of that reference and platform if the store has it with all its layers. Never asks a registry. */
  find(reference: string, platform?: string): Promise<Image | undefined>;

  /** Images in the store, by reference ascending. */
  list(): Promise<readonly Image[]>;

  /**
   * Mounts the image's layers with a writable layer of the container's own and returns the root file system's path. Again
   * for the same container: the same path, its writable layer as it was left.
   * Throws `not-found` when a layer is gone (pull again), `invalid` for more layers than overlayfs takes, `internal` with mount's words.
   */
  mount(image: Image, containerId: string): Promise<string>;

  /** Unmounts and deletes the container's writable layer. A container that is not there is no error. */
  unmount(containerId: string): Promise<void>;

  /** Ids of containers that have a writable layer here, mounted or left by a crash, ascending. */
  containers(): Promise<readonly string[]>;

  /** Forgets images that are not kept, then deletes layers that no image, mount or running pull needs. */
  collect(keep: KeepSet): Promise<Collected>;
}
