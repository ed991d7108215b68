import { execFileSync, spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { silentLog } from "../../lib/log/log.ts";
import { Spawner } from "../../lib/process/spawner.ts";
import { buildImage, buildIndex, type ImageOptions, type Layer, layerOfTar } from "../../test/images/image.ts";
import { pushBlob, pushImage, pushManifest, startRegistry, type TestRegistry } from "../../test/images/registry.ts";
import { type Entry, tarOf } from "../../test/images/tar.ts";
import { hostPlatform } from "./platform.ts";
import { chainKeys, type ImageStoreOptions, openImageStore } from "./store.ts";

const root = process.getuid?.() === 0;
if (!root) console.warn("images/store.test.ts is skipped: unpacking and mounting need root");

const layer = async (entries: readonly Entry[], compression: "none" | "gzip" | "zstd" = "gzip"): Promise<Layer> =>
  await layerOfTar(tarOf(entries), compression);

describe.runIf(root)("an image store", () => {
  let registry: TestRegistry;
  let count = 0;

  beforeAll(async () => {
    registry = await startRegistry();
  });
  afterAll(async () => {
    await registry[Symbol.asyncDispose]();
  });

  /** A store in a directory of its own, which goes with it. */
  async function openStore(options: Partial<ImageStoreOptions> = {}) {
    const stateDir = options.stateDir ?? mkdtempSync(join(tmpdir(), "embassy-store-"));
    const store = await openImageStore({
      stateDir,
      log: silentLog,
      spawner: new Spawner("test: spawner"),
      insecureRegistries: [registry.host],
      retryDelaysMs: [1],
      proxyEnv: {},
      ...options,
    });
    return {
      store,
      stateDir,
      [Symbol.asyncDispose]: async () => {
        for (const id of await store.containers()) await store.unmount(id);
        await store[Symbol.asyncDispose]();
        rmSync(stateDir, { recursive: true, force: true });
      },
    };
  }

  async function push(layers: readonly Layer[], options: Partial<ImageOptions> = {}): Promise<string> {
    count += 1;
    return await pushImage(registry.url, `image${count}`, "1", buildImage({ layers, ...options }));
  }

  const halfMade = (stateDir: string) => readdirSync(join(stateDir, "tmp"));

  it("unpacks and mounts what the layers hold: links, devices, modes, owners, attributes", async () => {
    const reference = await push([
      await layer([
        { name: "bin/", type: "directory" },
        { name: "bin/tool", content: "#!/bin/sh\n", mode: 0o4755, uid: 7, gid: 8 },
        { name: "bin/same", type: "hardlink", target: "bin/tool" },
        { name: "bin/link", type: "symlink", target: "/etc/absolute" },
        { name: "pipe", type: "fifo" },
        { name: "null", type: "character", device: [1, 3], mode: 0o666 },
        { name: "sticky/", type: "directory", mode: 0o1777 },
        {
          name: "caps",
          content: "x",
          xattrs: {
            "user.colour": "blue",
            "security.capability": Buffer.from("0100000200040000000000000000000000000000", "hex"),
          },
        },
        { name: "ünïcödé ⚓", content: "1" },
        { name: `deep/${"n".repeat(200)}`, content: "2" },
      ]),
    ]);
    await using opened = await openStore();
    const image = await opened.store.pull(reference);
    const rootfs = await opened.store.mount(image, "c1");
    expect(await opened.store.mount(image, "c1")).toBe(rootfs);
    const tool = lstatSync(join(rootfs, "bin/tool"));
    expect([tool.mode & 0o7777, tool.uid, tool.gid, tool.nlink]).toEqual([0o4755, 7, 8, 2]);
    expect(lstatSync(join(rootfs, "bin/same")).ino).toBe(tool.ino);
    expect(lstatSync(join(rootfs, "bin/link")).isSymbolicLink()).toBe(true);
    expect(lstatSync(join(rootfs, "pipe")).isFIFO()).toBe(true);
    expect(lstatSync(join(rootfs, "null")).rdev).toBe(0x103);
    expect(statSync(join(rootfs, "sticky")).mode & 0o7777).toBe(0o1777);
    expect(readFileSync(join(rootfs, "ünïcödé ⚓"), "utf8")).toBe("1");
    expect(readFileSync(join(rootfs, `deep/${"n".repeat(200)}`), "utf8")).toBe("2");
    const attributes = execFileSync("tar", ["--xattrs", "--xattrs-include=*", "-C", rootfs, "-cf", "-", "caps"]);
    expect(attributes.includes("SCHILY.xattr.security.capability=")).toBe(true);
    expect(attributes.includes("SCHILY.xattr.user.colour=blue")).toBe(true);

    writeFileSync(join(rootfs, "written"), "");
    await opened.store.unmount("c1");
    await opened.store.unmount("c1");
    expect(await opened.store.containers()).toEqual([]);
    expect(halfMade(opened.stateDir)).toEqual([]);
    const again = await opened.store.mount(image, "c2");
    expect(existsSync(join(again, "written"))).toBe(false);
  });

  it("hides what upper layers delete, and takes implied directories' metadata from below", async () => {
    const reference = await push([
      await layer([
        { name: "kept/", type: "directory", mode: 0o700, uid: 5 },
        { name: "kept/old", content: "1" },
        { name: "kept/gone", content: "1" },
        { name: "whole/", type: "directory" },
        { name: "whole/old", content: "1" },
        { name: "remade/", type: "directory" },
        { name: "remade/old", content: "1" },
        { name: "whole/sub/", type: "directory", mode: 0o700 },
        { name: "whole/sub/old", content: "1" },
      ]),
      await layer([{ name: "kept/.wh.gone" }, { name: "kept/new", content: "2" }], "zstd"),
      await layer(
        [
          { name: "whole/", type: "directory" },
          { name: "whole/.wh..wh..opq" },
          { name: "whole/new", content: "3" },
          { name: ".wh.remade" },
          { name: "remade/", type: "directory" },
          { name: "nowhere/below/file", content: "3" },
        ],
        "none",
      ),
      await layer([{ name: "whole/sub/file", content: "4" }]),
    ]);
    await using opened = await openStore();
    const rootfs = await opened.store.mount(await opened.store.pull(reference), "c");
    expect(readdirSync(join(rootfs, "kept")).sort()).toEqual(["new", "old"]);
    expect(readdirSync(join(rootfs, "whole")).sort()).toEqual(["new", "sub"]);
    // What is hidden is no model for anything.
    expect(readdirSync(join(rootfs, "whole/sub"))).toEqual(["file"]);
    expect(statSync(join(rootfs, "whole/sub")).mode & 0o7777).toBe(0o755);
    expect(readdirSync(join(rootfs, "remade"))).toEqual([]);
    const kept = statSync(join(rootfs, "kept"));
    expect([kept.mode & 0o7777, kept.uid]).toEqual([0o700, 5]);
    expect(statSync(join(rootfs, "nowhere/below")).mode & 0o7777).toBe(0o755);
  });

  it("leaves out everything below a layer that is opaque as a whole", async () => {
    const reference = await push([
      await layer([{ name: "old", content: "1" }]),
      await layer([{ name: ".wh..wh..opq" }, { name: "new", content: "2" }]),
    ]);
    await using opened = await openStore();
    expect(readdirSync(await opened.store.mount(await opened.store.pull(reference), "c"))).toEqual(["new"]);
  });

  it("mounts as many layers as Docker allows", async () => {
    const layers = await Promise.all(
      Array.from(
        { length: 127 },
        async (_, index) => await layer([{ name: `f${index}`, content: String(index) }], "none"),
      ),
    );
    await using opened = await openStore();
    const rootfs = await opened.store.mount(await opened.store.pull(await push(layers)), "abcdefghijkl");
    expect(readdirSync(rootfs)).toHaveLength(127);
  });

  it("chooses the list's image for the platform, in both formats", async () => {
    const layers = [await layer([{ name: "f", content: "1" }])];
    await using opened = await openStore();
    for (const format of ["oci", "docker"] as const) {
      const own = buildImage({ layers, format });
      const other = buildImage({ layers, format, architecture: "riscv64", config: { User: "other" } });
      for (const image of [own, other]) await pushImage(registry.url, `multi-${format}`, image.architecture, image);
      await pushManifest(registry.url, `multi-${format}`, "all", buildIndex([other, own], format));
      const reference = `${registry.host}/multi-${format}:all`;
      const image = await opened.store.pull(reference);
      expect(image).toMatchObject({
        manifestDigest: own.manifest.digest,
        config: { architecture: hostPlatform().architecture, user: "" },
      });
      expect((await opened.store.pull(reference, { platform: "linux/riscv64" })).config.user).toBe("other");
      await expect(opened.store.pull(reference, { platform: "linux/s390x" })).rejects.toMatchObject({
        code: "invalid",
        message: expect.stringContaining("and not for linux/s390x"),
      });
    }
  });

  it("asks the registry only as the policy says", async () => {
    await using opened = await openStore();
    const first = await push([await layer([{ name: "f", content: "1" }])]);
    await expect(opened.store.pull(first, { policy: "never" })).rejects.toMatchObject({ code: "not-found" });
    const image = await opened.store.pull(first);
    const [, repository = ""] = /\/(.*):/.exec(first) ?? [];
    const newer = buildImage({ layers: [await layer([{ name: "f", content: "2" }])] });
    await pushImage(registry.url, repository, "1", newer);
    expect((await opened.store.pull(first)).manifestDigest).toBe(image.manifestDigest);
    expect((await opened.store.pull(first, { policy: "never" })).manifestDigest).toBe(image.manifestDigest);
    expect((await opened.store.pull(first, { policy: "always" })).manifestDigest).toBe(newer.manifest.digest);
  });

  it("makes one transfer of pulls at the same time, and reports progress", async () => {
    await using opened = await openStore();
    const shared = await layer([{ name: "base", content: randomBytes(2_000_000) }]);
    const one = await push([shared, await layer([{ name: "one", content: "1" }])]);
    const two = await push([shared, await layer([{ name: "two", content: "2" }])]);
    const reports: unknown[] = [];
    const images = await Promise.all([
      opened.store.pull(one, { onProgress: (progress) => reports.push(progress) }),
      opened.store.pull(one),
      opened.store.pull(two),
    ]);
    expect(readdirSync(join(opened.stateDir, "layers"))).toHaveLength(3);
    const { sizeBytes } = images[0];
    expect(reports.at(-1)).toEqual({ layersTotal: 2, layersDone: 2, bytesTotal: sizeBytes, bytesDone: sizeBytes });
  });

  it.each([
    [
      "a manifest that is not there",
      "not-found",
      /404 MANIFEST_UNKNOWN: manifest unknown/,
      async () => await Promise.resolve(`${registry.host}/nope:1`),
    ],
    [
      "a layer that unpacks to something else",
      "invalid",
      /unpacks to sha256:/,
      async () => await push([{ ...(await layer([{ name: "f", content: "1" }])), diffId: `sha256:${"0".repeat(64)}` }]),
    ],
    [
      "a layer that is no archive",
      "invalid",
      /no tar archive/,
      async () => await push([await layerOfTar(Buffer.from("garbage".repeat(1000)), "none")]),
    ],
    [
      "a layer that leads out of the image",
      "invalid",
      /leads out of the image/,
      async () => await push([await layer([{ name: "../../escaped", content: "1" }])]),
    ],
    [
      "a file behind a link that leads out of the image",
      "internal",
      /tar cannot unpack/,
      async () =>
        await push([
          await layer([
            { name: "out", type: "symlink", target: "/tmp" },
            { name: "out/escaped", content: "1" },
          ]),
        ]),
    ],
    [
      "a truncated archive",
      "invalid",
      /ends within an entry/,
      async () => await push([await layerOfTar(tarOf([{ name: "f", content: "x".repeat(5000) }]).subarray(0, 3000))]),
    ],
    [
      "damaged compression",
      "invalid",
      /cannot be decompressed/,
      async () => {
        const good = await layer([{ name: "f", content: randomBytes(50_000) }]);
        const bytes = Buffer.from(good.blob.bytes).fill(0xff, 20_000, 20_100);
        const digest = (await layerOfTar(bytes, "none")).diffId;
        return await push([{ ...good, blob: { ...good.blob, bytes, digest } }]);
      },
    ],
    [
      "a layer that the registry does not have",
      "not-found",
      /blob unknown/,
      async () => {
        const missing = await layer([{ name: "f", content: randomBytes(100) }]);
        const image = buildImage({ layers: [missing] });
        await pushBlob(registry.url, "missing", missing.blob);
        const reference = await pushImage(registry.url, "missing", "1", image);
        rmSync(
          join(
            registry.directory,
            "data/docker/registry/v2/repositories/missing/_layers/sha256",
            missing.blob.digest.slice(7),
          ),
          { recursive: true },
        );
        return reference;
      },
    ],
  ] as const)("refuses %s and keeps nothing of it", async (_, code, message, make) => {
    await using opened = await openStore();
    const reference = await make();
    await expect(opened.store.pull(reference)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
      subject: `image/${reference}`,
    });
    expect(readdirSync(join(opened.stateDir, "layers"))).toEqual([]);
    expect(halfMade(opened.stateDir)).toEqual([]);
    expect(existsSync("/tmp/escaped")).toBe(false);
    expect(await opened.store.list()).toEqual([]);
  });

  it("fetches again only what was missing when the registry died and came back", async () => {
    const dying = await startRegistry();
    const small = await layer([{ name: "small", content: "1" }]);
    const large = await layer([{ name: "large", content: randomBytes(30_000_000) }], "none");
    const image = buildImage({ layers: [small, large] });
    const reference = await pushImage(dying.url, "app", "1", image);
    const [firstKey = ""] = chainKeys([small.diffId, large.diffId]);
    await using opened = await openStore({ insecureRegistries: [dying.host] });
    let killed = false;
    const pull = opened.store.pull(reference, {
      onProgress: (progress) => {
        if (killed || progress.layersDone === 0) return;
        killed = true;
        dying.kill().catch(() => {});
      },
    });
    // Killed in the middle, or after the end on a machine that is quick: both must leave a sound store.
    await pull.catch((error: unknown) => expect(error).toMatchObject({ code: "unavailable" }));
    await dying.kill();
    expect(halfMade(opened.stateDir)).toEqual([]);
    const before = statSync(join(opened.stateDir, "layers", firstKey)).ino;
    await using back = await startRegistry({ address: dying.host });
    await pushImage(back.url, "app", "1", image);
    const rootfs = await opened.store.mount(await opened.store.pull(reference), "c");
    expect(statSync(join(rootfs, "large")).size).toBe(30_000_000);
    expect(statSync(join(opened.stateDir, "layers", firstKey)).ino).toBe(before);
    await dying[Symbol.asyncDispose]();
  });

  it("says that the disk is full, and pulls once there is room", async () => {
    const stateDir = mkdtempSync(join(tmpdir(), "embassy-full-"));
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=8m", "embassy-full", stateDir]);
    try {
      const reference = await push([await layer([{ name: "large", content: randomBytes(7_000_000) }])]);
      const filler = join(stateDir, "filler");
      writeFileSync(filler, Buffer.alloc(4_000_000));
      const store = await openImageStore({
        stateDir,
        log: silentLog,
        spawner: new Spawner("test: spawner"),
        insecureRegistries: [registry.host],
        proxyEnv: {},
      });
      await expect(store.pull(reference)).rejects.toMatchObject({
        code: "exhausted",
        message: expect.stringContaining("is full"),
      });
      expect(readdirSync(join(stateDir, "layers"))).toEqual([]);
      expect(halfMade(stateDir)).toEqual([]);
      rmSync(filler);
      expect((await store.pull(reference)).layers).toHaveLength(1);
      await store[Symbol.asyncDispose]();
    } finally {
      spawnSync("umount", [stateDir]);
      rmSync(stateDir, { recursive: true, force: true });
    }
  });

  it("stops a pull that is not wanted any more", async () => {
    await using opened = await openStore();
    const reference = await push([await layer([{ name: "large", content: randomBytes(20_000_000) }], "none")]);
    const stop = new AbortController();
    const pull = opened.store.pull(reference, {
      signal: stop.signal,
      onProgress: () => stop.abort(new Error("enough")),
    });
    await expect(pull).rejects.toThrow("enough");
    expect((await opened.store.pull(reference)).layers).toHaveLength(1);
  });

  it("collects what nobody keeps, and nothing that is mounted", async () => {
    await using opened = await openStore();
    const base = await layer([{ name: "base", content: "1" }]);
    const kept = await push([base, await layer([{ name: "kept", content: "1" }])]);
    const mounted = await push([base, await layer([{ name: "mounted", content: "1" }])]);
    const gone = await push([base, await layer([{ name: "gone", content: "1" }])]);
    await opened.store.pull(kept);
    await opened.store.pull(gone);
    const image = await opened.store.pull(mounted);
    await opened.store.mount(image, "c");
    expect(await opened.store.collect({ references: [kept] })).toEqual({ images: 2, layers: 1 });
    expect((await opened.store.list()).map(({ reference }) => reference)).toEqual([kept]);
    await opened.store.unmount("c");
    expect(await opened.store.collect({ references: [kept] })).toEqual({ images: 0, layers: 1 });
    await expect(opened.store.mount(image, "d")).rejects.toMatchObject({ code: "not-found" });
    expect(halfMade(opened.stateDir)).toEqual([]);
  });

  it("has nothing half made after its process was killed at any step", async () => {
    const layers = await Promise.all(
      [1, 2, 3, 4].map(
        async (index) => await layer([{ name: `file${index}`, content: randomBytes(3_000_000) }], "none"),
      ),
    );
    const reference = await push(layers);
    const keys = chainKeys(layers.map(({ diffId }) => diffId));
    const stateDir = mkdtempSync(join(tmpdir(), "embassy-store-"));
    const script = join(import.meta.dirname, "testing/killed-puller.ts");
    for (const last of ["open", "layer 1", "layer 3", "pulled", "mounted", "unmounting", "unmounted"]) {
      const child = spawn(process.execPath, [script, stateDir, registry.host, reference], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const gone = new Promise((resolve) => child.on("exit", resolve));
      const said: string[] = [];
      for await (const line of createInterface({ input: child.stdout })) {
        said.push(line);
        if (line === last) break;
      }
      child.kill("SIGKILL");
      await gone;
      const store = await openImageStore({
        stateDir,
        log: silentLog,
        spawner: new Spawner("test: spawner"),
        insecureRegistries: [registry.host],
        proxyEnv: {},
      });
      expect(halfMade(stateDir)).toEqual([]);
      const there = readdirSync(join(stateDir, "layers"));
      expect(keys).toEqual(expect.arrayContaining(there));
      for (const key of there) {
        const index = keys.indexOf(key) + 1;
        expect(statSync(join(stateDir, "layers", key, "fs", `file${index}`)).size, last).toBe(3_000_000);
      }
      // Whatever was there: a container mounted now is whole, and its writable layer goes again.
      const rootfs = await store.mount(await store.pull(reference), "one");
      expect(readdirSync(rootfs).sort()).toEqual(["file1", "file2", "file3", "file4"]);
      await store.unmount("one");
      expect(await store.containers()).toEqual([]);
      // For the next step, everything is to be done again unless the step comes after the pull.
      if (last.startsWith("layer") || last === "open") await store.collect({ references: [] });
      await store[Symbol.asyncDispose]();
    }
    rmSync(stateDir, { recursive: true });
  });

  it("finds its images again, drops layers of an interrupted boot and what was half made", async () => {
    await using opened = await openStore();
    const reference = await push([await layer([{ name: "f", content: "1" }])]);
    const image = await opened.store.pull(reference);
    await opened.store[Symbol.asyncDispose]();
    const [key = ""] = image.layers;
    const home = join(opened.stateDir, "layers", key);
    expect(existsSync(join(home, "synced"))).toBe(true);
    writeFileSync(join(opened.stateDir, "tmp/half"), "");

    const options = { stateDir: opened.stateDir, log: silentLog, spawner: new Spawner("test: spawner"), proxyEnv: {} };
    const second = await openImageStore(options);
    expect(await second.find(reference)).toEqual(JSON.parse(JSON.stringify(image)));
    expect(halfMade(opened.stateDir)).toEqual([]);
    await second[Symbol.asyncDispose]();

    rmSync(join(home, "synced"));
    const record = JSON.parse(readFileSync(join(home, "layer.json"), "utf8")) as object;
    writeFileSync(join(home, "layer.json"), JSON.stringify({ ...record, bootId: "another" }));
    const third = await openImageStore(options);
    expect(await third.find(reference)).toBeUndefined();
    await third[Symbol.asyncDispose]();
  });
});
