import { createHash } from "node:crypto";
import { ClusterError } from "../errors/errors.ts";

/** Where an image is: a registry, a repository in it, and a tag, a digest or both. */
export interface Reference {
  /** "docker.io", "host:port". */
  readonly registry: string;
  readonly repository: string;
  /** Undefined only when there is a digest. */
  readonly tag: string | undefined;
  /** "sha256:<hex>". It decides; the tag is then only a name. */
  readonly digest: string | undefined;
}

const component = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const host = /^(?:\[[0-9a-fA-F:]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?)(?::[0-9]{1,5})?$/;

/**
 * Reads "[registry/]repository[:tag][@digest]" by the rules of Docker's distribution/reference: without a registry
 * docker.io, there without a namespace library/, without tag and digest the tag latest. Throws `invalid`.
 */
export function parseReference(text: string): Reference {
  const fail = (why: string): never => {
    throw new ClusterError(`"${text}" is no image reference: ${why}`, {
      code: "invalid",
      subject: `image/${text}`,
      hint: "Write [registry/]repository[:tag][@sha256:digest].",
    });
  };
  const [named = "", digest, ...rest] = text.split("@");
  if (rest.length > 0) fail("more than one @");
  if (digest !== undefined && !/^sha256:[0-9a-f]{64}$/.test(digest)) fail(`"${digest}" is no sha256 digest`);

  const colon = named.lastIndexOf(":");
  const tagged = colon > named.lastIndexOf("/");
  const tag = tagged ? named.slice(colon + 1) : digest === undefined ? "latest" : undefined;
  if (tag !== undefined && !/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/.test(tag)) fail(`"${tag}" is no tag`);

  const name = tagged ? named.slice(0, colon) : named;
  const slash = name.indexOf("/");
  const first = slash < 0 ? "" : name.slice(0, slash);
  const isHost = first === "localhost" || /[.:]/.test(first) || first !== first.toLowerCase();
  if (isHost && !host.test(first)) fail(`"${first}" is no registry address`);
  const registry = !isHost || first === "index.docker.io" ? "docker.io" : first;
  const path = isHost ? name.slice(slash + 1) : name;
  const repository = registry === "docker.io" && !path.includes("/") ? `library/${path}` : path;
  if (path === "") fail("the repository is missing");
  for (const part of path.split("/")) {
    if (!component.test(part)) fail(`"${part}" is not lower-case letters and digits, joined by . _ or -`);
  }
  return { registry, repository, tag, digest };
}

/** The reference in full; the inverse of `parseReference`. */
export function formatReference(reference: Reference): string {
  const { registry, repository, tag, digest } = reference;
  return `${registry}/${repository}${tag === undefined ? "" : `:${tag}`}${digest === undefined ? "" : `@${digest}`}`;
}

/** The reference as written by a user, in full: "redis" -> "docker.io/library/redis:latest". Throws `invalid`. */
export function normalizeReference(text: string): string {
  return formatReference(parseReference(text));
}

/**
 * What stands for an image where a whole reference would take too much room: the same for all ways to write it. Two images in four thousand
 * million may have the same. 0 for what is no reference.
 */
export function imageFingerprint(text: string): number {
  try {
    return createHash("sha256").update(normalizeReference(text)).digest().readUInt32LE();
  } catch {
    return 0;
  }
}
