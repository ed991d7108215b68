import { compareTexts } from "../../lib/words/compare.ts";
import type { Entry, MapTree, Tree } from "./tree.ts";

export interface Choice {
  readonly tree: MapTree;
  /** Services that are left out. */
  readonly off: readonly string[];
  /** Profiles that would bring some of them back. */
  readonly profiles: readonly string[];
  /** All profiles of the services. */
  readonly known: ReadonlySet<string>;
}

/** Leaves out the services whose profiles are not chosen. A service without profiles is always there. */
export function chooseServices(tree: MapTree, chosen: ReadonlySet<string>): Choice {
  const services = tree.entries.get("services");
  if (services?.value.kind !== "map") return { tree, off: [], profiles: [], known: new Set() };
  const on = new Map<string, Entry>();
  const off: string[] = [];
  const others = new Set<string>();
  const known = new Set<string>();
  for (const [name, entry] of services.value.entries) {
    const profiles = profilesOf(entry.value);
    for (const profile of profiles) known.add(profile);
    if (profiles.length === 0 || chosen.has("*") || profiles.some((profile) => chosen.has(profile)))
      on.set(name, entry);
    else {
      off.push(name);
      for (const profile of profiles) others.add(profile);
    }
  }
  if (off.length === 0) return { tree, off, profiles: [], known };
  const entries = new Map(tree.entries).set("services", {
    key: services.key,
    value: { ...services.value, entries: on },
  });
  return { tree: { ...tree, entries }, off, profiles: [...others].toSorted(compareTexts), known };
}

function profilesOf(service: Tree): string[] {
  const profiles = service.kind === "map" ? service.entries.get("profiles")?.value : undefined;
  return profiles?.kind === "list" ? profiles.items.flatMap((item) => (item.kind === "scalar" ? [item.text] : [])) : [];
}
