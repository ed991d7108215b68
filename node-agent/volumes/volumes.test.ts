import { chown, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Mount, MountType } from "../../proto/gen/embassy/v1/stack.ts";
import { insideRoot, Volumes } from "./volumes.ts";

let directory: string;
let rootfs: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "embassy-volumes-"));
  rootfs = join(directory, "rootfs");
  await mkdir(join(rootfs, "data"), { recursive: true });
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});
const open = () => new Volumes(join(directory, "volumes"));
const volume = (source: string, target = "/data") =>
  Mount.create({ type: MountType.MOUNT_TYPE_VOLUME, source, target });

describe("Volumes", () => {
  it("makes a volume with the image's content and owner, and keeps what it has", async () => {
    await writeFile(join(rootfs, "data/seed"), "from the image");
    await chown(join(rootfs, "data"), 999, 998);
    const first = await open().resolve(volume("s_db"), rootfs);
    const source = join(directory, "volumes/s_db/_data");
    expect(first).toEqual({ type: "bind", source, target: "/data", readOnly: false });
    expect(await readFile(join(source, "seed"), "utf8")).toBe("from the image");
    expect(await stat(source)).toMatchObject({ uid: 999, gid: 998 });
    await writeFile(join(source, "seed"), "changed");
    await open().resolve(volume("s_db"), rootfs);
    expect(await readFile(join(source, "seed"), "utf8")).toBe("changed");
  });

  it("counts what volumes take, those of which it is in time", async () => {
    const volumes = open();
    for (const name of ["a", "b"]) await volumes.resolve(volume(name, "/none"), rootfs);
    await writeFile(join(directory, "volumes/b/_data/rows"), Buffer.alloc(100_000));
    const sizes = await volumes.sizes(["a", "b", "gone"], new AbortController().signal);
    expect(Object.keys(sizes)).toEqual(["a", "b"]);
    expect((sizes["b"] ?? 0) - (sizes["a"] ?? 0)).toBeGreaterThanOrEqual(100_000);
    expect(await volumes.sizes(["a", "b"], AbortSignal.abort())).toEqual({});
  });

  it("makes it once for tasks that start together, and cleans up after a crash", async () => {
    await mkdir(join(directory, "volumes/s_db/new-half"), { recursive: true });
    const volumes = open();
    const sources = await Promise.all([1, 2, 3].map(() => volumes.resolve(volume("s_db", "/none"), rootfs)));
    expect(new Set(sources.map((mount) => ("source" in mount ? mount.source : ""))).size).toBe(1);
    expect(await readdir(join(directory, "volumes/s_db"))).toEqual(["_data"]);
  });

  it("lists what there is, removes it whole, and makes it anew for a task that comes later", async () => {
    const volumes = open();
    expect(await volumes.list()).toEqual([]);
    await volumes.resolve(volume("s_db"), rootfs);
    await volumes.resolve(volume("s_a"), rootfs);
    await mkdir(join(directory, "volumes/s_half/new-x"), { recursive: true });
    await writeFile(join(directory, "volumes/s_db/_data/row"), "1");
    expect(await volumes.list()).toEqual(["s_a", "s_db"]);
    const { emptied } = await volumes.remove("s_db");
    expect(await volumes.list()).toEqual(["s_a"]);
    await emptied;
    expect((await readdir(join(directory, "volumes"))).toSorted()).toEqual(["s_a", "s_half"]);
    await volumes.resolve(volume("s_db"), rootfs);
    expect(await readdir(join(directory, "volumes/s_db/_data"))).toEqual([]);
    await expect(volumes.remove("s_none")).rejects.toMatchObject({ code: "not-found" });
    for (const name of ["../volumes", "..", "", "a/b", ".removed-x"])
      await expect(volumes.remove(name)).rejects.toMatchObject({ code: "invalid" });
  });

  it("deletes at its start what a crash left of a removed volume", async () => {
    await mkdir(join(directory, "volumes/.removed-x/_data"), { recursive: true });
    await open().resolve(volume("s_db"), rootfs);
    expect(await open().list()).toEqual(["s_db"]);
    await open().sweep();
    expect(await readdir(join(directory, "volumes"))).toEqual(["s_db"]);
  });

  it("refuses a name that leads elsewhere, and a bind of what is not there unless it may be made", async () => {
    await expect(open().resolve(volume("../x"), rootfs)).rejects.toMatchObject({ code: "invalid" });
    const source = join(directory, "missing/deep");
    const bind = Mount.create({ type: MountType.MOUNT_TYPE_BIND, source, target: "/b", readOnly: true });
    await expect(open().resolve(bind, rootfs)).rejects.toMatchObject({
      code: "invalid",
      message: `${source} does not exist on this node`,
    });
    const made = await open().resolve({ ...bind, createHostPath: true }, rootfs);
    expect(made).toEqual({ type: "bind", source, target: "/b", readOnly: true });
    expect((await stat(source)).isDirectory()).toBe(true);
  });
});

describe("insideRoot", () => {
  it("follows links as the container would, and never leaves its root", async () => {
    await mkdir(join(rootfs, "var/lib"), { recursive: true });
    await symlink("/var/lib", join(rootfs, "absolute"));
    await symlink("../../../../var", join(rootfs, "var/up"));
    await symlink("loop", join(rootfs, "loop"));
    expect(await insideRoot(rootfs, "/absolute")).toBe(join(rootfs, "var/lib"));
    expect(await insideRoot(rootfs, "/var/up/lib")).toBe(join(rootfs, "var/lib"));
    expect(await insideRoot(rootfs, "/../..")).toBe(`${rootfs}/`);
    expect(await insideRoot(rootfs, "/none")).toBeUndefined();
    expect(await insideRoot(rootfs, "/loop")).toBeUndefined();
  });
});
