import { readFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import { runsInCluster } from "./cluster.ts";
import { type KeyPath, keyPaths } from "./keys/paths.ts";
import type { ScalarType, Type } from "./schema.ts";

const CHAPTERS: readonly (readonly [title: string, intro: string, matches: (path: string) => boolean])[] = [
  [
    "The file",
    "Keys at the top of a stack file.",
    (path) => !path.includes(".") || path.startsWith("include") || path.startsWith("models"),
  ],
  [
    "Services",
    "Keys of `services.<name>`.",
    (path) => /^services\.\*\.(?!deploy|x-|networks\.|ports\[|volumes\[)/.test(path),
  ],
  ["Published ports", "Long form of an item of `ports`.", (path) => path.startsWith("services.*.ports[]")],
  ["Mounts", "Long form of an item of `volumes` of a service.", (path) => path.startsWith("services.*.volumes[]")],
  [
    "Networks of a service",
    "Keys of `services.<name>.networks.<network>`.",
    (path) => path.startsWith("services.*.networks.*"),
  ],
  ["Deployment", "Keys of `services.<name>.deploy`.", (path) => path.startsWith("services.*.deploy")],
  [
    "Keys of this product",
    "Compose leaves keys that begin with `x-` to everyone; these are ours, and strict: an unknown key inside is an error.",
    (path) => /^services\.\*\.x-|^x-/.test(path),
  ],
  ["Networks", "Keys of `networks.<name>`.", (path) => path.startsWith("networks.")],
  ["Volumes", "Keys of `volumes.<name>`.", (path) => path.startsWith("volumes.")],
  [
    "Configs and secrets",
    "Keys of `configs.<name>` and `secrets.<name>`.",
    (path) => path.startsWith("configs.") || path.startsWith("secrets."),
  ],
];

/** What the reference page shows as a whole file; its text is part of the page. */
export const exampleFile = join(import.meta.dirname, "../../examples/shop/stack.yml");

/** `docs/stack-file.md`: a whole file, then the key table as a reference, with an example for each key. */
export function stackFileReference(): string {
  const all = keyPaths().filter((key) => !key.below);
  const left = new Set(all);
  const chapters = CHAPTERS.map(([title, intro, matches]) => {
    const keys = all.filter((key) => left.has(key) && matches(key.path));
    for (const key of keys) left.delete(key);
    return chapter(title, intro, keys);
  });
  if (left.size > 0) throw new Error(`no chapter for ${[...left].map((key) => key.path).join(", ")}`);
  const example = `## A whole file\n\nIt is [\`examples/shop/stack.yml\`](../examples/shop/stack.yml); the keys are explained below.\n\n\`\`\`yaml\n${readFileSync(exampleFile, "utf8")}\`\`\`\n`;
  const body = `${example}\n${chapters.join("\n")}\n${refused(all)}`;
  return `${INTRODUCTION}\n## Contents\n\n${contentsOf(body)}\n\n${body}`;
}

/** A line for each chapter, with links to the keys that it explains. */
function contentsOf(body: string): string {
  const used = new Map<string, number>([["the-stack-file", 1]]);
  const lines: string[] = [];
  for (const [, level, title = ""] of `## Contents\n${body.replace(/^```[\s\S]*?^```$/gm, "")}`.matchAll(
    /^(##+) (.*)$/gm,
  )) {
    const link = `[${level === "###" && title.startsWith("`") ? `\`${shortOf(title.replaceAll("`", ""))}\`` : title}](#${anchorOf(title, used)})`;
    if (title === "Contents") continue;
    if (level === "##") lines.push(`- ${link}`);
    else lines[lines.length - 1] += lines.at(-1)?.includes(": [") ? ` ${link}` : `: ${link}`;
  }
  return lines.join("\n");
}

/** A key's name as its chapter would say it: without what all keys of the chapter have before it. */
function shortOf(path: string): string {
  return path.replace(
    /^services\.\*\.(deploy\.|ports\[\]\.|volumes\[\]\.|networks\.\*\.)?|^(networks|volumes)\.\*\./,
    "",
  );
}

/** The anchor that Markdown's readers make of a heading: lower case, no punctuation, numbered when it comes again. */
function anchorOf(title: string, used: Map<string, number>): string {
  const anchor = title
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");
  const times = used.get(anchor) ?? 0;
  used.set(anchor, times + 1);
  return times === 0 ? anchor : `${anchor}-${times}`;
}

const INTRODUCTION = `# The stack file

<!-- Generated from cli/stack/keys by \`npm run docs\`. Change it there. -->

A stack file is a Compose file. Every key of the Compose specification is either honoured, or refused with the place, the
reason and what to use instead; none is ignored in silence.

\`clusterctl config\` checks files and prints the stack that they describe, with everything resolved. What the cluster of this
version does not run yet is a warning there (an error with \`--strict\`), and an error of \`clusterctl deploy\`; its defaults are
not printed. Both take \`--ignore-unsupported KEY,...\`, which leaves keys out that are refused or not run yet: each is then a
warning. A key is named as \`attach\`, for all places, or as \`services.web.attach\`.

- **Files**: \`-f a.yml -f b.yml\` merges files in that order: mappings key by key, lists by appending (an item that is the
  same thing replaces the earlier one: a mount with the same target, a port with the same numbers), commands and single values
  by replacing. \`!reset null\` takes away what an earlier file says, \`!override\` replaces it instead of merging. \`extends\`
  and \`include\` follow the same rules; the files that they name lie below the project directory.
- **Variables**: \`$NAME\`, \`\${NAME}\`, \`\${NAME:-default}\`, \`\${NAME:?error}\`, \`\${NAME:+instead}\`, and the same without
  the colon, in which case an empty value counts; \`$$\` is a dollar sign. Values come from the environment, then from
  \`--env-file\`, else from \`.env\` beside the first file. \`clusterctl config --environment\` prints which were used.
- **Units**: durations are \`500ms\`, \`10s\`, \`1m30s\`; sizes are \`64k\`, \`512m\`, \`2g\`, each 1024 of the one before; CPUs are
  \`0.5\` or \`2\`.
- **Text** is taken as it is written: \`VERSION: 1.10\` stays \`1.10\`.
- **Own keys**: any key that begins with \`x-\` is kept and has no effect, except those of this page.
`;

function chapter(title: string, intro: string, keys: readonly KeyPath[]): string {
  const honoured = keys.filter((key) => key.decision === "honoured");
  return `## ${title}\n\n${intro}\n\n${honoured.map(entry).join("\n")}`;
}

function entry(path: KeyPath): string {
  const { key } = path;
  const facts = [`Takes ${acceptsOf(key.type)}.`];
  const runs = runsInCluster(path.path);
  // A default that is not in force would read as if it were.
  if (runs === "none") facts.push("_Checked, and not run by the cluster of this version yet._");
  else if (key.default !== undefined) facts.push(`Default: \`${defaultText(key.type, key.default)}\`.`);
  else if (key.defaultNote !== undefined) facts.push(`Default: ${key.defaultNote}.`);
  if (key.gated) facts.push("**Only where the cluster's policy allows it.**");
  const isLeaf =
    key.type.kind === "scalar" ||
    key.type.kind === "any" ||
    (key.type.kind === "list" && key.type.item.kind === "scalar");
  if (runs === "some" && isLeaf)
    facts.push("_The cluster of this version runs some values of it; `clusterctl deploy` names the others._");
  return `### \`${path.path}\`\n\n${key.doc} ${facts.join(" ")}\n\n\`\`\`yaml\n${exampleText(path)}\`\`\`\n`;
}

function exampleText({ example }: KeyPath): string {
  return stringify(example, { lineWidth: 100, flowCollectionPadding: false });
}

function acceptsOf(type: Type): string {
  return type.accepts;
}

function defaultText(type: Type, value: unknown): string {
  return type.kind === "scalar" ? String((type as ScalarType).format(value)) || '""' : JSON.stringify(value);
}

function cell(text = ""): string {
  return text.replaceAll("<", "&lt;");
}

/** Of a mapping that is not run at all, the mapping alone. */
function notRun(keys: readonly KeyPath[]): string {
  const paths = keys.filter((key) => key.decision === "honoured" && runsInCluster(key.path) === "none");
  const first = paths.filter(({ path }) => !paths.some((other) => /^(\[\])?\./.test(path.replace(other.path, ""))));
  return `${first.map(({ path }) => `\`${path}\``).join(", ")}.`;
}

function refused(keys: readonly KeyPath[]): string {
  const rows = (decision: string): string =>
    keys
      .filter((key) => key.decision === decision)
      .map(({ path, key }) => `| \`${path}\` | ${cell(key.why)} | ${cell(key.instead)} |`)
      .join("\n");
  const head = "| key | why | instead |\n|---|---|---|";
  return `## Keys that are refused

\`clusterctl deploy --ignore-unsupported KEY,...\` leaves them out and turns these errors into warnings, for files that other
tools read too; \`clusterctl config\` with the same option prints the file without them. \`build\` is only a warning beside \`image\`.

### Not yet

${head}
${rows("later")}

### Not run yet

These are known and checked, and the cluster of this version does not run them: a deploy refuses them, unless
\`--ignore-unsupported\` names them.

${notRun(keys)}

### Never

${head}
${rows("reject")}

Values that are refused: \`network_mode: bridge\` and \`container:\` (no such things in a cluster), \`service:\` of network_mode, pid and
ipc (not yet), \`pull_policy: build\`, mounts of type \`npipe\` (Windows), \`cluster\` and \`image\` (not yet), network drivers other
than \`overlay\`, volume drivers other than \`local\`.
`;
}
