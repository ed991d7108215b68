import type { ListTree, MapTree, Path, ScalarTree, Tree } from "./tree.ts";

/**
 * The vocabulary in which the key table (keys/) is written. One table says for every key of a stack file what it takes,
 * what this product does with it, and how files merge at that place; the loader, the printer, the reference page and the
 * conformance walk all read it.
 */
export type Type<T = unknown> = ScalarType<T> | ListType<T> | RecordType<T> | ObjectType<T> | AnyType<T>;

/** Says why a value cannot be taken. */
export class Bad {
  /** Continues the sentence "services.web.user: ...". */
  readonly message: string;
  readonly hint: string | undefined;
  constructor(message: string, hint?: string) {
    this.message = message;
    this.hint = hint;
  }
}

/** One value that is written as text, number or boolean. */
export interface ScalarType<T = unknown> {
  readonly kind: "scalar";
  /** "a duration such as 1m30s" */
  readonly accepts: string;
  /** The only values, when they can be counted; serves the nearest spelling. */
  readonly values?: readonly string[];
  /** A path of this machine: made absolute, relative to the directory of its file. */
  readonly path?: boolean;
  /** Whether `parse` also takes null; otherwise a key without a value is a key that is not there. */
  readonly nullable?: boolean;
  parse(scalar: ScalarTree): T | Bad;
  /** How the value is written in canonical form; parsing that gives the same value. */
  format(value: T): string | number | boolean;
  readonly _type?: T;
}

/** A list of items of one type. */
export interface ListType<T = unknown> {
  readonly kind: "list";
  readonly item: Type;
  readonly accepts: string;
  /** A scalar or mapping in place of the list. */
  readonly short?: (tree: ScalarTree | MapTree) => Tree | Bad | undefined;
  /** Files merge by appending unless this says `replace`; with `unique`, an item replaces the earlier one of that key. */
  readonly merge: "append" | "replace";
  readonly unique?: (item: Tree) => string | undefined;
  readonly _type?: T;
}

/** A mapping with free keys. */
export interface RecordType<T = unknown> {
  readonly kind: "record";
  readonly value: Type;
  readonly accepts: string;
  readonly key?: (key: string) => Bad | undefined;
  /** A list in place of the mapping (`KEY=value`, names of networks). */
  readonly fromList?: (list: ListTree, fail: Fail) => MapTree | Bad;
  readonly _type?: T;
}

/** A mapping whose keys the table knows. */
export interface ObjectType<T = unknown> {
  readonly kind: "object";
  readonly keys: Keys;
  readonly accepts: string;
  readonly required: readonly string[];
  /** A scalar in place of the mapping. A list of several where one line stands for many (port ranges). */
  readonly short?: (scalar: ScalarTree) => Tree | readonly Tree[] | Bad;
  /** Before anything else: turns old spellings into present ones. */
  readonly prepare?: (tree: MapTree, fail: Fail) => MapTree;
  /** After normalising: a last look at keys together, before files are merged. */
  readonly check?: (tree: MapTree, fail: Fail) => void;
  /** When files merge: true if the later mapping takes the place of the earlier one as a whole. */
  readonly replaces?: (base: MapTree, over: MapTree) => boolean;
  /** Makes paths of this machine absolute. */
  readonly localise?: (tree: MapTree, absolute: (path: string) => string) => MapTree;
  /** Keys that begin with x- are kept. */
  readonly extensions: boolean;
  readonly _type?: T;
}

/** Kept as it is. */
export interface AnyType<T = unknown> {
  readonly kind: "any";
  readonly accepts: string;
  readonly _type?: T;
}

/** Reports what is wrong with a value; `below` leads from the place of the type to it. */
export type Fail = (tree: Tree, message: string, hint?: string, below?: Path) => void;

/**
 * honoured: loaded into the model. later: an error now, meant to come. reject: an error that stays, because the thing
 * makes no sense in a cluster or on Linux.
 */
export type Decision = "honoured" | "later" | "reject";

/** One key of a stack file: what it takes, what becomes of it, and how it is explained. */
export interface Key<T = unknown, D extends boolean = boolean> {
  readonly decision: Decision;
  readonly type: Type<T>;
  readonly doc: string;
  /** YAML of a value for the reference page, which must load. */
  readonly example: string;
  /** Sibling keys that the example needs, as YAML lines. */
  readonly beside?: string;
  /** Explicit in the model when the file does not say it. */
  readonly default?: T;
  /** A note on the default where the default is not a constant. */
  readonly defaultNote?: string;
  /** Honoured only where the cluster's policy allows it. */
  readonly gated?: boolean;
  /** later, reject: why, and what to use. */
  readonly why?: string;
  readonly instead?: string;
  /** later, reject: a sibling that takes its place, so that the key is only worth a note. */
  readonly replacedBy?: string;
  /** Paths of keys below it in the Compose specification that the type does not show, relative to it. */
  readonly below?: readonly string[];
  readonly _default?: D;
}

export type Keys = Readonly<Record<string, Key>>;

/** The type of a type. */
export type Infer<T extends Type> = T extends { readonly _type?: infer U } ? Exclude<U, undefined> : never;

type KeyType<K> = K extends Key<infer T> ? T : never;
type Refused = { readonly refused: true };
type Simplify<T> = { [K in keyof T]: T[K] };
type Honoured<K extends Keys> = { [P in keyof K]: K[P] extends Refused ? never : P }[keyof K];

/** Mutable only for the resolver; everyone else gets it readonly. */
export type ObjectOf<K extends Keys, R extends string = never> = Simplify<
  { [P in Exclude<Honoured<K>, R | DefaultKeys<K>>]?: KeyType<K[P]> } & {
    [P in (R & keyof K) | DefaultKeys<K>]: KeyType<K[P]>;
  }
>;
type DefaultKeys<K extends Keys> = { [P in keyof K]: K[P] extends { readonly hasDefault: true } ? P : never }[keyof K];

interface KeyText<T> {
  readonly doc: string;
  readonly example: string;
  readonly beside?: string;
  readonly default?: T;
  readonly defaultNote?: string;
  readonly gated?: boolean;
  readonly below?: readonly string[];
}

/** A key that is honoured. */
export function key<T>(
  type: Type<T>,
  text: KeyText<NoInfer<T>> & { readonly default: NoInfer<T> },
): Key<T> & { readonly hasDefault: true };
export function key<T>(type: Type<T>, text: KeyText<NoInfer<T>>): Key<T> & { readonly hasDefault: false };
export function key<T>(type: Type<T>, text: KeyText<T>): Key<T> {
  return { decision: "honoured", type, hasDefault: text.default !== undefined, ...text } as Key<T>;
}

interface RefusalText {
  readonly doc: string;
  readonly example: string;
  readonly why: string;
  readonly instead: string;
  readonly below?: readonly string[];
  readonly beside?: string;
  readonly replacedBy?: string;
}

/** A key that is refused for now. */
export function later(text: RefusalText): Key<never> & Refused {
  return { decision: "later", type: any(), refused: true, ...text } as unknown as Key<never> & Refused;
}

/** A key that is refused for good. */
export function reject(text: RefusalText): Key<never> & Refused {
  return { decision: "reject", type: any(), refused: true, ...text } as unknown as Key<never> & Refused;
}

/** A mapping of known keys. */
export function object<const K extends Keys, R extends string & keyof K = never>(
  keys: K,
  options: {
    readonly accepts?: string;
    readonly required?: readonly R[];
    readonly short?: ObjectType["short"];
    readonly check?: ObjectType["check"];
    readonly prepare?: ObjectType["prepare"];
    readonly replaces?: ObjectType["replaces"];
    readonly localise?: ObjectType["localise"];
    readonly extensions?: boolean;
  } = {},
): ObjectType<ObjectOf<K, R>> {
  return {
    kind: "object",
    keys,
    accepts: options.accepts ?? "a mapping",
    required: options.required ?? [],
    extensions: options.extensions ?? true,
    ...(options.short && { short: options.short }),
    ...(options.check && { check: options.check }),
    ...(options.prepare && { prepare: options.prepare }),
    ...(options.replaces && { replaces: options.replaces }),
    ...(options.localise && { localise: options.localise }),
  };
}

/** A list; files merge by appending. */
export function list<T>(
  item: Type<T>,
  options: {
    readonly accepts?: string;
    readonly short?: ListType["short"];
    readonly merge?: "append" | "replace";
    readonly unique?: ListType["unique"];
  } = {},
): ListType<T[]> {
  return {
    kind: "list",
    item: item as Type,
    accepts: options.accepts ?? "a list",
    merge: options.merge ?? "append",
    ...(options.short && { short: options.short }),
    ...(options.unique && { unique: options.unique }),
  };
}

/** A mapping of names that the author chooses. */
export function record<T>(
  value: Type<T>,
  options: {
    readonly accepts?: string;
    readonly key?: RecordType["key"];
    readonly fromList?: RecordType["fromList"];
  } = {},
): RecordType<Record<string, T>> {
  return {
    kind: "record",
    value: value as Type,
    accepts: options.accepts ?? "a mapping",
    ...(options.key && { key: options.key }),
    ...(options.fromList && { fromList: options.fromList }),
  };
}

/** Anything: kept, and not looked into. */
export function any<T = unknown>(): AnyType<T> {
  return { kind: "any", accepts: "anything" };
}

/** Narrows a text union out of a scalar type's values. */
export function scalarType<T>(type: Omit<ScalarType<T>, "kind">): ScalarType<T> {
  return { kind: "scalar", ...type };
}
