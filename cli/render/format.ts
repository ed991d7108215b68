/** "3s", "12m", "5h", "9d": how long ago, in its largest unit. "-" for a time that is not set. */
export function formatAge(sinceMs: number, nowMs: number): string {
  if (sinceMs === 0) return "-";
  const seconds = Math.max(0, Math.floor((nowMs - sinceMs) / 1_000));
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7_200) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

/** "1.2 s": milliseconds as seconds with one decimal. */
export function formatSeconds(ms: number): string {
  return `${(ms / 1_000).toFixed(1)} s`;
}

/** The part of an enum's name that a reader wants: TASK_STATE_RUNNING → running. */
export function formatEnum(name: string, prefix: string): string {
  return name.startsWith(prefix) ? name.slice(prefix.length).toLowerCase().replaceAll("_", "-") : name;
}

/** "1 host", "3 hosts". */
export function count(n: number, noun: string): string {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}
