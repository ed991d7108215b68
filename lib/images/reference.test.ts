import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { formatReference, imageFingerprint, normalizeReference, parseReference } from "./reference.ts";

const digest = `sha256:${"a".repeat(64)}`;

describe("references", () => {
  it.each([
    ["redis", "docker.io/library/redis:latest"],
    ["redis:7", "docker.io/library/redis:7"],
    ["bitnami/redis", "docker.io/bitnami/redis:latest"],
    ["docker.io/redis", "docker.io/library/redis:latest"],
    ["index.docker.io/redis", "docker.io/library/redis:latest"],
    ["localhost/redis", "localhost/redis:latest"],
    ["10.0.0.1:5000/a/b/c:x", "10.0.0.1:5000/a/b/c:x"],
    ["registry.example.com/a", "registry.example.com/a:latest"],
    ["[fd00::1]:5000/a", "[fd00::1]:5000/a:latest"],
    [`redis@${digest}`, `docker.io/library/redis@${digest}`],
    [`redis:7@${digest}`, `docker.io/library/redis:7@${digest}`],
  ])("%s is %s", (text, full) => {
    expect(normalizeReference(text)).toBe(full);
    expect(normalizeReference(full)).toBe(full);
  });

  it.each([
    "",
    "Redis",
    "a//b",
    "/a",
    "a/",
    "a:",
    "a:b:c",
    "a@b",
    "a@sha256:12",
    "host:99999999/a",
    "-a",
    "a b",
    "a/../b",
    "host.x/",
  ])("refuses %j and says why", (text) => {
    expect(() => parseReference(text)).toThrow(/is no image reference: /);
  });

  it("formats what it parses", () => {
    const word = fc.stringMatching(/^[a-z0-9]{1,8}$/);
    const path = fc.array(word, { minLength: 1, maxLength: 3 }).map((parts) => parts.join("/"));
    const text = fc
      .tuple(word, path, fc.option(word, { nil: undefined }))
      .map(([host, name, tag]) => `${host}.test:5000/${name}:${tag ?? "x"}`);
    fc.assert(
      fc.property(text, (reference) => formatReference(parseReference(reference)) === reference),
      { seed: 1 },
    );
  });
});

it("have one fingerprint however they are written", () => {
  expect(imageFingerprint("redis")).toBe(imageFingerprint("docker.io/library/redis:latest"));
  expect(imageFingerprint("redis:7")).not.toBe(imageFingerprint("redis"));
  expect(imageFingerprint("Not A Reference")).toBe(0);
});
