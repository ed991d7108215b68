import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
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

it("warns of a profile that no service has", async () => {
  const { out, err, exitCode } = await run(stack(), "--services", "--profile", "ful", "--profile", "full");
  expect({ out, exitCode }).toEqual({ out: "db\nweb\n", exitCode: 0 });
  expect(err).toBe(
    'warning: no service has the profile "ful"\n   = did you mean full?\n   = Profiles of the files: full.\n',
  );
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

describe("what this version's cluster does not run", () => {
  const text =
    "name: demo\nservices:\n  web:\n    image: nginx\n    cpu_shares: 512\n    deploy: {update_config: {order: start-first}}\n    x-lb: {policy: least}\n";
  const file = () => {
    writeFileSync(join(directory, "later.yml"), text);
    return join(directory, "later.yml");
  };
  const shares = "services.web.cpu_shares: is not run by this version's cluster yet";
  const balancing = "services.web.x-lb: is not run by this version's cluster yet";

  it("is a warning in one line each, and the stack is printed", async () => {
    const yaml = await run(file());
    const lines = yaml.err.replace(/^(warning: ).*?:(\d+):\d+: /gm, "$1$2: ");
    expect(lines).toBe(`warning: 5: ${shares}\nwarning: 7: ${balancing}\n`);
    expect(yaml.exitCode).toBe(0);
    expect(yaml.out).toMatch(/cpu_shares: 512/);
    const json = await run(file(), "--format", "json");
    expect(json).toMatchObject({ err: yaml.err, exitCode: 0 });
    expect(JSON.parse(json.out)).toMatchObject({ name: "demo" });
  });

  it("is an error with --strict, as it is for deploy", async () => {
    const result = await run(file(), "--strict", "--quiet");
    expect(result).toMatchObject({ out: "", exitCode: 1 });
    expect(result.err).toContain(`error: ${shares}\n`);
    expect(await run(stack(), "--strict", "--quiet")).toEqual({ out: "", err: "", exitCode: 0 });
  });

  it("is left out with --ignore-unsupported, by name or by path", async () => {
    const result = await run(file(), "--strict", "--ignore-unsupported", "cpu_shares,services.web.x-lb");
    expect(result.exitCode).toBe(0);
    expect(result.out).toContain("order: start-first");
    expect(result.out).not.toMatch(/cpu_shares|x-lb/);
    expect(result.err).toMatch(/cpu_shares: is not used, as asked: this version's cluster does not run it yet/);
  });

  it("is not printed where nobody has chosen it", async () => {
    const { out } = await run(stack());
    expect(out).toContain("parallelism: 1");
    expect(out).not.toMatch(/x-singleton/);
  });

  it("leaves what the cluster runs as it is, whatever --ignore-unsupported says", async () => {
    expect((await run(stack(), "--ignore-unsupported", "image,volumes,services")).out).toBe((await run(stack())).out);
  });
});
