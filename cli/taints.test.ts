import { expect, it } from "vitest";
import { formatTaint, parseTaint } from "./taints.ts";

it.each(["gpu=a100:no-schedule", "gpu:prefer-no-schedule", "example.com/gpu=1:no-execute"])(
  "%s is a taint, and is written so",
  (word) => {
    const parsed = parseTaint(word);
    expect(parsed.remove ? "" : formatTaint(parsed.taint)).toBe(word);
  },
);

it.each([
  ["gpu-", { remove: true, key: "gpu", effect: undefined }],
  ["gpu:no-execute-", { remove: true, key: "gpu", effect: 2 }],
])("%s removes", (word, expected) => {
  expect(parseTaint(word)).toEqual(expected);
});

it.each([
  ["gpu", /its effect is missing/],
  ["gpu=a100", /its effect is missing/],
  ["gpu:NoSchedule", /it has no effect "NoSchedule"/],
  [":no-schedule", /its key cannot be that/],
  ["gpu=:no-schedule", /its value cannot be that/],
  ["gpu=a=b:no-schedule", /its value cannot be that/],
  ["gpu=a:b:no-schedule", /it has no effect/],
  ["gpu=a100:no-schedule-", /one to remove has no value/],
  ["-", /its key cannot be that/],
  ["", /its key cannot be that/],
])("%j is refused", (word, message) => {
  expect(() => parseTaint(word)).toThrow(message);
  expect(() => parseTaint(word)).toThrow(expect.objectContaining({ code: "invalid", hint: expect.any(String) }));
});
