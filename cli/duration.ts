import { InvalidArgumentError } from "commander";

const unitsMs: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds of "90s", "1h30m", "500ms", or a plain number of seconds. Throws commander's error for a bad option. */
export function parseDuration(text: string): number {
  const found = durationOf(text);
  if (found !== undefined) return found;
  throw new InvalidArgumentError("Give a time such as 90s, 5m or 1h30m.");
}

function durationOf(text: string): number | undefined {
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1_000;
  const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g)];
  if (parts.length === 0 || parts.map(([part]) => part).join("") !== text) return undefined;
  return parts.reduce((sum, [, value, unit]) => sum + Number(value) * (unitsMs[unit ?? ""] ?? 0), 0);
}

/** "5m", "24h", "1500ms": milliseconds in the largest of ms, s, m and h that they are a whole number of. */
export function formatDuration(ms: number): string {
  for (const unit of ["h", "m", "s"]) {
    const each = unitsMs[unit] ?? 1;
    if (ms >= each && ms % each === 0) return `${ms / each}${unit}`;
  }
  return `${ms}ms`;
}

/** Milliseconds since 1970 of "10m" (that long before `nowMs`) or "2025-01-31T12:00:00Z". */
export function parseSince(text: string, nowMs: number): number {
  const ago = /^\d{4}-\d\d-\d\d/.test(text) ? undefined : durationOf(text);
  if (ago !== undefined) return Math.max(1, nowMs - ago);
  const at = Date.parse(text);
  if (!Number.isNaN(at) && /^\d{4}-/.test(text)) return at;
  throw new InvalidArgumentError("Give a time such as 10m (ago) or 2025-01-31T12:00:00Z.");
}

/** A whole number of at least `least`. Throws commander's error. */
export function parseCount(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`Give a whole number of at least ${least}.`);
  };
}
