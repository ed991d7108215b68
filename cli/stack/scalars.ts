import { parseBytes } from "../../lib/units/bytes.ts";
import { Bad, type ScalarType, scalarType } from "./schema.ts";
import { describeKind, type ScalarTree } from "./tree.ts";

/** Text. Numbers are taken as they are written; booleans are not, because `yes`, `no` and `on` mean something elsewhere. */
export function text(accepts = "text", check?: (value: string) => Bad | undefined): ScalarType<string> {
  return scalarType({
    accepts,
    parse(scalar) {
      if (typeof scalar.value === "boolean") {
        return new Bad(
          `takes ${accepts}, and found the boolean ${scalar.text}`,
          `Write it in quotes: "${scalar.text}".`,
        );
      }
      return check?.(scalar.text) ?? scalar.text;
    },
    format: (value) => value,
  });
}

/** A path of the machine that loads the file. */
export function localPath(): ScalarType<string> {
  return {
    ...text("a path", (value) =>
      value === "" || value.includes("\0") ? new Bad("takes a path, and found an empty one") : undefined,
    ),
    path: true,
  };
}

/** Text that may also be written as a boolean: values of environment, labels and options. */
export function looseText(accepts = "text, a number or a boolean"): ScalarType<string> {
  return scalarType({ accepts, parse: (scalar) => scalar.text, format: (value) => value });
}

/** Text of a pattern. */
export function matching(pattern: RegExp, accepts: string, hint?: string): ScalarType<string> {
  return text(accepts, (value) =>
    pattern.test(value) ? undefined : new Bad(`takes ${accepts}, and found ${JSON.stringify(value)}`, hint),
  );
}

/** One of a few words; a slip gets the nearest as suggestion. */
export function oneOf<const V extends string>(...values: readonly V[]): ScalarType<V> {
  const accepts = `one of ${values.join(", ")}`;
  return scalarType<V>({
    accepts,
    values,
    parse(scalar) {
      const found = values.find((value) => value === scalar.text);
      return found ?? new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`);
    },
    format: (value) => value,
  });
}

/** Booleans; after interpolation also the words that Compose takes for them. */
export function bool(): ScalarType<boolean> {
  return scalarType({
    accepts: "true or false",
    values: ["true", "false"],
    parse(scalar) {
      if (typeof scalar.value === "boolean") return scalar.value;
      const word = scalar.text.toLowerCase();
      if (["true", "yes", "y", "on", "1"].includes(word)) return true;
      if (["false", "no", "n", "off", "0"].includes(word)) return false;
      return new Bad(`takes true or false, and found ${describeKind(scalar)}`);
    },
    format: (value) => value,
  });
}

/** Decimal integers, hexadecimal and octal as YAML has them, and all of these in quotes. */
export function integer(
  min: number,
  max: number,
  accepts = `a whole number from ${min} to ${max}`,
): ScalarType<number> {
  return scalarType({
    accepts,
    parse(scalar) {
      const value = integerOf(scalar);
      if (value === undefined || value < min || value > max)
        return new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`);
      return value;
    },
    format: (value) => value,
  });
}

/** Decimal numbers from `min` to `max`, also in quotes. */
export function number(min: number, max: number, accepts: string): ScalarType<number> {
  return scalarType({
    accepts,
    parse(scalar) {
      const value = numberOf(scalar);
      if (value === undefined || value < min || value > max)
        return new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`);
      return value;
    },
    format: (value) => value,
  });
}

function numberOf(scalar: ScalarTree): number | undefined {
  if (typeof scalar.value === "number") return Number.isFinite(scalar.value) ? scalar.value : undefined;
  return typeof scalar.value === "string" && /^[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?$/i.test(scalar.text)
    ? Number(scalar.text)
    : undefined;
}

function integerOf(scalar: ScalarTree): number | undefined {
  const value = numberOf(scalar);
  return value !== undefined && Number.isSafeInteger(value) ? value : undefined;
}

const DURATION_UNITS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3, // micro sign
  μs: 1e-3, // Greek mu
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 604_800_000,
};
const DURATION_PART = /(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)/gy;
/** Longest duration that fits the contract's 32-bit milliseconds. */
const MAX_DURATION_MS = 2 ** 32 - 1;

/** Milliseconds of `1m30s`, or undefined. */
export function parseDuration(written: string): number | undefined {
  if (written === "0") return 0;
  let total = 0;
  let at = 0;
  for (const match of written.matchAll(DURATION_PART)) {
    total += Number(match[1]) * (DURATION_UNITS[match[2] ?? ""] ?? Number.NaN);
    at += match[0].length;
  }
  return at === written.length && at > 0 ? total : undefined;
}

/** `1m30s` for 90,000; parses back to the same number of milliseconds. */
export function formatDuration(ms: number): string {
  if (ms === 0) return "0s";
  let rest = ms;
  let written = "";
  for (const [unit, size] of [
    ["h", 3_600_000],
    ["m", 60_000],
    ["s", 1000],
    ["ms", 1],
  ] as const) {
    const count = Math.floor(rest / size);
    if (count > 0) written += `${count}${unit}`;
    rest -= count * size;
  }
  return written;
}

/** Value in whole milliseconds; parts below one are refused, because nothing here acts on them. */
export function duration(min = 0, accepts = "a duration such as 500ms, 10s or 1m30s"): ScalarType<number> {
  return scalarType({
    accepts,
    parse(scalar) {
      const ms = parseDuration(scalar.text);
      if (ms === undefined) {
        const hint =
          typeof numberOf(scalar) === "number"
            ? `Give it a unit: ${scalar.text}s is ${scalar.text} seconds.`
            : undefined;
        return new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`, hint);
      }
      const whole = Math.round(ms);
      if (Math.abs(whole - ms) > 1e-6)
        return new Bad(`takes a duration of whole milliseconds, and found ${describeKind(scalar)}`);
      if (whole < min)
        return new Bad(`takes a duration of at least ${formatDuration(min)}, and found ${describeKind(scalar)}`);
      if (whole > MAX_DURATION_MS)
        return new Bad(`takes a duration of at most 49 days, and found ${describeKind(scalar)}`);
      return whole;
    },
    format: formatDuration,
  });
}

/** Value in bytes. Printed as a number, which every reader of Compose files takes. */
export function bytes(min: number, options: { readonly minusOne?: boolean } = {}): ScalarType<number> {
  const accepts = `a size such as 64k, 512m or 2g${options.minusOne ? ", or -1 for no limit" : ""}`;
  return scalarType({
    accepts,
    parse(scalar) {
      if (options.minusOne && scalar.text === "-1") return -1;
      const value = parseBytes(scalar.text);
      if (value === undefined) return new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`);
      if (value < min) return new Bad(`takes a size of at least ${min} bytes, and found ${describeKind(scalar)}`);
      return value;
    },
    format: (value) => String(value),
  });
}

/** CPUs in thousandths: `0.5` is 500. */
export function cpus(): ScalarType<number> {
  const accepts = "a number of CPUs such as 0.5 or 2";
  return scalarType({
    accepts,
    parse(scalar) {
      const value = numberOf(scalar);
      if (value === undefined || value < 0 || value > 100_000)
        return new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`);
      const milli = Math.round(value * 1000);
      if (Math.abs(milli - value * 1000) > 1e-6)
        return new Bad(`takes CPUs in steps of 0.001, and found ${describeKind(scalar)}`);
      return milli;
    },
    format: (value) => String(value / 1000),
  });
}

/**
 * Permission bits. A quoted value is octal; a number is what YAML made of it, except that `0440`, which YAML 1.2 reads as
 * four hundred and forty, is taken as the octal number that every author of a Compose file means.
 */
export function fileMode(): ScalarType<number> {
  const accepts = 'an octal file mode such as 0440 or "0440"';
  return scalarType({
    accepts,
    parse(scalar) {
      const octal = /^0?o?([0-7]{1,4})$/.exec(scalar.text);
      const isOctal = octal !== null && (typeof scalar.value === "string" || scalar.text.startsWith("0"));
      const value = isOctal
        ? Number.parseInt(octal[1] ?? "", 8)
        : typeof scalar.value === "number"
          ? scalar.value
          : Number.NaN;
      if (!Number.isInteger(value) || value < 0 || value > 0o7777)
        return new Bad(`takes ${accepts}, and found ${describeKind(scalar)}`);
      return value;
    },
    format: (value) => `0${value.toString(8).padStart(3, "0")}`,
  });
}
