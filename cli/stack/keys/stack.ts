import { localPath, matching, text } from "../scalars.ts";
import { Bad, key, list, object, record, reject } from "../schema.ts";
import { treeOf } from "../tree.ts";
import { NAME_PATTERN, single, textOrList } from "./common.ts";
import { checkDnsName, externalService, network } from "./network.ts";
import { service } from "./service.ts";
import { config, secret, volume } from "./storage.ts";

const keyName = (what: string) => (name: string) =>
  NAME_PATTERN.test(name)
    ? undefined
    : new Bad(`${JSON.stringify(name)} cannot name ${what}`, "Names have letters, digits, _, . and -.");

/** A service's name becomes a name in DNS. */
const serviceName = (name: string): Bad | undefined =>
  keyName("a service")(name) ??
  (name.includes(".")
    ? new Bad(`DNS would read the dot in the name ${JSON.stringify(name)}`, "Use a hyphen.")
    : checkDnsName(name));

/** What can name a stack. */
export const STACK_NAME = /^[a-z0-9][a-z0-9_-]{0,62}$/;

/** The top of a stack file. */
export const stack = object(
  {
    name: key(matching(STACK_NAME, "a stack name: up to 63 of a-z, 0-9, _ and -, beginning with a letter or digit"), {
      doc: "Name of the stack; `--name` goes before it.",
      example: "shop",
      defaultNote: "the name of the directory the file is in",
    }),
    version: key(text("a version"), { doc: "Taken for compatibility and not used; a note says so.", example: '"3.8"' }),
    include: key(
      list(
        object(
          {
            path: key(textOrList("a path or a list of paths", localPath()), {
              doc: "File to include; several are merged, as with several `-f`.",
              example: "./db/stack.yml",
            }),
            env_file: key(textOrList("a path or a list of paths", localPath()), {
              doc: "Variables for it, instead of its directory's `.env`.",
              example: "./db/.env",
              beside: "path: ./db/stack.yml",
            }),
            project_directory: key(localPath(), {
              doc: "Directory that its relative paths are relative to.",
              example: "./db",
              beside: "path: ./db/stack.yml",
              defaultNote: "its own",
            }),
          },
          {
            accepts: "a path, or a mapping with path, env_file, project_directory",
            required: ["path"],
            extensions: false,
            short: (tree) => treeOf({ path: [tree.text] }, tree.at),
          },
        ),
        { accepts: "a list of files", short: single },
      ),
      {
        doc: "Other stack files whose services, networks, volumes, configs and secrets belong to this stack. A `name` in them is not used.",
        example: "[./db/stack.yml]",
      },
    ),
    services: key(record(service, { accepts: "a mapping of services", key: serviceName }), {
      doc: "Services of the stack.",
      example: "{web: {image: nginx}}",
    }),
    networks: key(record(network, { accepts: "a mapping of networks", key: keyName("a network") }), {
      doc: "Networks of the stack.",
      example: "{back: {internal: true}}",
    }),
    volumes: key(record(volume, { accepts: "a mapping of volumes", key: keyName("a volume") }), {
      doc: "Named volumes of the stack.",
      example: "{archive: {}}",
    }),
    configs: key(record(config, { accepts: "a mapping of configs", key: keyName("a config") }), {
      doc: "Configs of the stack.",
      example: "{extra_conf: {content: hello}}",
    }),
    secrets: key(record(secret, { accepts: "a mapping of secrets", key: keyName("a secret") }), {
      doc: "Secrets of the stack.",
      example: "{extra_secret: {file: ./password.txt}}",
    }),
    "x-external-services": key(
      record(externalService, { accepts: "a mapping of names to addresses", key: (name) => checkDnsName(name) }),
      {
        doc: "Services outside the cluster, which `external_links` reaches through an ambassador on the consumer's host.",
        example: '{mysql: "tcp://10.0.0.5:3306"}',
      },
    ),
    models: reject({
      doc: "AI models.",
      example: "{llm: {model: ai/smollm2}}",
      why: "models are run by Docker Desktop and are no object of a cluster",
      instead: "run a model server as a service and link it",
      below: ["*.model", "*.name", "*.context_size", "*.runtime_flags"],
    }),
  },
  { accepts: "a mapping of services, networks, volumes, configs and secrets" },
);
