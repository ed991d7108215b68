import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import { isId } from "../../lib/ids/ids.ts";
import { type IdentityFiles, writeWhole } from "../../lib/pki/identity.ts";

/** Which node this host is, of which cluster. netd of the same host reads it too. */
export interface NodeFile {
  readonly nodeId: string;
  readonly name: string;
  readonly clusterId: string;
  /** host:port of each control-plane member. */
  readonly managers: readonly string[];
  /** IPv4 address that other hosts reach this one by. */
  readonly underlay: string;
  /**
   * Absent while it is a member. It was told that it was removed: "stopping" while its tasks are being stopped, "done" once
   * nothing of them is left on the host. netd takes its part away then, and the host may join again.
   */
  readonly removed?: "stopping" | "done";
}

export function nodeFilePath(stateDir: string): string {
  return join(stateDir, "node.json");
}

/** Where the node's certificate lies. */
export function identityFiles(stateDir: string): IdentityFiles {
  const directory = join(stateDir, "identity");
  return {
    ca: join(directory, "ca.pem"),
    certificate: join(directory, "node.pem"),
    key: join(directory, "node.key"),
  };
}

/** Reads node.json. Throws `not-found` when the host has not joined, `invalid` when the file is damaged. */
export async function readNodeFile(stateDir: string): Promise<NodeFile> {
  const path = nodeFilePath(stateDir);
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    if (!isErrno(cause, "ENOENT")) throw cause;
    throw new ClusterError(`this host is not a node yet: ${path} does not exist`, {
      code: "not-found",
      subject: path,
      hint: "Run `noded join --manager HOST --token TOKEN` first.",
      cause,
    });
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw new ClusterError(`${path} is damaged: ${messageOf(cause)}`, { code: "invalid", subject: path, cause });
  }
  if (!isNodeFile(parsed)) {
    throw new ClusterError(`${path} is damaged: a field is missing or malformed`, { code: "invalid", subject: path });
  }
  return parsed;
}

function isNodeFile(value: unknown): value is NodeFile {
  if (typeof value !== "object" || value === null) return false;
  const file = value as Record<string, unknown>;
  return (
    typeof file["nodeId"] === "string" &&
    isId(file["nodeId"]) &&
    typeof file["name"] === "string" &&
    typeof file["clusterId"] === "string" &&
    typeof file["underlay"] === "string" &&
    Array.isArray(file["managers"]) &&
    file["managers"].length > 0 &&
    file["managers"].every((manager) => typeof manager === "string")
  );
}

/** Writes node.json, whole or not at all. */
export async function writeNodeFile(stateDir: string, file: NodeFile): Promise<void> {
  await writeWhole(nodeFilePath(stateDir), `${JSON.stringify(file, null, 2)}\n`, 0o644);
}
