import { deviceOf, type Item, type ItemKind, idOf } from "./items.ts";

/** `set` makes the thing what the item says, whether or not there is one already; `remove` takes it away. */
export type Action =
  | { readonly do: "set"; readonly item: Item; readonly found: Item | undefined; readonly why: string }
  | { readonly do: "remove"; readonly item: Item; readonly why: string };

// What needs what: an address needs its device, a route its source address; elements come last, because they let traffic in.
const order: readonly ItemKind[] = ["sysctl", "link", "address", "neighbour", "fdb", "route", "rule", "element"];
const rank = new Map(order.map((kind, n) => [kind, n]));
const rankOf = (item: Item) => rank.get(item.kind) ?? 0;
// A device's own settings come after the device.
const isLate = (item: Item) => item.kind === "sysctl" && deviceOf(item) !== undefined;

/** Does the difference between the two values of a link need a new device? */
export function needsNewDevice(desired: string, found: string): boolean {
  const core = (value: string) => value.replace(/ mac .*$/, "");
  return core(desired) !== core(found);
}

/**
 * What has to be done to the kernel. Pure. First everything to set, in the order in which things need each other; then
 * everything to remove, in the opposite order, without that which goes with its device. Within a kind the order of the
 * arguments is kept. Empty means converged.
 *
 * @param desired What has to be, one entry an id.
 * @param observed What is there and is ours.
 * @param touched Ids to compare; all of both when left out.
 */
export function plan(
  desired: ReadonlyMap<string, Item>,
  observed: ReadonlyMap<string, Item>,
  touched?: Iterable<string>,
): Action[] {
  const sets: Action[] = [];
  const removes: Action[] = [];
  const remade = new Set<string>();
  const doomed = new Set<string>();
  const ids = touched ?? new Set([...desired.keys(), ...observed.keys()]);
  for (const id of ids) {
    const want = desired.get(id);
    const found = observed.get(id);
    if (want === undefined) {
      if (found === undefined) continue;
      removes.push({ do: "remove", item: found, why: `no longer wanted: ${found.why}` });
      if (found.kind === "link") doomed.add(found.key);
    } else if (found === undefined) {
      sets.push({ do: "set", item: want, found, why: want.why });
      // Other units' things may have been on a device of that name before, and gone with it.
      if (want.kind === "link" && want.value.startsWith("vxlan")) remade.add(want.key);
    } else if (found.value !== want.value) {
      sets.push({ do: "set", item: want, found, why: `${want.why}: is ${found.value || "there"}` });
      if (want.kind === "link" && needsNewDevice(want.value, found.value)) remade.add(want.key);
    }
  }
  if (remade.size > 0) {
    const planned = new Set(sets.map(({ item }) => idOf(item)));
    for (const [id, item] of desired) {
      const device = deviceOf(item);
      if (device === undefined || !remade.has(device) || planned.has(id)) continue;
      sets.push({ do: "set", item, found: undefined, why: `${item.why}: its device is made anew` });
    }
  }
  const place = (item: Item) => (isLate(item) ? 1.5 : rankOf(item));
  sets.sort((a, b) => place(a.item) - place(b.item));
  removes.sort((a, b) => place(b.item) - place(a.item));
  const kept = removes.filter(({ item }) => {
    // A setting is not a thing: without a wish for it, it is nobody's.
    if (item.kind === "sysctl") return false;
    const device = deviceOf(item);
    return device === undefined || !doomed.has(device);
  });
  return [...sets, ...kept];
}

/** What the actions leave behind, for tests and for keeping account of what has been done. Changes `observed`. */
export function applyToModel(observed: Map<string, Item>, actions: readonly Action[]): void {
  for (const action of actions) {
    const id = idOf(action.item);
    if (action.do === "set") {
      observed.set(id, action.item);
      continue;
    }
    observed.delete(id);
    if (action.item.kind !== "link") continue;
    for (const [other, item] of observed) if (deviceOf(item) === action.item.key) observed.delete(other);
  }
}
