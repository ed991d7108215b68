import type { Need } from "./records.ts";

export const cpuDimension = 0;
export const memoryDimension = 1;

/** Columns of a row. The free amounts come last, a column for each resource. */
const tieColumn = 0;
const fullnessColumn = 1;
const cpusColumn = 2;
const memoryColumn = 3;
const freeColumn = 4;
/** Rows are whole cache lines, of so many numbers. */
const line = 8;

/**
 * What placing a task on a node looks at and changes: a row for each node, by its index. In one array, since the row of a
 * node out of many is in no cache: with an array for each column a placement would miss once for each.
 */
export class NodeTable {
  #rows = new Float64Array(0);
  #columns = line;

  /** Makes room for this many nodes. */
  lengthen(nodes: number): void {
    const rows = new Float64Array(nodes * this.#columns);
    rows.set(this.#rows);
    this.#rows = rows;
  }

  /** Makes room for this many resources. Of a new one nothing is free. */
  widen(dimensions: number): void {
    const from = this.#columns;
    const to = Math.ceil((freeColumn + dimensions) / line) * line;
    if (to === from) return;
    const old = this.#rows;
    this.#columns = to;
    this.#rows = new Float64Array((old.length / from) * to);
    for (let row = 0; row * from < old.length; row++)
      this.#rows.set(old.subarray(row * from, (row + 1) * from), row * to);
  }

  /** Sets what a node has beside its free amounts. */
  set(index: number, tie: number, cpus: number, memory: number): void {
    const row = index * this.#columns;
    this.#rows[row + tieColumn] = tie;
    this.#rows[row + cpusColumn] = cpus;
    this.#rows[row + memoryColumn] = memory;
  }

  /** `NodeRecord.tie`. */
  tie(index: number): number {
    return this.#rows[index * this.#columns + tieColumn] as number;
  }

  /**
   * How full the node is, 0 to 2,000: a thousand for the share reserved of CPU or memory, whichever is larger, and one for
   * each task up to a thousand. As of the last `weigh`.
   */
  fullness(index: number): number {
    return this.#rows[index * this.#columns + fullnessColumn] as number;
  }

  /** Free amount of a resource; may be negative where tasks were put by others than the scheduler. */
  free(index: number, dimension: number): number {
    return this.#rows[index * this.#columns + freeColumn + dimension] as number;
  }

  setFree(index: number, dimension: number, amount: number): void {
    this.#rows[index * this.#columns + freeColumn + dimension] = amount;
  }

  /** Takes the amounts from what is free; with -1 gives them back. */
  take(index: number, needs: readonly Need[], times: 1 | -1): void {
    const rows = this.#rows;
    const row = index * this.#columns + freeColumn;
    for (let i = 0; i < needs.length; i++) {
      const { dimension, amount } = needs[i] as Need;
      rows[row + dimension] = (rows[row + dimension] as number) - times * amount;
    }
  }

  /** Is as much of everything free? */
  fits(index: number, needs: readonly Need[]): boolean {
    const rows = this.#rows;
    const row = index * this.#columns + freeColumn;
    for (let i = 0; i < needs.length; i++) {
      const { dimension, amount } = needs[i] as Need;
      if (amount > (rows[row + dimension] as number)) return false;
    }
    return true;
  }

  /** Works out the fullness from what is free now and the number of tasks. */
  weigh(index: number, tasks: number): void {
    const rows = this.#rows;
    const row = index * this.#columns;
    const cpus = rows[row + cpusColumn] as number;
    const memory = rows[row + memoryColumn] as number;
    const cpuShare = cpus > 0 ? 1 - (rows[row + freeColumn + cpuDimension] as number) / cpus : 1;
    const memoryShare = memory > 0 ? 1 - (rows[row + freeColumn + memoryDimension] as number) / memory : 1;
    const share = Math.min(1, Math.max(cpuShare, memoryShare));
    rows[row + fullnessColumn] = Math.round(1_000 * share) + Math.min(tasks, 1_000);
  }
}
