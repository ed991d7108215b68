/**
 * Whole stack files of many shapes (fixtures/stacks), each with the canonical stack that it loads to (`expected.yml`) or
 * what it is refused with (`errors.txt`, as a person sees it). `--write-missing` makes either for a case that has none: read
 * it before committing.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { parse } from "yaml";
import {
  formatDiagnostics,
  formatStack,
  type LoadOptions,
  type LoadResult,
  loadStack,
  memoryFiles,
} from "../../cli/stack/index.ts";

const STACKS = join(import.meta.dirname, "fixtures", "stacks");
const OURS = ["options.yml", "expected.yml", "errors.txt"];

export interface StackCase {
  readonly name: string;
  /** Content of its files by absolute path. */
  readonly files: Readonly<Record<string, Uint8Array>>;
  readonly options: Omit<LoadOptions, "reader">;
  readonly expected: { readonly kind: "stack" | "errors"; readonly text: string } | undefined;
}

export function readStackCases(): StackCase[] {
  return readdirSync(STACKS)
    .toSorted()
    .map((name) => {
      const directory = join(STACKS, name);
      const own = new Map<string, Uint8Array>();
      for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
        const path = join(entry.parentPath, entry.name);
        if (entry.isFile()) own.set(relative(directory, path), readFileSync(path));
      }
      const text = (file: string): string | undefined => {
        const content = own.get(file);
        return content && new TextDecoder().decode(content);
      };
      const { directory: root = `/${name}`, ...options } = (parse(text("options.yml") ?? "{}") ??
        {}) as Partial<LoadOptions> & { readonly directory?: string };
      const stack = text("expected.yml");
      const errors = text("errors.txt");
      return {
        name,
        files: Object.fromEntries(
          [...own].filter(([file]) => !OURS.includes(file)).map(([file, content]) => [join(root, file), content]),
        ),
        options: { files: ["stack.yml"], environment: {}, workingDirectory: root, ...options },
        expected:
          stack !== undefined
            ? { kind: "stack", text: stack }
            : errors !== undefined
              ? { kind: "errors", text: errors }
              : undefined,
      };
    });
}

export function loadCase({ files, options }: StackCase): LoadResult {
  return loadStack({ ...options, reader: memoryFiles(files) });
}

/** What the case should say: the canonical stack after its warnings as comments, or the errors. */
export function describeResult(result: LoadResult): { readonly kind: "stack" | "errors"; readonly text: string } {
  if (!result.ok) return { kind: "errors", text: `${formatDiagnostics([...result.errors, ...result.warnings])}\n` };
  const warnings =
    result.warnings.length === 0
      ? ""
      : `${formatDiagnostics(result.warnings).replace(/^/gm, "# ").replace(/ +$/gm, "")}\n`;
  return { kind: "stack", text: `${warnings}${formatStack(result.stack, "yaml")}` };
}

if (import.meta.main && process.argv.includes("--write-missing")) {
  for (const one of readStackCases()) {
    if (one.expected !== undefined) continue;
    const { kind, text } = describeResult(loadCase(one));
    writeFileSync(join(STACKS, one.name, kind === "stack" ? "expected.yml" : "errors.txt"), text);
    console.log(`${one.name}: ${kind}`);
  }
}
