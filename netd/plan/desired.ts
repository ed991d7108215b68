import { type Item, idOf } from "./items.ts";

/**
 * The desired items, by the unit that wants them (a host, a network, a service, an attachment), so that a change of one
 * unit costs what that unit holds. Of two units that want one thing differently, the one set last has it; the other
 * gets it back when that one lets go.
 */
export class DesiredItems {
  readonly #units = new Map<string, readonly Item[]>();
  readonly #effective = new Map<string, Item>();
  /** Only ids that more than one unit wants: their units, the latest last. */
  readonly #contested = new Map<string, Map<string, Item>>();
  readonly #owner = new Map<string, string>();

  get items(): ReadonlyMap<string, Item> {
    return this.#effective;
  }

  units(): Iterable<string> {
    return this.#units.keys();
  }

  /** Replaces all that the unit wants. Adds the ids that may have changed to `touched`. */
  set(unit: string, items: readonly Item[], touched: Set<string>): void {
    const before = this.#units.get(unit) ?? [];
    if (items.length > 0) this.#units.set(unit, items);
    else this.#units.delete(unit);
    const wanted = new Map(items.map((item) => [idOf(item), item]));
    for (const item of before) {
      const id = idOf(item);
      if (!wanted.has(id)) this.#release(unit, id, touched);
    }
    for (const [id, item] of wanted) this.#claim(unit, id, item, touched);
  }

  #claim(unit: string, id: string, item: Item, touched: Set<string>): void {
    const owner = this.#owner.get(id);
    const known = this.#effective.get(id);
    if (owner === undefined || owner === unit || known === undefined) {
      const contest = this.#contested.get(id);
      contest?.set(unit, item);
      if (known?.value === item.value) return;
      this.#owner.set(id, unit);
      this.#effective.set(id, item);
      touched.add(id);
      return;
    }
    const contest = this.#contested.get(id) ?? new Map([[owner, known]]);
    const isNew = !contest.has(unit);
    contest.set(unit, item);
    this.#contested.set(id, contest);
    if (!isNew) return;
    this.#owner.set(id, unit);
    this.#effective.set(id, item);
    if (known.value !== item.value) touched.add(id);
  }

  #release(unit: string, id: string, touched: Set<string>): void {
    const contest = this.#contested.get(id);
    contest?.delete(unit);
    if (contest !== undefined && contest.size < 2) this.#contested.delete(id);
    if (this.#owner.get(id) !== unit) return;
    touched.add(id);
    const heir = contest === undefined ? undefined : [...contest].at(-1);
    if (heir === undefined) {
      this.#owner.delete(id);
      this.#effective.delete(id);
    } else {
      this.#owner.set(id, heir[0]);
      this.#effective.set(id, heir[1]);
    }
  }
}
