import { localPath, looseText, matching, oneOf, text } from "../scalars.ts";
import { Bad, key, later, object } from "../schema.ts";
import { labels } from "./common.ts";
import { externalKey, hoistExternalName } from "./network.ts";

const CLUSTER_NAME = matching(/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/, "a name of letters, digits, _, . and -");

/** `volumes.*` */
export const volume = object(
  {
    name: key(CLUSTER_NAME, { doc: "Name in the cluster.", example: "pgdata", defaultNote: "`<stack>_<key>`" }),
    driver: key(
      text("local", (value) =>
        value === "local"
          ? undefined
          : new Bad(
              `takes local, and found ${JSON.stringify(value)}`,
              "Volume plugins are not supported; driver_opts of `local` mount NFS, CIFS, tmpfs and directories.",
            ),
      ),
      { doc: "`local`: a directory of the node, or what `driver_opts` mounts.", example: "local", default: "local" },
    ),
    driver_opts: key(
      object(
        {
          type: key(looseText("nfs, nfs4, cifs, tmpfs, none or a file system"), {
            doc: "File system type.",
            example: "nfs",
          }),
          o: key(looseText("mount options"), {
            doc: "Mount options, comma-separated; `addr=` names the server.",
            example: '"addr=10.0.0.9,nfsvers=4"',
          }),
          device: key(looseText("a device"), { doc: "What is mounted.", example: '":/export/data"' }),
        },
        { extensions: false, accepts: "a mapping with type, o and device" },
      ),
      {
        doc: "What is mounted, as mount(8) says it.",
        example: '{type: nfs, o: "addr=10.0.0.9", device: ":/export/data"}',
      },
    ),
    external: externalKey,
    labels: key(labels(), { doc: "Labels of the volume.", example: "{tier: cold}" }),
    "x-on-node-loss": key(oneOf("wait", "recreate"), {
      doc: "When the node that has the volume's data is lost or drained: tasks that mount it wait for that node, or begin on another one with an empty volume. What is on the first node stays there either way.",
      example: "recreate",
      defaultNote: "`wait`",
    }),
    "x-cluster-spec": later({
      doc: "Options of a CSI volume.",
      example: "{access_mode: {scope: single}}",
      why: "cluster (CSI) volumes are not supported yet",
      instead: "use driver_opts for NFS or CIFS",
    }),
  },
  { prepare: hoistExternalName },
);

const templateDriver = (what: string) =>
  later({
    doc: `Template engine for the ${what}'s value.`,
    example: "golang",
    why: "values are not templates yet",
    instead: "render the value before deploying",
  });

/** `secrets.*` */
export const secret = object(
  {
    name: key(CLUSTER_NAME, {
      doc: "Name in the cluster.",
      example: "db_password",
      beside: "file: ./password.txt",
      defaultNote: "`<stack>_<key>`",
    }),
    file: key(localPath(), { doc: "File with the value; read when the stack is deployed.", example: "./password.txt" }),
    environment: key(text("the name of a variable"), {
      doc: "Environment variable with the value; read when the stack is deployed.",
      example: "DB_PASSWORD",
    }),
    external: externalKey,
    labels: key(labels(), { doc: "Labels of the secret.", example: "{team: db}", beside: "file: ./password.txt" }),
    driver: later({
      doc: "Plugin that holds the value.",
      example: "vault",
      why: "secrets are held by the cluster itself",
      instead: "use file or environment",
    }),
    driver_opts: later({
      doc: "Options of that plugin.",
      example: "{path: kv/db}",
      why: "secrets are held by the cluster itself",
      instead: "use file or environment",
      below: ["*"],
    }),
    template_driver: templateDriver("secret"),
  },
  { prepare: hoistExternalName },
);

/** `configs.*` */
export const config = object(
  {
    name: key(CLUSTER_NAME, {
      doc: "Name in the cluster.",
      example: "app_conf",
      beside: "content: hello",
      defaultNote: "`<stack>_<key>`",
    }),
    file: key(localPath(), { doc: "File with the value; read when the stack is deployed.", example: "./app.conf" }),
    content: key(text("text"), { doc: "The value itself.", example: "|\n  listen 80;\n" }),
    environment: key(text("the name of a variable"), {
      doc: "Environment variable with the value; read when the stack is deployed.",
      example: "APP_CONF",
    }),
    external: externalKey,
    labels: key(labels(), { doc: "Labels of the config.", example: "{team: web}", beside: "content: hello" }),
    template_driver: templateDriver("config"),
  },
  { prepare: hoistExternalName },
);
