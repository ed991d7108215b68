import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError, hasCode, messageOf } from "../../lib/errors/errors.ts";
import type { Reference } from "../../lib/images/reference.ts";
import { type HttpClient, readBody } from "./http.ts";
import type { Credentials } from "./types.ts";

export interface RegistryDeps {
  readonly http: HttpClient;
  readonly clock: Clock;
  /** Registries ("host:port") to talk to in plain HTTP. */
  readonly insecure: readonly string[];
  /** User and password for a registry, if there are any. */
  readonly credentials: (registry: string) => Promise<Credentials | undefined>;
  /** Waits between attempts; as many attempts more as there are numbers. */
  readonly retryDelaysMs: readonly number[];
}

export interface Manifest {
  readonly bytes: Buffer;
  readonly digest: string;
}

const manifestTypes = [
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
  "application/vnd.docker.distribution.manifest.v2+json",
].join(", ");
const maxManifestBytes = 4 * 1024 * 1024;
const maxRedirects = 5;

/**
 * The pulling half of the OCI distribution API for one registry. Content is checked against its digest before a caller
 * gets the last byte of it. All failures are ClusterErrors with the registry's own words.
 */
export class Registry {
  readonly #deps: RegistryDeps;
  readonly #name: string;
  readonly #base: URL;
  /** Authorization header by repository, as its token service gave it. */
  readonly #granted = new Map<string, { readonly header: string; readonly untilMs: number }>();

  constructor(name: string, deps: RegistryDeps) {
    this.#deps = deps;
    this.#name = name;
    const host = name === "docker.io" ? "registry-1.docker.io" : name;
    this.#base = new URL(`${deps.insecure.includes(name) ? "http" : "https"}://${host}/v2/`);
  }

  /** The manifest a reference names. */
  async manifest(reference: Reference, signal?: AbortSignal): Promise<Manifest> {
    const wanted = reference.digest ?? reference.tag ?? "latest";
    return await this.#retrying(signal, async () => {
      const url = new URL(`${reference.repository}/manifests/${wanted}`, this.#base);
      const response = await this.#get(url, reference.repository, { accept: manifestTypes }, signal);
      if (response.statusCode !== 200)
        throw await this.#refusal(response, `manifest ${reference.repository}:${wanted}`);
      const bytes = await this.#reading(() => readBody(response, maxManifestBytes));
      const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
      if (reference.digest !== undefined && digest !== reference.digest) throw corrupt(reference.digest, digest);
      return { bytes, digest };
    });
  }

  /** A small blob as a whole. */
  async smallBlob(repository: string, digest: string, size: number, signal?: AbortSignal): Promise<Buffer> {
    const chunks: Buffer[] = [];
    for await (const chunk of this.blob(repository, digest, size, signal)) chunks.push(chunk);
    return Buffer.concat(chunks);
  }

  /**
   * A blob's bytes in order. A connection that breaks goes on at the byte where it broke. Throws `invalid` in place of
   * the end when length or digest is not what was asked for.
   */
  async *blob(repository: string, digest: string, size: number, signal?: AbortSignal): AsyncGenerator<Buffer> {
    const hash = createHash("sha256");
    let received = 0;
    let failures = 0;
    let finished = false;
    while (!finished) {
      const from = received;
      try {
        const response = await this.#blobFrom(repository, digest, from, signal);
        // Without support for ranges the answer starts at 0 again: what is known already is passed over.
        let skip = response.statusCode === 206 ? 0 : from;
        for await (const chunk of response as AsyncIterable<Buffer>) {
          const fresh = skip === 0 ? chunk : chunk.subarray(Math.min(skip, chunk.length));
          skip -= chunk.length - fresh.length;
          received += fresh.length;
          if (received > size) {
            throw new ClusterError(`blob ${digest} is longer than the ${size} bytes its manifest says`, {
              code: "invalid",
            });
          }
          hash.update(fresh);
          if (fresh.length > 0) yield fresh;
        }
        if (received < size) throw new Error(`it ended after ${received} of ${size} bytes`);
        finished = true;
      } catch (error) {
        signal?.throwIfAborted();
        // A connection that brought something on counts as a new start: long blobs outlive many breaks.
        if (received > from) failures = 0;
        const delay = this.#deps.retryDelaysMs[failures];
        failures += 1;
        if (delay === undefined || !mayPass(error))
          throw error instanceof ClusterError ? error : this.#broken(digest, error);
        await this.#deps.clock.sleep(delay, signal);
      }
    }
    const found = `sha256:${hash.digest("hex")}`;
    if (found !== digest) throw corrupt(digest, found);
  }

  async #blobFrom(repository: string, digest: string, from: number, signal?: AbortSignal): Promise<IncomingMessage> {
    const url = new URL(`${repository}/blobs/${digest}`, this.#base);
    const range: Record<string, string> = from === 0 ? {} : { range: `bytes=${from}-` };
    const response = await this.#get(url, repository, range, signal);
    if (response.statusCode === 200 || (from > 0 && response.statusCode === 206)) return response;
    throw await this.#refusal(response, `blob ${digest} of ${repository}`);
  }

  /** GET with what the registry's challenge asks for, and over redirects, which never see our credentials. */
  async #get(
    url: URL,
    repository: string,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal | undefined,
  ): Promise<IncomingMessage> {
    let target = url;
    let challenged = false;
    let redirects = 0;
    for (;;) {
      const ours = target.origin === this.#base.origin;
      const granted = ours ? this.#authorization(repository) : undefined;
      const all = granted === undefined ? headers : { ...headers, authorization: granted };
      const response = await this.#deps.http.get({ url: target, headers: all, signal });
      const status = response.statusCode ?? 0;
      if (status === 401 && ours && !challenged) {
        challenged = true;
        const challenge = response.headers["www-authenticate"];
        if (await this.#answerChallenge(challenge, repository, signal)) {
          response.destroy();
          continue;
        }
      }
      const location = response.headers.location;
      if (status < 300 || status >= 400 || location === undefined) return response;
      response.destroy();
      redirects += 1;
      target = new URL(location, target);
      if (redirects > maxRedirects) {
        throw new ClusterError(`registry ${this.#name} redirects more than ${maxRedirects} times`, {
          code: "unavailable",
        });
      }
      if (target.protocol !== "https:" && this.#base.protocol === "https:") {
        throw new ClusterError(`registry ${this.#name} redirects to ${target.origin}, which is not encrypted`, {
          code: "denied",
        });
      }
    }
  }

  #authorization(repository: string): string | undefined {
    const grant = this.#granted.get(repository);
    return grant !== undefined && grant.untilMs > this.#deps.clock.monotonicMs() ? grant.header : undefined;
  }

  /** True: there is now something to show for this repository that was not shown before. */
  async #answerChallenge(challenge: string | undefined, repository: string, signal?: AbortSignal): Promise<boolean> {
    const { scheme, parameters } = parseChallenge(challenge ?? "");
    const credentials = await this.#deps.credentials(this.#name);
    const basic =
      credentials === undefined
        ? undefined
        : `Basic ${Buffer.from(`${credentials.username}:${credentials.password}`).toString("base64")}`;
    if (scheme === "basic" && basic !== undefined) {
      this.#granted.set(repository, { header: basic, untilMs: Number.POSITIVE_INFINITY });
      return true;
    }
    const realm = parameters.get("realm");
    if (scheme !== "bearer" || realm === undefined) return false;
    const url = new URL(realm);
    if (url.protocol !== "https:" && this.#base.protocol === "https:") {
      throw new ClusterError(`registry ${this.#name} sends us to ${url.origin} for a token, which is not encrypted`, {
        code: "denied",
      });
    }
    const service = parameters.get("service");
    if (service !== undefined) url.searchParams.set("service", service);
    url.searchParams.set("scope", parameters.get("scope") ?? `repository:${repository}:pull`);
    const response = await this.#deps.http.get({
      url,
      headers: basic === undefined ? {} : { authorization: basic },
      signal,
    });
    if (response.statusCode !== 200) throw await this.#refusal(response, `a token to pull ${repository}`);
    const answer = parseJson(await readBody(response, 1024 * 1024));
    const token = answer["token"] ?? answer["access_token"];
    if (typeof token !== "string")
      throw new ClusterError(`${url.host} gave no token to pull ${repository}`, { code: "unavailable" });
    const lifeS = typeof answer["expires_in"] === "number" ? answer["expires_in"] : 60;
    // Half of its life: clocks differ, and a long transfer asks for ranges with the same token.
    const untilMs = this.#deps.clock.monotonicMs() + lifeS * 500;
    this.#granted.set(repository, { header: `Bearer ${token}`, untilMs });
    return true;
  }

  async #refusal(response: IncomingMessage, what: string): Promise<ClusterError> {
    const status = response.statusCode ?? 0;
    const body = await readBody(response, 64 * 1024).catch(() => Buffer.alloc(0));
    const words = registryWords(body) ?? response.statusMessage ?? "";
    const message = `registry ${this.#name} refuses ${what}: ${status} ${words}`.trim();
    if (status === 401 || status === 403) {
      return new ClusterError(message, {
        code: "denied",
        hint: "The image needs credentials that this node does not have, or it does not exist.",
      });
    }
    if (status === 404)
      return new ClusterError(message, { code: "not-found", hint: "Check the image's name and tag." });
    if (status === 429 || status >= 500)
      return new ClusterError(message, { code: "unavailable", hint: "Try again later." });
    return new ClusterError(message, { code: "invalid" });
  }

  #broken(digest: string, cause: unknown): ClusterError {
    return new ClusterError(`registry ${this.#name} broke off blob ${digest}: ${messageOf(cause)}`, {
      code: "unavailable",
      cause,
    });
  }

  async #reading<T>(read: () => Promise<T>): Promise<T> {
    try {
      return await read();
    } catch (error) {
      if (error instanceof ClusterError) throw error;
      throw new ClusterError(`registry ${this.#name} broke off: ${messageOf(error)}`, {
        code: "unavailable",
        cause: error,
      });
    }
  }

  async #retrying<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await work();
      } catch (error) {
        signal?.throwIfAborted();
        const delay = this.#deps.retryDelaysMs[attempt];
        if (delay === undefined || !mayPass(error)) throw error;
        await this.#deps.clock.sleep(delay, signal);
      }
    }
  }
}

/** Is it worth another attempt at once? Nobody listening or no such name stays so for longer than we would wait. */
function mayPass(error: unknown): boolean {
  if (!(error instanceof ClusterError)) return true;
  const cause = error.cause;
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  return hasCode(error, "unavailable") && code !== "ECONNREFUSED" && code !== "ENOTFOUND" && !/TLS/.test(error.message);
}

function corrupt(wanted: string, found: string): ClusterError {
  return new ClusterError(`the registry's content for ${wanted} has digest ${found}`, {
    code: "invalid",
    hint: "The registry or something on the way to it damages content: push the image again, or use another registry.",
  });
}

/** The sentences in a registry's error answer: {"errors":[{code,message,detail}]}. */
export function registryWords(body: Buffer): string | undefined {
  const text = body.toString("utf8").trim();
  const errors = parseJson(body)["errors"];
  if (Array.isArray(errors)) {
    const words = errors
      .filter((entry): entry is Record<string, unknown> => typeof entry === "object" && entry !== null)
      .map((entry) =>
        [entry["code"], entry["message"]].filter((word) => typeof word === "string" && word !== "").join(": "),
      );
    if (words.length > 0) return words.join("; ");
  }
  return text === "" || text.startsWith("<") ? undefined : text.slice(0, 300);
}

/** Reads a WWW-Authenticate header (RFC 9110, section 11.6.1), its first challenge. Scheme and names in lower case. */
export function parseChallenge(header: string): {
  readonly scheme: string;
  readonly parameters: ReadonlyMap<string, string>;
} {
  const [, scheme = "", rest = ""] = /^\s*([A-Za-z]+)\s*(.*)$/s.exec(header) ?? [];
  const parameters = new Map<string, string>();
  for (const [, name = "", quoted, bare] of rest.matchAll(/([A-Za-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))/g)) {
    parameters.set(name.toLowerCase(), quoted?.replaceAll(/\\(.)/g, "$1") ?? bare ?? "");
  }
  return { scheme: scheme.toLowerCase(), parameters };
}

function parseJson(bytes: Buffer): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(bytes.toString("utf8"));
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
