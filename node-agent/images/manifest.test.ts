import { describe, expect, it } from "vitest";
import { chooseEntry, parseConfig, parseManifest } from "./manifest.ts";
import { parsePlatform } from "./platform.ts";

const amd64 = parsePlatform("linux/amd64");
const digest = `sha256:${"1".repeat(64)}`;
const bytes = (value: unknown) => Buffer.from(JSON.stringify(value));
const descriptor = { mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", digest, size: 3 };

describe("parseManifest", () => {
  it.each([
    ["no JSON", Buffer.from("{"), /is not JSON/],
    ["a number", bytes(7), /is no object/],
    ["schema 1", bytes({ schemaVersion: 1, fsLayers: [] }), /schema 1/],
    ["no layers", bytes({ schemaVersion: 2, config: descriptor }), /malformed at layers/],
    [
      "a bad digest",
      bytes({ config: descriptor, layers: [{ ...descriptor, digest: "sha256:../../etc" }] }),
      /malformed at layers\.0\.digest/,
    ],
    [
      "a negative size",
      bytes({ config: descriptor, layers: [{ ...descriptor, size: -1 }] }),
      /malformed at layers\.0\.size/,
    ],
    [
      "an artifact",
      bytes({ config: descriptor, layers: [{ ...descriptor, mediaType: "application/wasm" }] }),
      /is no file system/,
    ],
  ])("refuses %s", (_, content, words) => {
    expect(() => parseManifest(content)).toThrow(words);
  });

  it("reads a list without attestations, and names its platforms when none fits", () => {
    const entry = (os: string, architecture: string) => ({
      ...descriptor,
      mediaType: "m",
      platform: { os, architecture },
    });
    const list = parseManifest(
      bytes({ manifests: [entry("unknown", "unknown"), entry("linux", "arm64"), entry("linux", "amd64")] }),
    );
    if (list.kind !== "index") throw new Error("no list");
    expect(list.entries).toHaveLength(2);
    expect(chooseEntry(list, amd64)).toEqual({ digest, size: 3 });
    expect(() => chooseEntry(list, parsePlatform("linux/riscv64"))).toThrow(
      "the image is for linux/amd64, linux/arm64, and not for linux/riscv64",
    );
  });
});

describe("parseConfig", () => {
  it("reads what an image says, durations in milliseconds", () => {
    const raw = {
      os: "linux",
      architecture: "amd64",
      config: {
        Entrypoint: ["/e"],
        Cmd: null,
        Env: ["A=1"],
        ExposedPorts: { "80/tcp": {}, "53/udp": {} },
        Volumes: { "/data": {} },
        Healthcheck: { Test: ["CMD", "x"], Interval: 5e9, Retries: 2 },
      },
      rootfs: { type: "layers", diff_ids: [digest] },
    };
    const { config, diffIds } = parseConfig(bytes(raw), amd64);
    expect(diffIds).toEqual([digest]);
    expect(config).toMatchObject({
      entrypoint: ["/e"],
      command: [],
      environment: ["A=1"],
      exposedPorts: ["53/udp", "80/tcp"],
      volumes: ["/data"],
      healthcheck: { test: ["CMD", "x"], intervalMs: 5000, timeoutMs: 0, retries: 2 },
    });
  });

  it("refuses an image for another platform", () => {
    const raw = { os: "linux", architecture: "arm64", rootfs: { diff_ids: [] } };
    expect(() => parseConfig(bytes(raw), amd64)).toThrow("the image is for linux/arm64, and not for linux/amd64");
  });
});
