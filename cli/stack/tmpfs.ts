import { parseBytes } from "../../lib/units/bytes.ts";

/** A line of the service key `tmpfs`, taken apart: `/run:size=64m,mode=1777`. */
export interface TmpfsLine {
  readonly target: string;
  /** Bytes; 0 is no limit. */
  readonly size: number;
  /** 0 is the default. */
  readonly mode: number;
  readonly readOnly: boolean;
  /** Options that a node cannot be told. It always mounts nosuid and nodev, and with exec. */
  readonly unknown: readonly string[];
}

/** Takes a line apart; never fails. */
export function parseTmpfs(line: string): TmpfsLine {
  const [target = "", options = ""] = line.split(":");
  const result = { target, size: 0, mode: 0, readOnly: false, unknown: [] as string[] };
  for (const option of options.split(",").filter((one) => one !== "")) {
    const [name, value = ""] = option.split("=");
    if (name === "size" && parseBytes(value) !== undefined) result.size = parseBytes(value) ?? 0;
    else if (name === "mode" && /^[0-7]{3,5}$/.test(value)) result.mode = Number.parseInt(value, 8);
    else if (option === "ro") result.readOnly = true;
    else if (!["rw", "exec", "nosuid", "nodev"].includes(option)) result.unknown.push(option);
  }
  return result;
}
