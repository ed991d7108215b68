/** Asked for each node that a search reaches. */
export interface Judge {
  accepts(node: number): boolean;
}

/** Children of an inner place: their keys fill one cache line, so that a level costs one miss. */
const fanoutBits = 3;
const fanout = 1 << fanoutBits;
const out = Number.POSITIVE_INFINITY;

/**
 * A tournament over the nodes of a cell: each inner place holds the least key below it and whose it is; once bits are in
 * use, not whose it is but the union of the bits below it. A leaf out of the race has key Infinity and no bits.
 *
 * All levels lie in one array, leaves first; the parent of place i of a level is place i >> 3 of the next.
 */
export class Tree {
  #keys: Float64Array = new Float64Array(0);
  #bits: Int32Array = new Int32Array(0);
  /** Start of each level; the last level is one place, the root. */
  #levels: number[] = [0];
  #capacity = 0;
  /** Node index by leaf, -1 for none; above, until bits are in use, by place: the node whose key it holds. */
  nodes: Int32Array = new Int32Array(0);
  /** Leaves in use or once used. */
  used = 0;
  readonly #vacant: number[] = [];
  /** Bits are kept only when someone asks for them: until then they would cost a miss per level for nothing. */
  #withBits = false;

  constructor() {
    this.#allocate(fanout);
  }

  /** Takes a leaf for the node. */
  add(node: number): number {
    const leaf = this.#vacant.pop() ?? this.used++;
    if (leaf >= this.#capacity) this.#grow();
    this.nodes[leaf] = node;
    return leaf;
  }

  remove(leaf: number): void {
    this.set(leaf, out, 0);
    this.nodes[leaf] = -1;
    this.#vacant.push(leaf);
  }

  /** Least key of all leaves, Infinity when there is none. */
  get least(): number {
    return this.#keys[this.#keys.length - 1] as number;
  }

  /** Union of the bits of all leaves. */
  get union(): number {
    return this.#bits[this.#bits.length - 1] as number;
  }

  set(leaf: number, key: number, bits: number): void {
    if (this.#withBits) this.#setWithBits(leaf, key, bits);
    else this.#setKey(leaf, key);
  }

  #setKey(leaf: number, key: number): void {
    const keys = this.#keys;
    const levels = this.#levels;
    const { nodes } = this;
    let index = leaf;
    let before = keys[leaf] as number;
    let now = key;
    keys[leaf] = key;
    for (let level = 1; level < levels.length; level++) {
      const below = levels[level - 1] as number;
      const place = (levels[level] as number) + (index >> fanoutBits);
      const old = keys[place] as number;
      // Only where the place's least key left or was beaten does anything change above.
      if (now > old && before > old) return;
      const least = now < old ? below + index : leastOf(keys, below + (index & -fanout));
      const node = nodes[least] as number;
      now = keys[least] as number;
      if (now === old && node === nodes[place]) return;
      keys[place] = now;
      nodes[place] = node;
      before = old;
      index >>= fanoutBits;
    }
  }

  #setWithBits(leaf: number, key: number, own: number): void {
    const keys = this.#keys;
    const bits = this.#bits;
    const levels = this.#levels;
    keys[leaf] = key;
    bits[leaf] = own;
    let index = leaf;
    for (let level = 1; level < levels.length; level++) {
      const children = (levels[level - 1] as number) + (index & -fanout);
      index >>= fanoutBits;
      const place = (levels[level] as number) + index;
      const least = keys[leastOf(keys, children)] as number;
      const union = unionOf(bits, children);
      if (keys[place] === least && bits[place] === union) return;
      keys[place] = least;
      bits[place] = union;
    }
  }

  /** Sets a leaf and leaves the places above to `rebuild`. */
  setLater(leaf: number, key: number, bits: number): void {
    this.#keys[leaf] = key;
    this.#bits[leaf] = bits;
  }

  /** From now on bits are kept; the caller then sets every leaf. */
  useBits(): void {
    this.#withBits = true;
  }

  rebuild(): void {
    const levels = this.#levels;
    for (let level = 1; level < levels.length; level++) {
      const start = levels[level] as number;
      const end = levels[level + 1] ?? this.#keys.length;
      const below = levels[level - 1] as number;
      for (let place = start; place < end; place++) {
        const children = below + ((place - start) << fanoutBits);
        // The padding of a level has no children of its own.
        if (children >= start) break;
        const least = leastOf(this.#keys, children);
        this.#keys[place] = this.#keys[least] as number;
        this.nodes[place] = this.nodes[least] as number;
        if (this.#withBits) this.#bits[place] = unionOf(this.#bits, children);
      }
    }
  }

  /** The key of the leaf that `search` found. */
  foundKey = 0;
  /** Leaves that the last `search` asked about in vain. */
  vain = 0;

  /**
   * The node of least key, below `limit` and with all bits of `required`, that the judge accepts; -1 for none. Depth first,
   * least key first; what cannot win or lacks a bit is left out. Once it has found one, it stops after `patience` more
   * nodes in vain.
   */
  search(judge: Judge, required: number, limit: number, patience: number): number {
    const keys = this.#keys;
    const bits = this.#bits;
    const levels = this.#levels;
    const top = levels.length - 1;
    // Mostly the node of least key will do.
    if (!this.#withBits) {
      const least = keys[keys.length - 1] as number;
      if (least >= limit) {
        this.vain = 0;
        return -1;
      }
      const node = this.nodes[keys.length - 1] as number;
      if (judge.accepts(node)) {
        this.foundKey = least;
        this.vain = 0;
        return node;
      }
    }
    let bound = limit;
    let found = -1;
    let vain = 0;
    let level = top;
    let index = 0;
    // Of each level on the way down: the child gone into last, -1 for none yet.
    path[top] = -1;
    for (;;) {
      // The next child in order of key, then of position, after the last.
      const children = (levels[level - 1] as number) + (index << fanoutBits);
      const last = path[level] as number;
      const lastKey = last < 0 ? Number.NEGATIVE_INFINITY : (keys[children + last] as number);
      let next = -1;
      let nextKey = bound;
      for (let child = 0; child < fanout; child++) {
        const key = keys[children + child] as number;
        if (key >= nextKey || key < lastKey || (key === lastKey && child <= last)) continue;
        if (required !== 0 && ((bits[children + child] as number) & required) !== required) continue;
        next = child;
        nextKey = key;
      }
      if (next < 0) {
        if (level === top) break;
        level++;
        index >>= fanoutBits;
        continue;
      }
      path[level] = next;
      if (level > 1) {
        level--;
        index = (index << fanoutBits) + next;
        path[level] = -1;
        continue;
      }
      const node = this.nodes[(index << fanoutBits) + next] as number;
      if (judge.accepts(node)) {
        found = node;
        bound = nextKey;
        // Its siblings have higher keys.
        if (level === top) break;
        level++;
        index >>= fanoutBits;
      } else {
        vain++;
        if (found >= 0 && vain > patience) break;
      }
    }
    this.foundKey = bound;
    this.vain = vain;
    return found;
  }

  #grow(): void {
    const { nodes } = this;
    const keys = this.#keys;
    const bits = this.#bits;
    const capacity = this.#capacity;
    this.#allocate(capacity * 2);
    this.nodes.set(nodes.subarray(0, capacity));
    this.#keys.set(keys.subarray(0, capacity));
    this.#bits.set(bits.subarray(0, capacity));
    this.rebuild();
  }

  #allocate(capacity: number): void {
    this.#capacity = capacity;
    this.#levels = [0];
    let end = capacity;
    for (let places = capacity; places > 1; ) {
      places = Math.ceil(places / fanout);
      this.#levels.push(end);
      // Padded to whole groups of children, but for the root.
      end += places === 1 ? 1 : Math.ceil(places / fanout) * fanout;
    }
    this.#keys = new Float64Array(end).fill(out);
    this.#bits = new Int32Array(end);
    this.nodes = new Int32Array(end).fill(-1);
  }
}

/** One search at a time, so one way down suffices. */
const path = new Int32Array(16);

/** Place of the least key among the children from this place on, the first of equal ones. */
function leastOf(keys: Float64Array, from: number): number {
  let least = from;
  let leastKey = keys[from] as number;
  for (let i = from + 1; i < from + fanout; i++) {
    const key = keys[i] as number;
    if (key < leastKey) {
      least = i;
      leastKey = key;
    }
  }
  return least;
}

function unionOf(bits: Int32Array, from: number): number {
  let union = 0;
  for (let i = from; i < from + fanout; i++) union |= bits[i] as number;
  return union;
}
