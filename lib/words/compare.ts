/** Orders texts by code units, so that the order does not depend on the machine's language: negative when `a` comes first. */
export function compareTexts(a: string, b: string): number {
  return a === b ? 0 : a < b ? -1 : 1;
}
