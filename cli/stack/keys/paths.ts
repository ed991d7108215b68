import { parse } from "yaml";
import type { Decision, Key, Type } from "../schema.ts";
import { stack as stackType } from "./stack.ts";

/** A place in a stack file: `services.*.ports[].target`, where `*` is a name that the author chooses. */
export interface KeyPath {
  readonly path: string;
  readonly decision: Decision;
  /** The key itself, or for keys below a refused one that key. */
  readonly key: Key;
  /** Whether it is not in the table itself, but below a key that is taken or refused as a whole. */
  readonly below: boolean;
  /** An override file that uses the key, over the base that `EXAMPLE_BASE` describes. */
  readonly example: Readonly<Record<string, unknown>>;
}

/** The names that stand for `*` in examples. The base of examples has things of these names. */
const NAMES: Readonly<Record<string, string>> = {
  services: "web",
  networks: "front",
  volumes: "archive",
  configs: "extra_conf",
  secrets: "extra_secret",
  "services.*.networks": "back",
  "services.*.depends_on": "db",
  "services.*.ulimits": "nofile",
  "services.*.sysctls": "net.core.somaxconn",
  "services.*.extra_hosts": "printer",
  "x-external-services": "mysql",
};

/** Every key path of a stack file, in the order of the table. */
export function keyPaths(): KeyPath[] {
  const found: KeyPath[] = [];
  walk(stackType, "", (inner) => inner as Record<string, unknown>, found);
  return found;
}

/** Puts a value that belongs at a place into an override file. */
type Wrap = (value: unknown) => Record<string, unknown>;

function walk(type: Type, prefix: string, wrap: Wrap, found: KeyPath[]): void {
  if (type.kind === "list") {
    walk(type.item, `${prefix}[]`, (item) => wrap([item]), found);
  } else if (type.kind === "record") {
    const name = NAMES[prefix] ?? "name";
    walk(type.value, `${prefix}.*`, (item) => wrap({ [name]: item }), found);
  } else if (type.kind === "object") {
    for (const [name, key] of Object.entries(type.keys)) {
      const path = prefix === "" ? name : `${prefix}.${name}`;
      const beside = (key.beside === undefined ? {} : parse(key.beside)) as Record<string, unknown>;
      // What another key takes the place of is only refused where that key is not.
      const around: Wrap = key.replacedBy === undefined ? wrap : (value) => ({ services: { worker: value } });
      const inside: Wrap = (value) => around({ ...beside, [name]: value });
      found.push({ path, decision: key.decision, key, below: false, example: inside(parse(key.example)) });
      for (const below of key.below ?? []) {
        const joint = below.startsWith("[") ? "" : ".";
        found.push({
          path: `${path}${joint}${below}`,
          decision: key.decision,
          key,
          below: true,
          example: inside(nested(below)),
        });
      }
      walk(key.type, path, inside, found);
    }
  }
}

/** A value that has a key at a relative path such as `watch[].exec.command` or `*.rate`. */
function nested(path: string): unknown {
  const [first = "", ...rest] = path.split(".");
  const name = first.replace(/(\[\])+$/, "");
  const inner = rest.length > 0 ? nested(rest.join(".")) : "x";
  const value = first.endsWith("[]") ? [inner] : inner;
  return name === "" ? value : { [name === "*" ? "name" : name]: value };
}

/** The stack that examples are laid over, and the files that they name; by path relative to its directory. */
export const EXAMPLE_BASE = {
  "base.yml": `name: demo
services:
  web: {image: "httpd:2.4"}
  db: {image: "postgres:17", expose: ["5432"]}
  base: {image: "busybox:1.36", stop_grace_period: 3s}
networks: {back: {ipam: {config: [{subnet: 10.9.0.0/16}]}}}
volumes: {data: {}}
configs: {app_conf: {content: hello}}
secrets: {db_password: {file: ./password.txt}}
`,
  "common.yml": "services: {base: {image: busybox:1.36, stop_grace_period: 5s}}\n",
  // biome-ignore lint/suspicious/noTemplateCurlyInString: a variable of the stack file.
  "db/stack.yml": 'services: {cache: {image: "redis:${REDIS_VERSION:-7}"}}\n',
  "db/.env": "REDIS_VERSION=8\n",
  "web.env": "LOG_LEVEL=debug\n",
  "web.labels": "com.example.team=web\n",
  "password.txt": "correct horse\n",
  "app.conf": "listen 80;\n",
} as const;
