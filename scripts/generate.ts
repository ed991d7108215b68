/**
 * Generates proto/gen/ with buf and ts-proto: our own contract from proto/embassy/, and etcd's API from the protos that the
 * npm package etcd3 carries. `--check` compares instead of writing, and exits 1 when proto/gen/ is not current.
 */
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";

const root = join(import.meta.dirname, "..");
const bin = (name: string) => join(root, "node_modules/.bin", name);

const common = [
  "env=node",
  "esModuleInterop=true",
  "importSuffix=.ts",
  "enumsAsLiterals=true",
  "oneof=unions-value",
  "outputServices=grpc-js",
  "useOptionals=none",
  "removeEnumPrefix=false",
  "unrecognizedEnum=false",
  "useExactTypes=false",
  "emitDefaultValues=json-methods",
  "outputClientImpl=true",
];

/** Lists the files below a directory, as sorted paths relative to it. */
function files(directory: string): string[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(directory, join(entry.parentPath, entry.name)))
    .sort();
}

function generate(protos: string, out: string, options: readonly string[]): void {
  const template = {
    version: "v2",
    plugins: [{ local: ["node", bin("protoc-gen-ts_proto")], out, opt: [...common, ...options] }],
  };
  mkdirSync(out, { recursive: true });
  writeFileSync(join(protos, "buf.yaml"), "version: v2\n");
  execFileSync(bin("buf"), ["generate", protos, "--template", JSON.stringify(template)], {
    stdio: "inherit",
    cwd: root,
  });
}

const work = mkdtempSync(join(tmpdir(), "embassy-generate-"));
try {
  const ours = join(work, "ours");
  cpSync(join(root, "proto/embassy"), join(ours, "embassy"), { recursive: true });
  generate(ours, join(work, "gen"), ["forceLong=number", "outputJsonMethods=true"]);

  // etcd's lease ids and hashes use all 64 bits. Its HTTP annotations name a proto that the package does not carry.
  const etcd = join(work, "etcd");
  mkdirSync(etcd);
  for (const name of ["rpc.proto", "kv.proto", "auth.proto"]) {
    const text = readFileSync(join(root, "node_modules/etcd3/proto", name), "utf8");
    writeFileSync(
      join(etcd, name),
      text
        .replace(/option \(google\.api\.http\) = \{[^{}]*(\{[^{}]*\}[^{}]*)*\};/g, "")
        .replaceAll('import "./', 'import "'),
    );
  }
  generate(etcd, join(work, "gen/etcd"), ["forceLong=bigint", "outputJsonMethods=false"]);

  const generated = join(work, "gen");
  const committed = join(root, "proto/gen");
  if (process.argv.includes("--check")) {
    const names = new Set([...files(generated), ...files(committed)]);
    const read = (path: string) => (existsSync(path) ? readFileSync(path, "utf8") : undefined);
    const stale = [...names].filter((name) => read(join(generated, name)) !== read(join(committed, name)));
    if (stale.length > 0) {
      console.error(`proto/gen is not current: ${stale.join(", ")}\nRun \`npm run generate\` and commit the result.`);
      process.exitCode = 1;
    }
  } else {
    rmSync(committed, { recursive: true, force: true });
    cpSync(generated, committed, { recursive: true });
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
