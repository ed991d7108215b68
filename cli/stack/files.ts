/** The path under which the standard input is read. */
export const STANDARD_INPUT = "/dev/stdin";

/** What the loader needs of a file system. Paths are absolute. */
export interface Files {
  /** Content of a regular file of at most `maxBytes`. Throws FileProblem. */
  read(path: string, maxBytes: number): Uint8Array;
  /** The path with all symbolic links resolved, or undefined when there is nothing. Throws FileProblem on a loop of links. */
  realpath(path: string): string | undefined;
}

export type FileProblemKind = "missing" | "denied" | "not-a-file" | "too-large" | "loop" | "failed";

/** Why a file cannot be read; the message continues "the file x ...". */
export class FileProblem extends Error {
  readonly kind: FileProblemKind;
  constructor(kind: FileProblemKind, message: string) {
    super(message);
    this.name = "FileProblem";
    this.kind = kind;
  }
}

/** Files held in memory: for tests, and for texts that never were files. Directories exist by the files in them. */
export function memoryFiles(contents: Readonly<Record<string, string | Uint8Array>>): Files {
  return {
    read(path, maxBytes) {
      const content = Object.hasOwn(contents, path) ? contents[path] : undefined;
      if (content === undefined) throw new FileProblem("missing", "does not exist");
      const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
      if (bytes.length > maxBytes) throw new FileProblem("too-large", `is larger than ${maxBytes} bytes`);
      return bytes;
    },
    realpath: (path) =>
      Object.hasOwn(contents, path) ||
      Object.keys(contents).some((file) => file.startsWith(path === "/" ? "/" : `${path}/`))
        ? path
        : undefined,
  };
}
