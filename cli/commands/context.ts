import { readFileSync } from "node:fs";
import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import { globalOptions, printJson, type Register } from "../cli.ts";
import { parseContext } from "../contexts/contexts.ts";
import { table } from "../render/table.ts";

export const registerContext: Register = (program, cli) => {
  const { contexts } = cli;
  const context = program
    .command("context")
    .summary("choose a cluster")
    .description("Keeps how to reach clusters, and which of them commands talk to.");
  context
    .command("ls")
    .description("Lists the contexts; the current one is marked.")
    .action((_options, command) => {
      const current = contexts.current();
      const rows = contexts.names().map((name) => ({
        name,
        current: name === current,
        endpoints: contexts.resolve(name).endpoints,
      }));
      if (globalOptions(command).output === "json") printJson(cli, rows);
      else {
        cli.out.write(
          table(
            cli.out,
            [
              { title: "", value: (row) => (row.current ? "*" : " ") },
              { title: "NAME", value: (row) => row.name },
              { title: "ENDPOINTS", value: (row) => row.endpoints.join(","), shrinkTo: 10 },
            ],
            rows,
          ),
        );
      }
    });
  context
    .command("use")
    .description("Makes a context the current one.")
    .argument("<name>", "context")
    .action((name: string, _options, command) => {
      contexts.use(name);
      if (globalOptions(command).output !== "json") cli.err.write(`context ${name} is the current one\n`);
    });
  context
    .command("import")
    .description("Takes in a context file, such as the admin.json of `clusterd init`, and makes it the current one.")
    .argument("<file>", "context file")
    .option("--name <name>", "name to keep it under, instead of the file's")
    .action((file: string, options: { name?: string }) => {
      let text: string;
      try {
        text = readFileSync(file, "utf8");
      } catch (cause) {
        const words = isErrno(cause, "ENOENT")
          ? `there is no file ${file}`
          : isErrno(cause, "EISDIR")
            ? `${file} is a directory`
            : `${file} cannot be read: ${messageOf(cause)}`;
        throw new ClusterError(words, {
          code: "invalid",
          subject: file,
          cause,
        });
      }
      const parsed = parseContext(text, file);
      const name = options.name ?? parsed.name;
      contexts.save({ ...parsed, name });
      contexts.use(name);
      cli.err.write(`context ${name} is the current one\n`);
    });
  context
    .command("rm")
    .description("Forgets contexts.")
    .argument("<name...>", "context")
    .action((names: string[]) => {
      const known = new Set(contexts.names());
      for (const name of names) {
        if (known.has(name)) continue;
        const hint = names.length > 1 ? { hint: "None was forgotten." } : {};
        throw new ClusterError(`there is no context ${name}`, { code: "not-found", subject: name, ...hint });
      }
      for (const name of new Set(names)) {
        contexts.remove(name);
        cli.err.write(`context ${name} is forgotten\n`);
      }
    });
  context
    .command("show")
    .description("Prints a context without its key.")
    .argument("[name]", "context; default: the current one")
    .action((name: string | undefined, _options, command) => {
      const { key: _key, ...shown } = contexts.resolve(name ?? globalOptions(command).context);
      printJson(cli, shown);
    });
};
