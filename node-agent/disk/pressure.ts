import { formatBytes } from "../../lib/units/bytes.ts";

/** A file system, as statfs(2) shows it to all but root. */
export interface FileSystem {
  /** The first of the node's directories that is on it. */
  readonly directory: string;
  readonly bytes: number;
  readonly freeBytes: number;
  /** 0: it does not count them. */
  readonly inodes: number;
  readonly freeInodes: number;
}

/** A disk is low once less than both are free. 0 in either: never. */
export interface DiskLimits {
  /** Of the space, and of the inodes: 0 to 50. */
  readonly lowPercent: number;
  readonly lowBytes: number;
}

// What some five large images have in files: a share of a large file system's inodes would be millions.
const enoughInodes = 500_000;
// So much more has to be free than what it was low at: one that goes up and down around the limit changes nothing.
const recovery = 1.5;

/**
 * Which of the file systems are nearly full, in words: first by space, then by inodes, in the order given. The words name what has to be
 * free again, so that they stay the same meanwhile; `before` is the answer of last time. Pure.
 */
export function planShortages(
  measured: readonly FileSystem[],
  { lowPercent, lowBytes }: DiskLimits,
  before: readonly string[],
): string[] {
  if (lowPercent === 0 || lowBytes === 0) return [];
  const shortages: string[] = [];
  const judge = (free: number, low: number, say: (goal: number) => string): void => {
    const words = say(Math.ceil(low * recovery));
    if (free < (before.includes(words) ? low * recovery : low)) shortages.push(words);
  };
  for (const { directory, bytes, freeBytes, inodes, freeInodes } of measured) {
    const disk = `the disk of ${directory} is nearly`;
    judge(
      freeBytes,
      Math.min((bytes * lowPercent) / 100, lowBytes),
      (goal) => `${disk} full: no new tasks until ${formatBytes(goal)} of ${formatBytes(bytes)} are free`,
    );
    judge(
      freeInodes,
      Math.min((inodes * lowPercent) / 100, enoughInodes),
      (goal) => `${disk} out of inodes: no new tasks until ${goal} of ${inodes} are free`,
    );
  }
  return shortages;
}
