/**
 * Tasks of a service by node index, for nodes that have any. Most services of a large cluster have one task, so the first
 * node is held inline, and a Map (some 200 bytes, two more cache misses) is made only for the second.
 */
export class NodeCounts {
  #node = -1;
  #count = 0;
  #more: Map<number, number> | undefined = undefined;

  /** Nodes with a task. */
  get size(): number {
    return this.#more !== undefined ? this.#more.size : this.#count > 0 ? 1 : 0;
  }

  get(node: number): number {
    if (this.#more !== undefined) return this.#more.get(node) ?? 0;
    return node === this.#node ? this.#count : 0;
  }

  add(node: number, by: number): void {
    if (this.#more === undefined) {
      if (this.#count === 0) this.#node = node;
      if (this.#node === node) {
        this.#count += by;
        return;
      }
      this.#more = new Map([[this.#node, this.#count]]);
    }
    const count = (this.#more.get(node) ?? 0) + by;
    if (count > 0) this.#more.set(node, count);
    else this.#more.delete(node);
  }

  *[Symbol.iterator](): Iterator<readonly [number, number]> {
    if (this.#more !== undefined) yield* this.#more;
    else if (this.#count > 0) yield [this.#node, this.#count];
  }

  keys(): Iterable<number> {
    if (this.#more !== undefined) return this.#more.keys();
    return this.#count > 0 ? [this.#node] : [];
  }
}
