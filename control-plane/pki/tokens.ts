import { timingSafeEqual } from "node:crypto";
import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError } from "../../lib/errors/errors.ts";
import { newId } from "../../lib/ids/ids.ts";
import { formatToken, hashSecret, newSecret, parseToken } from "../../lib/pki/token.ts";
import { JoinToken } from "../../proto/gen/embassy/v1/state.ts";
import type { Store, View, Write } from "../store/types.ts";

export const defaultTokenTtlMs = 24 * 60 * 60 * 1000;
/** Whoever has such a token can have the whole cluster. */
export const defaultManagerTokenTtlMs = 60 * 60 * 1000;
export const maxTokenTtlMs = 365 * defaultTokenTtlMs;

/** What a host may become with a token. */
export const tokenRoles = ["node", "manager"] as const;
export type TokenRole = (typeof tokenRoles)[number];

export interface TokenDeps {
  readonly store: Pick<Store, "view" | "commit">;
  /** Of the cluster's CA. */
  readonly caFingerprint: string;
  readonly clock: Pick<Clock, "nowMs">;
}

/**
 * Makes a join token, keeps its hash, and removes those that have run out. `ttlMs` 0: 24 hours, a manager's 1 hour.
 * Throws `invalid` for a negative time or one of more than a year or another role, and what a commit throws.
 */
export async function createToken(deps: TokenDeps, ttlMs: number, role = "node"): Promise<string> {
  if (!tokenRoles.some((known) => known === role)) {
    throw new ClusterError(`a join token is for a node or a manager, not for ${JSON.stringify(role)}`, {
      code: "invalid",
      subject: "role",
    });
  }
  if (!Number.isFinite(ttlMs) || ttlMs < 0 || ttlMs > maxTokenTtlMs) {
    throw new ClusterError("a join token lives for up to 8760h", { code: "invalid", subject: "ttl" });
  }
  const nowMs = deps.clock.nowMs();
  const secret = newSecret();
  const value = JoinToken.create({
    id: newId(),
    secretSha256: hashSecret(secret),
    role,
    createdAtMs: nowMs,
    expiresAtMs: nowMs + (ttlMs || (role === "manager" ? defaultManagerTokenTtlMs : defaultTokenTtlMs)),
  });
  const expired = [...deps.store.view.tokens.entries()]
    .filter(([, token]) => isExpired(token, nowMs))
    .map(([id]): Write => ({ table: "tokens", id, value: undefined }));
  await deps.store.commit([{ table: "tokens", id: value.id, value, ifRevision: 0 }, ...expired]);
  return formatToken({ caFingerprint: deps.caFingerprint, secret });
}

/** The token of that role that a text names. Throws `denied`, saying no more than the bearer of a right one may know. */
export function findToken(
  view: Pick<View, "tokens">,
  text: string,
  caFingerprint: string,
  nowMs: number,
  role: TokenRole = "node",
): JoinToken {
  const hint = `\`clusterd token create${role === "node" ? "" : ` --role ${role}`}\` prints a new one.`;
  const { secret, caFingerprint: named } = parseToken(text);
  if (named !== caFingerprint) {
    throw new ClusterError("the join token is for another cluster", { code: "denied", subject: "token", hint });
  }
  const hash = hashSecret(secret);
  const found = [...view.tokens.values()].find(
    (token) => token.secretSha256.length === hash.length && timingSafeEqual(token.secretSha256, hash),
  );
  if (found === undefined) {
    throw new ClusterError("the join token is not known to the cluster", { code: "denied", subject: "token", hint });
  }
  if (found.role !== role) {
    throw new ClusterError(`the join token is for a ${found.role}, and this needs one for a ${role}`, {
      code: "denied",
      subject: "token",
      hint,
    });
  }
  if (isExpired(found, nowMs)) {
    throw new ClusterError("the join token has run out", { code: "denied", subject: "token", hint });
  }
  return found;
}

function isExpired(token: JoinToken, nowMs: number): boolean {
  return token.expiresAtMs !== 0 && token.expiresAtMs <= nowMs;
}
