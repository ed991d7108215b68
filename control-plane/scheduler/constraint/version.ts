/** A number or dotted version; a pre-release (after "-") sorts before its release, "+build" is ignored. */
export interface Version {
  readonly parts: readonly number[];
  readonly pre: string;
}

const shape = /^v?(\d{1,15}(?:\.\d{1,15})*)(?:-([\w.-]+))?(?:\+[\w.-]+)?$/i;

/** "8", "2.10", "v1.2.3-rc1"; undefined for anything else. */
export function parseVersion(text: string): Version | undefined {
  const match = shape.exec(text.trim());
  if (match === null) return undefined;
  return { parts: (match[1] as string).split(".").map(Number), pre: match[2] ?? "" };
}

/** Below, equal or above zero as `a` sorts before, with or after `b`. Missing parts count as zero: 1.2 equals 1.2.0. */
export function compareVersions(a: Version, b: Version): number {
  const length = Math.max(a.parts.length, b.parts.length);
  for (let i = 0; i < length; i++) {
    const difference = (a.parts[i] ?? 0) - (b.parts[i] ?? 0);
    if (difference !== 0) return difference;
  }
  if (a.pre === b.pre) return 0;
  if (a.pre === "" || b.pre === "") return a.pre === "" ? 1 : -1;
  return a.pre < b.pre ? -1 : 1;
}
