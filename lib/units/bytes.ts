const byteUnits: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  k: 2 ** 10,
  m: 2 ** 20,
  g: 2 ** 30,
  t: 2 ** 40,
  p: 2 ** 50,
};

/** Bytes of `512m`; binary units, whatever their spelling (`k`, `kb`, `KiB`), or undefined. */
export function parseBytes(written: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?$/i.exec(written.trim());
  if (match === null) return undefined;
  const bytes = Number(match[1]) * (byteUnits[(match[2] ?? "").toLowerCase()] ?? Number.NaN);
  const whole = Math.floor(bytes);
  return Number.isSafeInteger(whole) ? whole : undefined;
}

/** "512.0 MiB": bytes in the largest binary unit that leaves at least 1. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return unit === 0 ? `${value} B` : `${value.toFixed(1)} ${units[unit]}`;
}
