import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readInRoot, resolveInRoot, resolveUser } from "./users.ts";

function makeRoot(files: Readonly<Record<string, string>> = {}) {
  const path = mkdtempSync(join(tmpdir(), "embassy-users-"));
  mkdirSync(join(path, "etc"));
  for (const [name, content] of Object.entries(files)) writeFileSync(join(path, name), content);
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

const files = {
  "etc/passwd":
    "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\nodd:x:notanumber:1::/:/\n12:x:700:701::/n:/\n",
  "etc/group": "# groups\nroot:x:0:\nweb:x:34:\nlogs:x:44:other,www\naudio:x:29:www\n",
};

describe("resolveUser", () => {
  it.each([
    ["", { uid: 0, gid: 0, groups: [], home: "/root" }],
    ["www", { uid: 33, gid: 34, groups: [29, 44], home: "/var/www" }],
    ["33", { uid: 33, gid: 34, groups: [29, 44], home: "/var/www" }],
    ["www:logs", { uid: 33, gid: 44, groups: [], home: "/var/www" }],
    ["1000", { uid: 1000, gid: 0, groups: [], home: "/" }],
    ["1000:1001", { uid: 1000, gid: 1001, groups: [], home: "/" }],
    ["12", { uid: 700, gid: 701, groups: [], home: "/n" }],
  ])("%j is %j", async (user, expected) => {
    using root = makeRoot(files);
    expect(await resolveUser(root.path, user, [])).toEqual(expected);
  });

  it("adds groups by name and number", async () => {
    using root = makeRoot(files);
    expect((await resolveUser(root.path, "www", ["web", "5000"])).groups).toEqual([29, 34, 44, 5000]);
  });

  it("names what the image does not have", async () => {
    using root = makeRoot(files);
    await expect(resolveUser(root.path, "nobody", [])).rejects.toMatchObject({
      code: "invalid",
      message: 'the image has no user "nobody" in /etc/passwd',
    });
    await expect(resolveUser(root.path, "www:nope", [])).rejects.toThrow('the image has no group "nope" in /etc/group');
    await expect(resolveUser(root.path, "odd", [])).rejects.toThrow('no user "odd"');
    await expect(resolveUser(root.path, "99999999999", [])).rejects.toThrow("no user");
  });

  it("needs no /etc/passwd for root and for numbers", async () => {
    using root = makeRoot();
    expect(await resolveUser(root.path, "", [])).toEqual({ uid: 0, gid: 0, groups: [], home: "/" });
    expect((await resolveUser(root.path, "5:6", [])).gid).toBe(6);
  });
});

describe("reading an image's files", () => {
  it("follows links within the root only", async () => {
    using root = makeRoot({ inside: "inside" });
    using outside = makeRoot({ secret: "secret" });
    symlinkSync("/inside", join(root.path, "etc/absolute"));
    symlinkSync("../../../../../../inside", join(root.path, "etc/up"));
    symlinkSync(join(outside.path, "secret"), join(root.path, "etc/out"));
    symlinkSync(outside.path, join(root.path, "etc/dir"));
    symlinkSync("loop", join(root.path, "etc/loop"));
    expect(await readInRoot(root.path, "/etc/absolute")).toBe("inside");
    expect(await readInRoot(root.path, "/etc/up")).toBe("inside");
    for (const path of ["/etc/out", "/etc/dir/secret", "/etc/loop", "/nope", "/inside/x"]) {
      expect(await readInRoot(root.path, path)).toBeUndefined();
    }
    expect(await resolveInRoot(root.path, "/etc/../../inside")).toBe(join(root.path, "inside"));
  });

  it("takes nothing but plain files, and does not hang on a pipe", async () => {
    using root = makeRoot();
    execFileSync("mkfifo", [join(root.path, "etc/passwd")]);
    expect(await readInRoot(root.path, "/etc/passwd")).toBeUndefined();
    expect(await readInRoot(root.path, "/etc")).toBeUndefined();
  });
});
