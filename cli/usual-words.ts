import { existsSync } from "node:fs";
import type { Option } from "commander";

/** What follows stands for itself; `*` is one word, kept. */
const meanings: Readonly<Record<string, readonly string[]>> = {
  "node ls": ["nodes"],
  "node ps *": ["ps", "--node", "*"],
  "node inspect *": ["inspect", "node/*"],
  "manager ls": ["managers"],
  "stack ls": ["stacks"],
  "stack deploy": ["deploy"],
  "stack rm": ["rm"],
  "stack ps": ["ps"],
  "stack services": ["services"],
  "service ls": ["services"],
  "service ps": ["ps"],
  "service logs": ["logs"],
  "service scale": ["scale"],
  "service inspect *": ["inspect", "service/*"],
  "network ls": ["networks"],
  "network inspect *": ["inspect", "network/*"],
  "volume ls": ["volumes"],
  "volume inspect *": ["inspect", "volume/*"],
  "secret ls": ["secrets"],
  "config ls": ["configs"],
  "secret inspect *": ["inspect", "secret/*"],
  "config inspect *": ["inspect", "config/*"],
};

/** Docker's first words of those, for the reference: "node ls" and what it means here. */
export const dockerWords: readonly (readonly [theirs: string, ours: string])[] = Object.entries(meanings).map(
  ([theirs, ours]) => [theirs.replace("*", "NAME"), ours.join(" ").replace("*", "NAME")],
);

/** Words that mean something elsewhere and nothing here: what to say instead. */
const hints: Readonly<Record<string, string>> = {
  up: "`clusterctl deploy` deploys a stack file; `clusterctl lab up` brings a lab up.",
  run: "`clusterctl deploy` deploys a stack file.",
  create: "`clusterctl deploy` deploys a stack file.",
  down: "`clusterctl rm STACK` removes a stack; `clusterctl lab down` ends a lab.",
  stop: "`clusterctl scale SERVICE=0` stops a service, `clusterctl rm STACK` removes a stack.",
  start: "`clusterctl scale SERVICE=NUMBER` starts a service that was scaled to 0.",
  kill: "`clusterctl restart SERVICE` replaces every task of a service.",
  ls: "`clusterctl stacks`, `services`, `nodes`, `networks` and `volumes` list what there is; `ps` lists tasks.",
  images: "Images are in your registry; nodes pull them for the tasks that they get.",
  pull: "Images are in your registry; nodes pull them for the tasks that they get.",
  push: "Images are in your registry; nodes pull them for the tasks that they get.",
  swarm: "`clusterctl token create` makes a token that hosts join with.",
  "service create": "Services are of a stack: write it into the stack file, and `clusterctl deploy` that.",
  "service update":
    "Change the stack file and `clusterctl deploy` it; `clusterctl restart SERVICE` only replaces the tasks.",
  "service rollback": "`clusterctl deploy` the stack file as it was before.",
  "service rm": "Take it out of the stack file and `clusterctl deploy` that, or `clusterctl scale SERVICE=0`.",
  "node update": "`clusterctl node drain`, `activate` and `pause` set its availability, `node label` its labels.",
  "node promote": "`clusterctl token create --role manager` makes a token for `clusterd join` on that host.",
  "node demote": "`clusterctl manager rm NAME` takes a manager out.",
  "network create": "Networks are of a stack: write it into the stack file, and `clusterctl deploy` that.",
  "network rm": "Take it out of the stack file and `clusterctl deploy` that.",
  "volume create": "Volumes are of a stack: write it into the stack file, and `clusterctl deploy` that.",
  "secret create": "Secrets are of a stack: write it into the stack file, and `clusterctl deploy` that.",
  "secret rm": "Take it out of the stack file and `clusterctl deploy` that.",
  "config create": "Configs are of a stack: write it into the stack file, and `clusterctl deploy` that.",
};

/** Where the words of the command begin to be: their indexes, without options and their values. */
function operands(words: readonly string[], takesNext: (word: string) => boolean): number[] {
  const found: number[] = [];
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? "";
    if (word === "--") break;
    if (!word.startsWith("-")) found.push(at);
    else if (takesNext(word)) at++;
  }
  return found;
}

/** `docker`'s words for what this program has under other ones, in this one's: `node ls` is `nodes`. Others are as they were. */
export function inOwnWords(words: readonly string[], takesNext: (word: string) => boolean): readonly string[] {
  const [first, second, third] = operands(words, takesNext);
  if (first === undefined || second === undefined) return words;
  const verb = words[second] === "list" ? "ls" : words[second];
  const phrase = `${words[first]} ${verb}`;
  const named = meanings[`${phrase} *`];
  if (named !== undefined && third !== undefined) {
    const rest = words.slice(second + 1).filter((_word, n) => n + second + 1 !== third);
    const name = words[third] ?? "";
    return [...words.slice(0, first), ...named.map((word) => word.replace("*", () => name)), ...rest];
  }
  const plain = meanings[phrase];
  // A stack file may have any name.
  if (plain === undefined || (phrase === "config ls" && existsSync(words[second] ?? ""))) return words;
  const rest = words.slice(second + 1);
  // A file of `docker stack deploy` is one of `deploy`, whose -c is no option.
  const given = phrase === "stack deploy" ? rest.map(fileOption) : rest;
  return [...words.slice(0, first), ...plain, ...words.slice(first + 1, second), ...given];
}

const fileOption = (word: string) =>
  word === "-c" || word === "--compose-file" ? "-f" : word.replace(/^--compose-file=/, "--file=");

/** What to do instead of a command that is not there, if that is known. */
export function insteadOf(words: readonly string[], takesNext: (word: string) => boolean): string | undefined {
  const [first = "", second = ""] = operands(words, takesNext).map((at) => words[at]);
  return hints[`${first} ${second}`] ?? hints[first];
}

/** Is the word after an option its value? `-u root` and `-iu root`, not `-uroot` or `--user=root`. */
export function takesNext(options: readonly Option[], word: string): boolean {
  if (word.startsWith("--")) return options.some(({ long, required }) => long === word && required);
  for (let at = 1; at < word.length; at++) {
    const option = options.find(({ short }) => short === `-${word.charAt(at)}`);
    if (option?.required) return at === word.length - 1;
  }
  return false;
}
