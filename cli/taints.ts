import { ClusterError } from "../lib/errors/errors.ts";
import { plainName, plainNameWords } from "../lib/words/plain-name.ts";
import { TaintEffect } from "../proto/gen/embassy/v1/stack.ts";
import type { Taint } from "../proto/gen/embassy/v1/state.ts";

/** The effects by the words that users write, each with what it does to tasks that do not tolerate the taint. */
export const taintEffects: ReadonlyMap<string, { readonly effect: TaintEffect; readonly meaning: string }> = new Map([
  ["no-schedule", { effect: TaintEffect.TAINT_EFFECT_NO_SCHEDULE, meaning: "no new tasks" }],
  ["prefer-no-schedule", { effect: TaintEffect.TAINT_EFFECT_PREFER_NO_SCHEDULE, meaning: "rather no new tasks" }],
  [
    "no-execute",
    { effect: TaintEffect.TAINT_EFFECT_NO_EXECUTE, meaning: "no new tasks, and those that run move away" },
  ],
]);

/** What a word of `node taint` says. */
export type TaintWord =
  | { readonly remove: false; readonly taint: Taint }
  | { readonly remove: true; readonly key: string; readonly effect: TaintEffect | undefined };

/** Parses "key=value:effect" or "key:effect" (set), "key-" or "key:effect-" (remove). Throws `invalid`. */
export function parseTaint(word: string): TaintWord {
  const remove = word.endsWith("-");
  const match = /^([^=:]*)(?:=([^:]*))?(?::(.*))?$/.exec(remove ? word.slice(0, -1) : word);
  const [, key = "", value, effectWord] = match ?? [];
  const bad = (why: string, hint: string) =>
    new ClusterError(`${JSON.stringify(word)} is no taint: ${why}`, { code: "invalid", subject: word, hint });
  const forms = "Give key=value:effect or key:effect to set one, key- or key:effect- to remove it.";
  const effect = taintEffects.get(effectWord ?? "")?.effect;
  if (effectWord !== undefined && effect === undefined) {
    throw bad(`it has no effect ${JSON.stringify(effectWord)}`, `Effects are ${[...taintEffects.keys()].join(", ")}.`);
  }
  if (!plainName.test(key)) throw bad("its key cannot be that", `A key is ${plainNameWords}. ${forms}`);
  if (remove) {
    if (value !== undefined) throw bad("one to remove has no value", forms);
    return { remove, key, effect };
  }
  if (effect === undefined) throw bad("its effect is missing", forms);
  if (value !== undefined && !plainName.test(value))
    throw bad("its value cannot be that", `A value is ${plainNameWords}.`);
  return { remove, taint: { key, value: value ?? "", effect } };
}

/** "key=value:effect", or "key:effect" without a value. */
export function formatTaint({ key, value, effect }: Taint): string {
  const word = [...taintEffects].find(([, known]) => known.effect === effect)?.[0] ?? String(effect);
  return `${key}${value === "" ? "" : `=${value}`}:${word}`;
}
