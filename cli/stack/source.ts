/** One text that was read: a stack file, an env file, or text that a caller handed over. */
export class Source {
  /** As errors show it: relative to the working directory where it lies below it. */
  readonly name: string;
  /** Absolute path; the directory it lies in is what relative paths inside are relative to. */
  readonly path: string;
  readonly text: string;
  #lineStarts: number[] | undefined;

  constructor(name: string, path: string, text: string) {
    this.name = name;
    this.path = path;
    this.text = text;
  }

  /** Line and column of an offset, both from 1; the column counts UTF-16 units. */
  lineColumn(offset: number): { readonly line: number; readonly column: number } {
    const starts = this.#starts();
    let low = 0;
    let high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((starts[middle] ?? 0) <= offset) low = middle;
      else high = middle - 1;
    }
    return { line: low + 1, column: offset - (starts[low] ?? 0) + 1 };
  }

  /** Text of a line, counted from 1, without its line end. Empty when there is no such line. */
  lineText(line: number): string {
    const starts = this.#starts();
    const start = starts[line - 1];
    if (start === undefined) return "";
    const end = starts[line] ?? this.text.length + 1;
    return this.text.slice(start, end - 1).replace(/\r$/, "");
  }

  #starts(): number[] {
    if (this.#lineStarts === undefined) {
      const starts = [0];
      for (let at = this.text.indexOf("\n"); at !== -1; at = this.text.indexOf("\n", at + 1)) starts.push(at + 1);
      this.#lineStarts = starts;
    }
    return this.#lineStarts;
  }
}

/** Where something stands in a text. `end` is exclusive and may equal `start`. */
export interface Position {
  readonly source: Source;
  readonly start: number;
  readonly end: number;
}
