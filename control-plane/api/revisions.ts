import { ClusterError } from "../../lib/errors/errors.ts";
import type { RevisionView, ServiceUpdate } from "../../proto/gen/embassy/v1/api.ts";
import { type BlobSpec, NetworkSpec, ServiceSpec, type StackSpec } from "../../proto/gen/embassy/v1/stack.ts";
import { type Service, type StackRecord, UpdateState } from "../../proto/gen/embassy/v1/state.ts";
import type { ClusterIndex } from "../domain/index.ts";
import { canonical } from "./plan-deploy.ts";
import { list } from "./resolve.ts";

/** A stack as it was deployed, to be deployed again. */
export interface KeptRevision {
  readonly revision: number;
  readonly spec: StackSpec;
}

/**
 * What a revision of a stack was, with the contents of its configs and secrets. `wanted` 0: of those before the newest the last
 * that ran as a whole and differs from it; where the newest brought an earlier one back, of those before that, so that each
 * rollback goes further and none returns to what was left. Throws `not-found` (no such stack or revision, or a content that is not kept).
 */
export function keptRevision(index: ClusterIndex, stack: string, wanted: number): KeptRevision {
  const kept = index.stackRevisions(stack);
  const newest = newestOf(index, stack, kept);
  const from = newest.restores > 0 ? newest.restores : newest.revision;
  const found =
    wanted === 0
      ? kept.findLast(
          ({ revision, convergedAtMs, spec }) =>
            revision < from && convergedAtMs > 0 && changes(spec, newest.spec).length > 0,
        )
      : kept.find(({ revision }) => revision === wanted);
  if (found?.spec === undefined) {
    const there = list(
      kept.map(({ revision }) => `revision ${revision}`),
      "Nothing is deployed.",
    );
    const [what, hint] =
      wanted === 0
        ? [
            `no revision of stack ${stack} before ${from} is kept that ran as a whole and differs from the present one`,
            `${there} \`clusterctl revisions ${stack}\` says what became of each; \`clusterctl rollback ${stack}@N\` brings any of them back.`,
          ]
        : [`revision ${wanted} of stack ${stack} is not kept`, there];
    throw new ClusterError(what, { code: "not-found", subject: `stack/${stack}`, hint });
  }
  const { spec, revision } = found;
  return {
    revision,
    spec: {
      ...spec,
      configs: withContents(index, "config", spec.configs),
      secrets: withContents(index, "secret", spec.secrets),
    },
  };
}

function newestOf(index: ClusterIndex, stack: string, kept: readonly StackRecord[]): StackRecord {
  const newest = kept.at(-1);
  if (newest !== undefined) return newest;
  throw new ClusterError(`there is no stack ${stack}`, {
    code: "not-found",
    subject: `stack/${stack}`,
    hint: list(index.stackNames(), "Nothing is deployed."),
  });
}

/** The record names contents by their digests. */
function withContents(index: ClusterIndex, kind: "config" | "secret", blobs: readonly BlobSpec[]): BlobSpec[] {
  return blobs.map((blob) => {
    const kept = index.view.blobs.get(`${kind}/${Buffer.from(blob.content).toString("hex")}`);
    if (kept === undefined) {
      throw new ClusterError(`what ${kind} ${blob.name} held at that revision is not kept`, {
        code: "not-found",
        subject: `${kind}/${blob.name}`,
        hint: "Deploy the stack from its file.",
      });
    }
    return { ...blob, content: kept.content };
  });
}

/** The revisions of a stack that are kept, newest first. Throws `not-found`. */
export function listRevisions(index: ClusterIndex, stack: string): RevisionView[] {
  const kept = index.stackRevisions(stack);
  const newest = newestOf(index, stack, kept);
  return kept
    .map((record, at): RevisionView => {
      const { revision, deployedAtMs, deployedBy, restores, convergedAtMs, rolledBack } = record;
      return {
        revision,
        deployedAtMs,
        deployedBy,
        restores,
        convergedAtMs,
        rolledBack,
        updates: record === newest ? updatesOf(index, index.servicesOfStack(stack)) : [],
        changed: changes(kept[at - 1]?.spec, record.spec),
        newest: record === newest,
      };
    })
    .reverse();
}

/** How the updates of those services go that are under way or have failed. */
export function updatesOf(index: ClusterIndex, services: readonly Service[]): ServiceUpdate[] {
  return services.flatMap(({ id, stack, spec, removed }) => {
    const status = index.view.serviceStatuses.get(id);
    if (removed || status === undefined || status.updateState === UpdateState.UPDATE_STATE_NONE) return [];
    return [{ stack, service: spec?.name ?? "", state: status.updateState, message: status.updateMessage }];
  });
}

/** What differs between two revisions, sorted; of the oldest that is kept all it has. */
function changes(before: StackSpec | undefined, after: StackSpec | undefined): string[] {
  const parts = (spec: StackSpec | undefined) => {
    const found = new Map<string, string>();
    for (const service of spec?.services ?? []) found.set(`service/${service.name}`, canonical(ServiceSpec, service));
    for (const network of spec?.networks ?? []) found.set(`network/${network.name}`, canonical(NetworkSpec, network));
    for (const { name, content } of spec?.configs ?? []) found.set(`config/${name}`, hex(content));
    for (const { name, content } of spec?.secrets ?? []) found.set(`secret/${name}`, hex(content));
    return found;
  };
  const [old, now] = [parts(before), parts(after)];
  return [...new Set([...old.keys(), ...now.keys()])].filter((key) => old.get(key) !== now.get(key)).sort();
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}
