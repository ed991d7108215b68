import { constants } from "node:fs";
import { lstat, open, readlink } from "node:fs/promises";
import { join } from "node:path";
import { ClusterError, isErrno } from "../../lib/errors/errors.ts";

/** Whom a process runs as. */
export interface ContainerUser {
  readonly uid: number;
  readonly gid: number;
  /** Supplementary groups, ascending. */
  readonly groups: readonly number[];
  /** Home directory; "/" when the image knows none. */
  readonly home: string;
}

const maxFileBytes = 4 * 1024 * 1024;
const maxLinks = 40;
const maxId = 2 ** 32 - 2;

/**
 * Looks up "user", "uid", "user:group" or "uid:gid" (empty: root) and further groups in the image's own /etc/passwd and
 * /etc/group. Numbers need not be listed there. Throws `invalid` for names that are not.
 */
export async function resolveUser(rootfs: string, user: string, groupAdd: readonly string[]): Promise<ContainerUser> {
  const passwd = await readTable(rootfs, "/etc/passwd");
  const group = await readTable(rootfs, "/etc/group");
  const [name = "", groupName] = user === "" ? ["0"] : user.split(":", 2);

  const entry = passwd.find((line) => line[0] === name) ?? passwd.find((line) => line[2] === name && isId(name));
  const uid = entry === undefined ? name : (entry[2] ?? "");
  if (!isId(uid)) throw unknown("user", name, "/etc/passwd");
  const gid = groupName === undefined || groupName === "" ? Number(entry?.[3] ?? 0) : groupId(group, groupName);
  const groups = new Set(groupAdd.map((one) => groupId(group, one)));
  // A group given by the user takes the place of those that the image lists him in, as with initgroups(3) left out.
  if (groupName === undefined && entry !== undefined) {
    for (const [, , id = "", members = ""] of group) {
      if (isId(id) && members.split(",").includes(entry[0] ?? "")) groups.add(Number(id));
    }
  }
  return { uid: Number(uid), gid, groups: [...groups].sort((a, b) => a - b), home: entry?.[5] || "/" };
}

function groupId(table: readonly (readonly string[])[], name: string): number {
  const id = table.find((line) => line[0] === name)?.[2] ?? name;
  if (!isId(id)) throw unknown("group", name, "/etc/group");
  return Number(id);
}

function isId(text: string): boolean {
  return /^[0-9]{1,10}$/.test(text) && Number(text) <= maxId;
}

function unknown(what: string, name: string, file: string): ClusterError {
  return new ClusterError(`the image has no ${what} "${name}" in ${file}`, {
    code: "invalid",
    hint: `Name a ${what} of the image, or give its number.`,
  });
}

async function readTable(rootfs: string, path: string): Promise<readonly (readonly string[])[]> {
  const text = await readInRoot(rootfs, path);
  return (text ?? "")
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"))
    .map((line) => line.split(":"));
}

/**
 * A file's first 4 MiB as the container would see it, or undefined when it has none: links are followed within the root file
 * system and never out of it, and what is no plain file (a pipe would block us) counts as absent.
 */
export async function readInRoot(rootfs: string, path: string): Promise<string | undefined> {
  const found = await resolveInRoot(rootfs, path);
  if (found === undefined) return undefined;
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(found, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (isErrno(error, "ENOENT") || isErrno(error, "ELOOP") || isErrno(error, "ENXIO")) return undefined;
    throw error;
  }
  try {
    if (!(await file.stat()).isFile()) return undefined;
    const buffer = Buffer.alloc(Math.min(maxFileBytes, (await file.stat()).size));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
    return buffer.toString("utf8", 0, bytesRead);
  } finally {
    await file.close();
  }
}

/** The path on the host, free of links, of a path within a root file system; undefined when it does not exist. */
export async function resolveInRoot(rootfs: string, path: string): Promise<string | undefined> {
  const todo = path.split("/");
  let done: string[] = [];
  for (let links = 0; todo.length > 0; ) {
    const part = todo.shift() ?? "";
    if (part === "" || part === ".") continue;
    if (part === "..") {
      done.pop();
      continue;
    }
    const here = join(rootfs, ...done, part);
    const entry = await lstat(here).catch((error: unknown) => {
      if (isErrno(error, "ENOENT") || isErrno(error, "ENOTDIR")) return undefined;
      throw error;
    });
    if (entry === undefined) return undefined;
    if (!entry.isSymbolicLink()) {
      done.push(part);
      continue;
    }
    links += 1;
    if (links > maxLinks) return undefined;
    const target = await readlink(here);
    if (target.startsWith("/")) done = [];
    todo.unshift(...target.split("/"));
  }
  return join(rootfs, ...done);
}
