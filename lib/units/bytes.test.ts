import { expect, it } from "vitest";
import { parseBytes } from "./bytes.ts";

it.each([
  ["0", 0],
  ["64k", 65_536],
  ["64KB", 65_536],
  ["64 KiB", 65_536],
  ["1.5g", 1_610_612_736],
  ["512b", 512],
  ["1t", 2 ** 40],
  ["", undefined],
  ["-1", undefined],
  ["1x", undefined],
  ["k", undefined],
  ["9999999p", undefined],
])("%s is %s bytes", (written, bytes) => {
  expect(parseBytes(written)).toBe(bytes);
});
