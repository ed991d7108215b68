import { ClusterError } from "../../lib/errors/errors.ts";
import type { Write } from "./types.ts";

/** A commit's comparison failed. The subject is `<table>/<id>`, `lease/<id>` or `leader`. */
export function conflictOf(subject: string): ClusterError {
  const message = subject === "leader" ? "this member is not the leader" : `${subject} has changed since it was read`;
  return new ClusterError(message, { code: "conflict", subject });
}

/** Throws `internal` when two writes are to one place: which would win is not defined. */
export function checkWrites(writes: readonly Write[]): void {
  const seen = new Set<string>();
  for (const { table, id } of writes) {
    const key = `${table}/${id}`;
    if (seen.has(key)) {
      throw new ClusterError(`two writes to ${key} in one commit`, { code: "internal", subject: key });
    }
    seen.add(key);
  }
}
