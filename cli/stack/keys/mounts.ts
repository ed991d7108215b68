import { bool, bytes, fileMode, matching, oneOf, text } from "../scalars.ts";
import { Bad, type Fail, key, later, list, object, type ScalarType } from "../schema.ts";
import { type MapTree, type ScalarTree, type Tree, treeOf } from "../tree.ts";
import { byKeys, labels } from "./common.ts";

const PROPAGATION = ["private", "rprivate", "shared", "rshared", "slave", "rslave"] as const;

/** `C:\\x`, `C:/x` and `\\\\server\\share`. */
export function isWindowsPath(value: string): boolean {
  return /^[a-zA-Z]:[\\/]/.test(value) || value.startsWith("\\\\");
}

export const WINDOWS_HINT = "Nodes run Linux: give a path of the node, such as /srv/data, or a named volume.";

/** An absolute path inside a container. */
export function containerPath() {
  return text("an absolute path in the container", (value) => {
    if (isWindowsPath(value))
      return new Bad(
        `${JSON.stringify(value)} is a Windows path`,
        "Containers run Linux: write an absolute path such as /data.",
      );
    if (!value.startsWith("/"))
      return new Bad(`takes an absolute path in the container, and found ${JSON.stringify(value)}`);
    if (value.includes("\0")) return new Bad("holds a NUL character");
    return value.split("/").includes("..")
      ? new Bad(`${JSON.stringify(value)} climbs with ..`, "Write the path without it.")
      : undefined;
  });
}

/** A path below a volume's root. */
function subpath() {
  return text("a relative path below the volume", (value) =>
    value.startsWith("/") || value.split("/").includes("..") || value === ""
      ? new Bad(`takes a relative path that stays in the volume, and found ${JSON.stringify(value)}`)
      : undefined,
  );
}

/** `[SOURCE:]TARGET[:MODES]`. A source that begins with `/`, `.` or `~` is a path of the host, any other a named volume. */
function shortVolume(scalar: ScalarTree): Tree | Bad {
  const written = scalar.text;
  const bad = (why: string, hint?: string): Bad =>
    new Bad(
      `${why}, in ${JSON.stringify(written)}`,
      hint ?? 'It takes "data:/path", "/host/path:/path:ro" or "/path".',
    );
  if (isWindowsPath(written)) {
    const isName = /^[a-zA-Z]:\//.test(written) && !written.slice(2).includes(":");
    return bad(
      "Windows paths cannot be mounted",
      isName
        ? `${WINDOWS_HINT} A volume whose name is one letter needs the long form: {type: volume, source: ${written[0]}, target: ...}.`
        : WINDOWS_HINT,
    );
  }
  const parts = written.split(":");
  if (parts.length > 3) return bad("has too many colons");
  const [first = "", second, modes] = parts;
  if (second === undefined) return treeOf({ type: "volume", target: first }, scalar.at);
  if (first === "" || second === "") return bad("has an empty part");
  const isPath = /^[/.~]/.test(first);
  const mount: { [key: string]: unknown } = { type: isPath ? "bind" : "volume", source: first, target: second };
  const bind: Record<string, unknown> = isPath ? { create_host_path: true } : {};
  for (const mode of modes === undefined ? [] : modes.split(",")) {
    if (mode === "ro") mount["read_only"] = true;
    else if (mode === "rw") continue;
    else if (mode === "nocopy" && !isPath) mount["volume"] = { nocopy: true };
    else if (mode === "z" || mode === "Z")
      return bad(
        `the mode ${mode} asks for SELinux labels, which nodes do not set yet`,
        "Label the directory on the nodes, and leave the mode out.",
      );
    else if (["cached", "delegated", "consistent"].includes(mode)) mount["consistency"] = mode;
    else if (isPath && (PROPAGATION as readonly string[]).includes(mode)) bind["propagation"] = mode;
    else
      return bad(
        `${JSON.stringify(mode)} is not a mode`,
        "Modes are ro, rw, nocopy (volumes) and the propagation of bind mounts.",
      );
  }
  if (isPath) mount["bind"] = bind;
  return treeOf(mount, scalar.at);
}

/** Relative sources of bind mounts are relative to the file that names them, like every path of a stack file. */
function localiseSource(tree: MapTree, absolute: (path: string) => string): MapTree {
  const type = tree.entries.get("type")?.value;
  const source = tree.entries.get("source");
  if (
    type?.kind !== "scalar" ||
    type.value !== "bind" ||
    source?.value.kind !== "scalar" ||
    isWindowsPath(source.value.text)
  )
    return tree;
  const path = absolute(source.value.text);
  return {
    ...tree,
    entries: new Map(tree.entries).set("source", { ...source, value: { ...source.value, value: path, text: path } }),
  };
}

const MOUNT_OPTIONS = { bind: "bind", volume: "volume", tmpfs: "tmpfs" } as const;

function checkMount(tree: MapTree, fail: Fail): void {
  const typeOf = tree.entries.get("type")?.value;
  const type = typeOf?.kind === "scalar" ? String(typeOf.value) : "";
  for (const [name, forType] of Object.entries(MOUNT_OPTIONS)) {
    const option = tree.entries.get(name)?.value;
    if (option !== undefined && type !== forType)
      fail(option, `is for mounts of type ${forType}, and this one is of type ${type}`, undefined, [name]);
  }
  const source = tree.entries.get("source")?.value;
  if (type === "bind" && source?.kind === "scalar" && isWindowsPath(source.text))
    fail(source, `${JSON.stringify(source.text)} is a Windows path`, WINDOWS_HINT, ["source"]);
  if (type === "bind" && source === undefined) fail(tree, "a bind mount needs a source", "Give the path on the node.");
  if (type === "tmpfs" && source !== undefined) fail(source, "a tmpfs has no source", "Leave it out.", ["source"]);
}

/** An item of `services.*.volumes` */
export const mount = object(
  {
    type: key(
      // Types that are not honoured are named here to be refused with their reason instead of "not one of".
      text("one of bind, volume, tmpfs", (value) => {
        if (value === "bind" || value === "volume" || value === "tmpfs") return undefined;
        if (value === "npipe")
          return new Bad("npipe mounts exist on Windows only", "Use a bind mount of a Unix socket.");
        if (value === "cluster")
          return new Bad(
            "cluster (CSI) volumes are not supported yet",
            "Use a volume with driver_opts for NFS or CIFS.",
          );
        if (value === "image")
          return new Bad(
            "image mounts are not supported yet",
            "Copy the files into the service's image, or use configs.",
          );
        return new Bad(`takes one of bind, volume, tmpfs, and found ${JSON.stringify(value)}`);
      }) as ScalarType<"bind" | "volume" | "tmpfs">,
      {
        doc: "What is mounted: a path of the node, a named volume, or memory. Not supported: `npipe` (Windows), `cluster` (CSI) and `image`.",
        example: "volume",
        beside: "source: data\ntarget: /data",
      },
    ),
    source: key(text("a path of the node or the name of a volume"), {
      doc: "The path on the node (bind), or the volume's key under `volumes` (volume). A volume without a source is the task's own and goes with it.",
      example: "data",
      beside: "type: volume\ntarget: /data",
    }),
    target: key(containerPath(), {
      doc: "Where the container sees it.",
      example: "/data",
      beside: "type: volume\nsource: data",
    }),
    read_only: key(bool(), {
      doc: "Mounts it read-only.",
      example: "true",
      beside: "type: volume\nsource: data\ntarget: /data",
      default: false,
    }),
    consistency: key(text("a word"), {
      doc: "Taken for compatibility; without effect on Linux, where mounts are always consistent.",
      example: "cached",
      beside: "type: bind\nsource: /srv\ntarget: /srv",
    }),
    bind: key(
      object({
        propagation: key(oneOf(...PROPAGATION), {
          doc: "How mounts made later pass between host and container.",
          example: "rslave",
          default: "rprivate",
        }),
        create_host_path: key(bool(), {
          doc: "Makes the directory on the node when it is missing. The short syntax sets it.",
          example: "true",
          default: false,
        }),
        recursive: key(oneOf("enabled", "disabled", "writable", "readonly"), {
          doc: "Whether mounts below the source come along.",
          example: "disabled",
          default: "enabled",
        }),
        selinux: later({
          doc: "SELinux label of the directory.",
          example: "z",
          why: "nodes do not set SELinux labels",
          instead: "label the directory on the nodes",
        }),
      }),
      {
        doc: "Options of a bind mount.",
        example: "{propagation: rslave}",
        beside: "type: bind\nsource: /srv\ntarget: /srv",
      },
    ),
    volume: key(
      object({
        nocopy: key(bool(), {
          doc: "Does not fill an empty volume with what the image has at the target.",
          example: "true",
          default: false,
        }),
        subpath: key(subpath(), { doc: "A directory of the volume to mount instead of its root.", example: "uploads" }),
        labels: key(labels(), { doc: "Labels of a volume that the mount creates.", example: "{tier: cold}" }),
      }),
      {
        doc: "Options of a volume mount.",
        example: "{nocopy: true}",
        beside: "type: volume\nsource: data\ntarget: /data",
      },
    ),
    tmpfs: key(
      object({
        size: key(bytes(0), {
          doc: "Largest size; counts as memory of the task.",
          example: "64m",
          defaultNote: "no limit of its own",
        }),
        mode: key(fileMode(), { doc: "Permission bits of its root.", example: '"1777"', default: 0o1777 }),
      }),
      { doc: "Options of a tmpfs mount.", example: "{size: 64m}", beside: "type: tmpfs\ntarget: /tmp" },
    ),
    image: later({
      doc: "Options of an image mount.",
      example: "{subpath: etc}",
      beside: "type: image\nsource: alpine\ntarget: /x",
      why: "image mounts are not supported",
      instead: "copy the files into the service's image, or use configs",
      below: ["subpath"],
    }),
  },
  {
    accepts: 'a mount such as "data:/path" or a mapping with type, source and target',
    required: ["type", "target"],
    short: shortVolume,
    check: checkMount,
    localise: localiseSource,
  },
);

/** `services.*.volumes`: one mount for each target. */
export const mounts = list(mount, { accepts: "a list of mounts", unique: byKeys("target") });

/** `/run:size=64m,mode=1777` */
export const tmpfsLine = matching(/^\/[^:]*(:[^:]+)?$/, 'a path such as /run or "/run:size=64m,mode=1777"');
