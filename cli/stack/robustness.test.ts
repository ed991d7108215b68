import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { diskFiles } from "./disk.ts";
import { diagnosticJson, type LoadOptions, loadStack, memoryFiles } from "./index.ts";

function load(files: Readonly<Record<string, string | Uint8Array>>, options: Partial<LoadOptions> = {}) {
  return loadStack({
    files: ["stack.yml"],
    workingDirectory: "/p",
    reader: memoryFiles(files),
    environment: {},
    ...options,
  });
}

function errorsOf(files: Readonly<Record<string, string | Uint8Array>>, options: Partial<LoadOptions> = {}): string[] {
  const result = load(files, options);
  return result.ok ? [] : result.errors.map((error) => `${diagnosticJson(error).path}: ${error.message}`);
}

const WEB = "services: {web: {image: nginx}}\n";

describe("hostile files end in one clear error", () => {
  it.each<[string, string | Uint8Array, RegExp]>([
    ["10 MB", `${WEB}#${"x".repeat(10_000_000)}`, /is larger than 2 MiB/],
    ["NUL", "services: {web: {image: ng\0inx}}", /control character 0x00/],
    ["invalid UTF-8", Uint8Array.of(0x61, 0x3a, 0x20, 0xff, 0xfe, 0x0a), /is not UTF-8 here/],
    ["UTF-16", Uint8Array.of(0xff, 0xfe, 0x61, 0x00), /is UTF-16/],
    ["brackets", "[".repeat(1_000_000), /nested more than 100 levels/],
    ["braces over lines", "a: {\n".repeat(5000), /is not closed/],
    [
      "block nesting",
      Array.from({ length: 2000 }, (_, depth) => `${" ".repeat(depth)}a:\n`).join(""),
      /nested more than 100 levels/,
    ],
    ["dashes", `- ${"- ".repeat(100_000)}a`, /nested more than 100 levels/],
    ["an anchor in itself", "services: &a {web: *a}", /\*a names no anchor before it/],
    ["many documents", "---\na: b\n".repeat(2000), /more than 20 documents/],
  ])("%s", (_name, text, message) => {
    const errors = errorsOf({ "/p/stack.yml": text });
    expect(
      errors.some((error) => message.test(error)),
      errors.slice(0, 3).join("\n"),
    ).toBe(true);
  });

  it("anchors that explode are refused before they are walked", () => {
    const levels = Array.from(
      { length: 20 },
      (_, level) => `x-${level + 1}: &a${level + 1} [${Array.from({ length: 10 }, () => `*a${level}`).join(", ")}]\n`,
    );
    expect(errorsOf({ "/p/stack.yml": `x-0: &a0 [x]\n${levels.join("")}${WEB}` })).toEqual([
      expect.stringMatching(/stands for more than 500000 values/),
    ]);
  });

  it("a thousand errors are enough", () => {
    const errors = errorsOf({
      "/p/stack.yml": `${WEB}${Array.from({ length: 3000 }, (_, index) => `k${index}: v\n`).join("")}`,
    });
    expect(errors.length).toBe(1001);
    expect(errors.at(-1)).toBe(": and 2000 errors more");
  });

  it("merge keys that explode are refused too", () => {
    const wide = `x-0: &a0 {${Array.from({ length: 300 }, (_, index) => `k${index}: v`).join(", ")}}\n`;
    const levels = Array.from(
      { length: 6 },
      (_, level) =>
        `x-${level + 1}: &a${level + 1} {${Array.from({ length: 30 }, (_, index) => `m${index}: {<<: *a${level}}`).join(", ")}}\n`,
    );
    expect(errorsOf({ "/p/stack.yml": `${wide}${levels.join("")}${WEB}` }).length).toBeGreaterThan(0);
  });

  it("a mapping of 20,000 keys is read in one go", () => {
    const labels = Array.from({ length: 20_000 }, (_, index) => `      l${index}: v\n`).join("");
    const result = load({ "/p/stack.yml": `services:\n  web:\n    image: nginx\n    labels:\n${labels}` });
    expect(result.ok && Object.keys(result.stack.services["web"]?.labels ?? {}).length).toBe(20_000);
  });

  it("names that objects have of their own are names like any other", () => {
    const result = load({
      "/p/stack.yml":
        "services:\n  web: {image: nginx, labels: {__proto__: a, constructor: b}, environment: {toString: c}, x-a: {__proto__: {d: e}}}\n  constructor: {image: nginx, links: [toString], depends_on: [hasOwnProperty]}\n",
    });
    expect(result.ok ? [] : result.errors.map((error) => error.message)).toEqual(
      ['no service of this stack is called "toString"', 'no service of this stack is called "hasOwnProperty"']
        .toSorted()
        .toReversed(),
    );
    expect(({} as Record<string, unknown>)["d"]).toBeUndefined();
  });

  it("a value that doubles itself through variables is stopped", () => {
    const lines = Array.from({ length: 40 }, (_, index) => `V${index + 1}=$V${index}$V${index}`).join("\n");
    const result = load({
      "/p/stack.yml": `services: {web: {image: nginx, command: ["$V40"]}}`,
      "/p/.env": `V0=x\n${lines}\n`,
    });
    expect(result.ok ? "" : result.errors[0]?.message).toMatch(/becomes longer than 1000000 characters/);
  });
});

describe("files that name files", () => {
  it("cycles of include and extends name the way round", () => {
    expect(errorsOf({ "/p/stack.yml": "include: [a.yml]\n", "/p/a.yml": "include: [stack.yml]\n" })[0]).toMatch(
      /include goes round in a circle: stack.yml -> a.yml -> stack.yml/,
    );
    expect(
      errorsOf({
        "/p/stack.yml": "services: {a: {extends: {service: b, file: b.yml}}}\n",
        "/p/b.yml": "services: {b: {extends: {service: a, file: stack.yml}}}\n",
      })[0],
    ).toMatch(/extends goes round in a circle: a -> b -> a/);
  });

  it("a chain of includes ends at a depth, a set of files at a number", () => {
    const chain = Object.fromEntries(
      Array.from({ length: 30 }, (_, index) => [`/p/${index}.yml`, `include: [${index + 1}.yml]\n`]),
    );
    expect(errorsOf({ ...chain, "/p/stack.yml": "include: [0.yml]\n", "/p/30.yml": WEB })).toContainEqual(
      expect.stringMatching(/include is nested more than 20 deep/),
    );
    const wide = Object.fromEntries(
      Array.from({ length: 600 }, (_, index) => [`/p/f${index}.yml`, `services: {s${index}: {image: a}}\n`]),
    );
    expect(
      errorsOf({
        ...wide,
        "/p/stack.yml": `include: [${Array.from({ length: 600 }, (_, index) => `f${index}.yml`).join(", ")}]\n`,
      }),
    ).toContainEqual(expect.stringMatching(/the stack has more than 500 files/));
  });

  it("two includes of the same file are no conflict, and includes that branch stay bounded", () => {
    const levels = Object.fromEntries(
      Array.from({ length: 15 }, (_, index) => [
        `/p/l${index}.yml`,
        `include: [l${index + 1}.yml, ./l${index + 1}.yml]\n`,
      ]),
    );
    const errors = errorsOf({ ...levels, "/p/l15.yml": WEB, "/p/stack.yml": "include: [l0.yml]\n" });
    expect(errors.every((error) => /more than 500 files|no services/.test(error))).toBe(true);
    expect(load({ "/p/stack.yml": "include: [a.yml, a.yml]\n", "/p/a.yml": WEB }).ok).toBe(true);
  });

  it("what an included file has besides its sections is refused or kept like anywhere else", () => {
    expect(
      errorsOf({ "/p/stack.yml": `include: [a.yml]\n${WEB}`, "/p/a.yml": "models: {m: {model: x}}\nservces: {}\n" }),
    ).toEqual([expect.stringMatching(/^models: is not supported/), expect.stringMatching(/^servces: is not a key/)]);
    const loaded = load({
      "/p/stack.yml": `name: outer\ninclude: [a.yml]\n${WEB}`,
      "/p/a.yml": "name: inner\nx-a: kept\nservices: {b: {image: c}}\n",
    });
    expect(loaded.ok && loaded.stack).toMatchObject({ name: "outer", "x-a": "kept" });
  });

  it("include and extends stay below the project directory, unless allowed", () => {
    const files = {
      "/p/stack.yml": `include: [../o/a.yml]\nservices: {b: {extends: {service: web, file: ../o/a.yml}}}\n`,
      "/o/a.yml": WEB,
    };
    expect(errorsOf(files)).toEqual([
      "include[0]: the file /o/a.yml lies outside the project directory /p",
      "services.b.extends: the file /o/a.yml lies outside the project directory /p",
    ]);
    expect(load(files, { allowOutside: true }).ok).toBe(true);
  });
});

describe("the real file system", () => {
  let directory = "";
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), "embassy-stack-"));
    mkdirSync(join(directory, "p"));
    mkdirSync(join(directory, "outside"));
    writeFileSync(join(directory, "outside", "a.yml"), WEB);
    symlinkSync("../outside/a.yml", join(directory, "p", "link.yml"));
    symlinkSync("round-b.yml", join(directory, "p", "round-a.yml"));
    symlinkSync("round-a.yml", join(directory, "p", "round-b.yml"));
    execFileSync("mkfifo", [join(directory, "p", "pipe.yml")]);
  });
  afterAll(() => rmSync(directory, { recursive: true }));

  const loadHere = (text: string) => {
    writeFileSync(join(directory, "p", "stack.yml"), text);
    const result = loadStack({
      files: ["stack.yml"],
      workingDirectory: join(directory, "p"),
      reader: diskFiles(),
      environment: {},
    });
    return result.ok ? [] : result.errors.map((error) => error.message.replaceAll(directory, ""));
  };

  it.each([
    ["include: [link.yml]\n", "the file link.yml lies outside the project directory /p"],
    ["include: [round-a.yml]\n", "the file round-a.yml is behind symbolic links that go round in a circle"],
    ["include: [pipe.yml]\n", "the file pipe.yml is not a regular file"],
    ["include: [missing.yml]\n", "the file missing.yml does not exist"],
    ["include: [../p]\n", "the file /p is a directory"],
    [`services: {web: {image: nginx, env_file: /dev/zero}}\n`, "the file /dev/zero is not a regular file"],
    [
      `services: {web: {image: nginx, secrets: [s]}}\nsecrets: {s: {file: ./pipe.yml}}\n`,
      "the file /p/pipe.yml is not a regular file",
    ],
  ])("%j: %s", (text, message) => {
    expect(loadHere(text)).toContain(message);
  });

  it("the standard input is a stack file of the working directory", () => {
    const code = `import { diskFiles, loadStack } from ${JSON.stringify(join(import.meta.dirname, "index.ts"))};
      const result = loadStack({ files: ["-"], workingDirectory: "/some/shop", reader: diskFiles(), environment: {} });
      console.log(result.ok ? [result.stack.name, result.stack.services.web.volumes[0].source].join() : JSON.stringify(result.errors));`;
    const input = 'services: {web: {image: nginx, volumes: ["./data:/data"]}}';
    const out = execFileSync(process.execPath, ["--input-type=module", "-e", code], { input, encoding: "utf8" });
    expect(out.trim()).toBe("shop,/some/shop/data");
  });

  it("a stack file may itself be reached by a link", () => {
    symlinkSync("stack.yml", join(directory, "p", "other.yml"));
    writeFileSync(join(directory, "p", "stack.yml"), WEB);
    expect(
      loadStack({ files: ["other.yml"], workingDirectory: join(directory, "p"), reader: diskFiles(), environment: {} })
        .ok,
    ).toBe(true);
  });
});
