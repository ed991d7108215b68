import { compareTexts } from "../../../lib/words/compare.ts";
/** A number or dotted version; a pre-release (after "-") sorts before its release, "+build" is ignored. */
export interface Version {
  readonly negative: boolean;
  readonly parts: readonly number[];
  readonly pre: string;
}

const shape = /^(?:(-)|v)?(\d{1,15}(?:\.\d{1,15})*)(?:-([\w.-]+))?(?:\+[\w.-]+)?$/i;

/** "8", "-5", "2.10", "v1.2.3-rc1"; undefined for anything else. */
export function parseVersion(text: string): Version | undefined {
  const match = shape.exec(text.trim());
  if (match === null) return undefined;
  const parts = (match[2] as string).split(".").map(Number);
  return { negative: match[1] !== undefined && parts.some((part) => part > 0), parts, pre: match[3] ?? "" };
}

/**
 * Below, equal or above zero as `a` sorts before, with or after `b`. Missing parts count as zero: 1.2 equals 1.2.0, and 2.10
 * is above 2.9. Pre-releases sort as semver has it (clause 11), with digits inside a word read as a number too: rc2 before rc10.
 */
export function compareVersions(a: Version, b: Version): number {
  if (a.negative !== b.negative) return a.negative ? -1 : 1;
  const length = Math.max(a.parts.length, b.parts.length);
  for (let i = 0; i < length; i++) {
    const difference = (a.parts[i] ?? 0) - (b.parts[i] ?? 0);
    if (difference !== 0) return a.negative ? -difference : difference;
  }
  if (a.pre === b.pre) return 0;
  if (a.pre === "" || b.pre === "") return a.pre === "" ? 1 : -1;
  const [inA, inB] = [runsOf(a.pre), runsOf(b.pre)];
  for (let i = 0; i < Math.min(inA.length, inB.length); i++) {
    const difference = compareRuns(inA[i] as string, inB[i] as string);
    if (difference !== 0) return difference;
  }
  return inA.length - inB.length;
}

/** Runs of digits, runs of other characters, and the marks between identifiers. */
function runsOf(pre: string): readonly string[] {
  return pre.match(/\d+|[a-z_]+|[.-]/gi) ?? [];
}

function compareRuns(a: string, b: string): number {
  const [isNumber, isToo] = [/^\d/.test(a), /^\d/.test(b)];
  if (isNumber && isToo) return Number(a) - Number(b);
  if (isNumber !== isToo) return isNumber ? -1 : 1;
  return compareTexts(a, b);
}
