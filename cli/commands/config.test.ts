import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type ConfigIo, configCommand } from "./config.ts";

let directory = "";
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "embassy-config-"));
  writeFileSync(
    join(directory, "stack.yml"),
    'name: demo\nservices:\n  web: {image: "nginx:$TAG", volumes: ["data:/data"]}\n  db: {image: postgres, profiles: [full]}\nvolumes: {data: {}}\n',
  );
  writeFileSync(join(directory, ".env"), "TAG=1.27\n");
  writeFileSync(join(directory, "bad.yml"), "services: {web: {imagee: nginx}}\n");
});
afterAll(() => rmSync(directory, { recursive: true }));

async function run(...words: string[]): Promise<{ out: string; err: string; exitCode: number }> {
  const written: Record<"out" | "err", string[]> = { out: [], err: [] };
  const io: ConfigIo = {
    environment: {},
    exitCode: 0,
    out: { write: (text) => written.out.push(text) },
    err: { write: (text) => written.err.push(text) },
  };
  await configCommand(io).exitOverride().parseAsync(words, { from: "user" });
  return { out: written.out.join(""), err: written.err.join(""), exitCode: io.exitCode };
}

const stack = () => join(directory, "stack.yml");

it("prints the resolved stack as YAML or JSON", async () => {
  const yaml = await run("-f", stack());
  expect(yaml).toMatchObject({ err: "", exitCode: 0 });
  expect(yaml.out).toContain("image: nginx:1.27");
  const json = await run(stack(), "--format", "json");
  expect(JSON.parse(json.out)).toMatchObject({ name: "demo", services: { web: { image: "nginx:1.27" } } });
});

it.each([
  [["--services"], "web\n"],
  [["--services", "--profile", "full"], "db\nweb\n"],
  [["--services", "--profile", "*"], "db\nweb\n"],
  [["--volumes"], "data\n"],
  [["--networks"], "default\n"],
  [["--images"], "nginx:1.27\n"],
  [["--quiet"], ""],
])("%j prints %j", async (flags, expected) => {
  expect(await run(stack(), ...flags)).toEqual({ out: expected, err: "", exitCode: 0 });
});

it("--hash gives a hash that changes with the service and with nothing else", async () => {
  const hashes = async (...flags: string[]) => (await run(stack(), "--hash", ...flags)).out;
  expect(await hashes()).toMatch(/^web [0-9a-f]{64}\n$/);
  expect(await hashes()).toBe(await hashes());
  writeFileSync(join(directory, "other.env"), "TAG=1.28\n");
  expect(await hashes("--env-file", join(directory, "other.env"))).not.toBe(await hashes());
});

it("--environment says where each variable comes from", async () => {
  expect((await run(stack(), "--environment")).out).toBe(`# from ${join(directory, ".env")}\nTAG=1.27\n`);
});

it("--name goes before the file's", async () => {
  expect((await run(stack(), "--name", "other")).out).toMatch(/^name: other\n/);
});

it("prints what is wrong and exits with 1", async () => {
  const bad = await run(join(directory, "bad.yml"));
  expect(bad).toMatchObject({ out: "", exitCode: 1 });
  expect(bad.err).toContain("services.web.imagee: is not a key that exists here");
  expect(bad.err).toContain("did you mean image?");
});
