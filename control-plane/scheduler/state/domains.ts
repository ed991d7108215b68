import { ClusterError } from "../../../lib/errors/errors.ts";
import { attributeNames, attributeOf } from "../constraint/attributes.ts";
import type { NodeRecord } from "./records.ts";

/**
 * The parts into which one attribute, or several nested ones, divide the nodes ("node.labels.zone", or zone and rack).
 * Each combination of values is a domain with a small number; nodes without a label share the domain of "".
 */
export class DomainSpace {
  readonly path: readonly string[];
  readonly #readers: readonly ((node: NodeRecord["spec"]) => string | undefined)[];
  readonly #ids = new Map<string, number>();
  readonly #values: string[] = [];
  readonly #present: boolean[] = [];
  /** Domain by node index. */
  readonly #ofNode: number[] = [];

  constructor(path: readonly string[]) {
    this.path = path;
    this.#readers = path.map((name) => {
      const reader = attributeOf(name);
      if (reader === undefined) {
        throw new ClusterError(`unknown node attribute "${name}"`, {
          code: "invalid",
          hint: `Use one of ${attributeNames}.`,
        });
      }
      return reader;
    });
  }

  /** Number of the node's domain. */
  of(node: NodeRecord): number {
    return this.#ofNode[node.index] as number;
  }

  /** Innermost value of a domain: "a" for zone a, "" when the node has no such label. */
  value(domain: number): string {
    return this.#values[domain] as string;
  }

  /** False for the domain of nodes that lack the innermost attribute. */
  present(domain: number): boolean {
    return this.#present[domain] as boolean;
  }

  /** Reads the node's attributes again. */
  refresh(node: NodeRecord): void {
    const values = this.#readers.map((read) => read(node.spec));
    const key = JSON.stringify(values.map((value) => value ?? null));
    let domain = this.#ids.get(key);
    if (domain === undefined) {
      const innermost = values.at(-1);
      domain = this.#values.push(innermost ?? "") - 1;
      this.#present.push(innermost !== undefined);
      this.#ids.set(key, domain);
    }
    this.#ofNode[node.index] = domain;
  }
}
