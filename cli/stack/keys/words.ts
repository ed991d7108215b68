import { Bad } from "../schema.ts";

/**
 * Splits one line into words as a POSIX shell does: spaces part, single quotes keep everything, double quotes keep all but
 * `\"`, `\\`, `\$` and `` \` ``, a backslash keeps the next character. Nothing is expanded.
 */
export function splitWords(line: string): string[] | Bad {
  const words: string[] = [];
  let word = "";
  let inWord = false;
  let quote: '"' | "'" | undefined;
  for (let at = 0; at < line.length; at++) {
    const character = line[at] ?? "";
    if (quote === "'") {
      if (character === "'") quote = undefined;
      else word += character;
    } else if (character === "\\") {
      const next = line[at + 1];
      if (next === undefined) return new Bad("ends with a backslash that keeps nothing");
      at++;
      if (quote === '"' && !'"\\$`\n'.includes(next)) word += "\\";
      if (next !== "\n") word += next;
      inWord = true;
    } else if (quote === '"') {
      if (character === '"') quote = undefined;
      else word += character;
    } else if (character === '"' || character === "'") {
      quote = character;
      inWord = true;
    } else if (/\s/.test(character)) {
      if (inWord) words.push(word);
      word = "";
      inWord = false;
    } else {
      word += character;
      inWord = true;
    }
  }
  if (quote !== undefined) return new Bad(`has a ${quote === '"' ? "double" : "single"} quote that is not closed`);
  if (inWord) words.push(word);
  return words;
}
