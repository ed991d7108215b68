import { createSocket } from "node:dgram";
import { once } from "node:events";
import { createServer } from "node:net";
import { isErrno } from "../../lib/errors/errors.ts";
import type { Log } from "../../lib/log/log.ts";
import { defaultPorts } from "../../lib/net/ports.ts";
import { Protocol, type PublishedPort } from "../../proto/gen/embassy/v1/stack.ts";
import type { Listener } from "../kernel/listeners.ts";

/** An address and port of this host that something is to be published at. */
export interface Claim {
  readonly protocol: "tcp" | "udp";
  /** 0.0.0.0: every one. */
  readonly address: string;
  readonly port: number;
}

/** A port that something is to be published at and that a program of this host has. */
export interface BusyPort extends Claim {
  /** The program, "sshd (pid 812)"; empty: not known. */
  readonly by: string;
  /** Where the program listens; empty: at every address, or not known. */
  readonly at: string;
}

/** What a published port claims. */
export const claimOf = ({ protocol, hostIp, published }: PublishedPort): Claim => ({
  protocol: protocol === Protocol.PROTOCOL_UDP ? "udp" : "tcp",
  address: hostIp === "" ? "0.0.0.0" : hostIp,
  port: published,
});

const own = new Set(Object.values(defaultPorts).map(({ protocol, port }) => `${protocol} ${port}`));

/** May the data path lead it to tasks? Not what the cluster's own programs listen on. */
const mayClaim = ({ protocol, port }: Claim) => port !== 0 && !own.has(`${protocol} ${port}`);

export const keyOf = ({ protocol, address, port }: Claim): string => `${protocol} ${address} ${port}`;

/** "port 80/udp at 10.0.0.5 is in use by named" */
export function describeBusy({ protocol, address, port, by }: BusyPort): string {
  const at = address === "0.0.0.0" ? "" : ` at ${address}`;
  return `port ${port}${protocol === "udp" ? "/udp" : ""}${at} is in use by ${by === "" ? "a program of the host" : by}`;
}

export interface ClaimsDeps {
  readonly log: Log;
  readonly listeners: () => Promise<readonly Listener[]>;
  /** What could not be had can be by now, or the other way round: those units are to be planned anew. Not called by `set`. */
  readonly onChange: (units: ReadonlySet<string>) => void;
  /** Which ports are busy has changed. */
  readonly onBusy: () => void;
  readonly retryMs?: number;
}

/**
 * - held: netd has a socket there, so that no program of the host can take it
 * - open: nobody listens there, and yet it cannot be held: a connection of the host's happens to have that port, or the
 *   address is another host's at present. It is published all the same.
 * - busy: a program of the host has it, and keeps it
 */
type PortState =
  | { readonly kind: "held"; readonly close: () => void }
  | { readonly kind: "open" }
  | { readonly kind: "busy"; readonly by: string; readonly at: string };

interface Port {
  readonly claim: Claim;
  /** What it is to be published for. None: it was asked for in vain, and is told as busy until then. */
  readonly units: Set<string>;
  state: PortState | undefined;
  forgetAtMs: number;
}

const defaultRetryMs = 5_000;
/** So long is a port told as busy that a task was refused for, unless it becomes free. */
const refusedMs = 600_000;

/**
 * The ports of this host that are published. Each is held by a socket that never gets a packet, as the kernel leads them to
 * tasks before: so it is the kernel that says whether a program of the host listens there already, by the rules of bind(2),
 * and that program keeps the port; and a program that wants it later is told that the address is in use.
 *
 * What could not be had is tried again, so that it is published once the program is gone. Without such ports nothing is ever
 * looked at again.
 */
export class PortClaims implements AsyncDisposable {
  readonly #deps: ClaimsDeps;
  readonly #ports = new Map<string, Port>();
  readonly #ofUnit = new Map<string, readonly Claim[]>();
  #turn = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(deps: ClaimsDeps) {
    this.#deps = deps;
  }

  /** Replaces what units publish. Resolves once it is known of each port whether it can be had. Never rejects. */
  async set(wanted: ReadonlyMap<string, readonly Claim[]>): Promise<void> {
    const changed = [...wanted].filter(([unit, claims]) => claims.length > 0 || this.#ofUnit.has(unit));
    if (changed.length === 0) return;
    await this.#alone(async () => {
      const fresh: Port[] = [];
      for (const [unit, all] of changed) {
        const claims = all.filter(mayClaim);
        for (const claim of claims) {
          const port = this.#ports.get(keyOf(claim)) ?? this.#add(claim);
          port.units.add(unit);
          if (port.state === undefined && !fresh.includes(port)) fresh.push(port);
        }
        const kept = new Set(claims.map(keyOf));
        for (const claim of this.#ofUnit.get(unit) ?? []) if (!kept.has(keyOf(claim))) this.#drop(unit, claim);
        if (claims.length > 0) this.#ofUnit.set(unit, claims);
        else this.#ofUnit.delete(unit);
      }
      await this.#try(fresh);
    });
  }

  /** The first of these that a program of the host has; what else they are stays claimed for the unit. Never rejects. */
  async refused(unit: string, claims: readonly Claim[]): Promise<BusyPort | undefined> {
    await this.set(new Map([[unit, claims]]));
    const port = claims.map((claim) => this.#ports.get(keyOf(claim))).find((one) => one?.state?.kind === "busy");
    if (port?.state?.kind !== "busy") return undefined;
    port.forgetAtMs = performance.now() + refusedMs;
    return { ...port.claim, by: port.state.by, at: port.state.at };
  }

  /** May it be published? Not before it was claimed. */
  has(claim: Claim): boolean {
    const state = this.#ports.get(keyOf(claim))?.state;
    return state?.kind === "held" || state?.kind === "open";
  }

  /** What cannot be published here, by protocol and port. */
  busy(): BusyPort[] {
    const busy: BusyPort[] = [];
    for (const { claim, state } of this.#ports.values()) {
      if (state?.kind === "busy") busy.push({ ...claim, by: state.by, at: state.at });
    }
    return busy.sort((a, b) => a.port - b.port || (keyOf(a) < keyOf(b) ? -1 : 1));
  }

  /** Lets go of everything. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#turn;
    for (const { state } of this.#ports.values()) if (state?.kind === "held") state.close();
    this.#ports.clear();
  }

  #add(claim: Claim): Port {
    const port: Port = { claim, units: new Set(), state: undefined, forgetAtMs: 0 };
    this.#ports.set(keyOf(claim), port);
    return port;
  }

  #drop(unit: string, claim: Claim): void {
    const port = this.#ports.get(keyOf(claim));
    if (port === undefined) return;
    port.units.delete(unit);
    if (port.units.size > 0 || (port.state?.kind === "busy" && performance.now() < port.forgetAtMs)) return;
    this.#forget(port);
  }

  #forget(port: Port): void {
    if (port.state?.kind === "held") port.state.close();
    this.#ports.delete(keyOf(port.claim));
    if (port.state?.kind === "busy") this.#deps.onBusy();
  }

  async #alone(work: () => Promise<void>): Promise<void> {
    const turn = this.#turn.then(work);
    this.#turn = turn;
    await turn;
  }

  /** Asks the kernel for each of them, and for all that are refused once who has them. Gives the units that it matters to. */
  async #try(ports: readonly Port[]): Promise<ReadonlySet<string>> {
    const changed = new Set<string>();
    if (this.#stopped) return changed;
    const { log, onBusy } = this.#deps;
    const outcomes = await Promise.all(ports.map(async (port) => ({ port, got: await hold(port.claim) })));
    const others = outcomes.some(({ got }) => got === "in use") ? await this.#listeners() : [];
    // One at an address and one at every address: netd's own socket of the one is in the way of the other's.
    const held = new Set(
      outcomes.flatMap(({ port, got }) => (got !== "in use" && got.kind === "held" ? [keyOf(port.claim)] : [])),
    );
    for (const [key, { state }] of this.#ports) if (state?.kind === "held") held.add(key);
    const listeners = others?.filter((listener) => !held.has(keyOf(listener)));
    let busyChanged = false;
    for (const { port, got } of outcomes) {
      const before = port.state;
      port.state = got === "in use" ? await whose(port.claim, listeners) : got;
      const isBusy = port.state.kind === "busy";
      if (isBusy !== (before?.kind === "busy")) {
        busyChanged = true;
        for (const unit of port.units) changed.add(unit);
        const fields = { port: keyOf(port.claim), for: [...port.units] };
        if (port.state.kind === "busy") {
          log.warn("a program of the host has a port that is to be published", { ...fields, program: port.state.by });
        } else if (before !== undefined) log.info("a port that a program of the host had is free", fields);
      } else if (port.state.kind === "busy" && before?.kind === "busy") {
        busyChanged ||= port.state.by !== before.by || port.state.at !== before.at;
      }
      if (port.units.size === 0 && !(isBusy && performance.now() < port.forgetAtMs)) this.#forget(port);
    }
    if (busyChanged) onBusy();
    this.#plan();
    return changed;
  }

  async #listeners(): Promise<readonly Listener[] | undefined> {
    try {
      return await this.#deps.listeners();
    } catch (error) {
      this.#deps.log.warn("cannot tell who listens on this host", { error });
      return undefined;
    }
  }

  #plan(): void {
    if (this.#timer !== undefined || this.#stopped || !this.#unheld().length) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      void this.#alone(async () => {
        const changed = await this.#try(this.#unheld());
        if (changed.size > 0) this.#deps.onChange(changed);
      });
    }, this.#deps.retryMs ?? defaultRetryMs);
  }

  #unheld(): Port[] {
    return [...this.#ports.values()].filter(({ state }) => state !== undefined && state.kind !== "held");
  }
}

/** Whose is a port that cannot be bound? Without knowing who listens it counts as another's: that program could be sshd. */
function inUse({ protocol, address, port }: Claim, listeners: readonly Listener[] | undefined): PortState {
  if (listeners === undefined) return { kind: "busy", by: "", at: "" };
  const isOne = (one: Listener) =>
    one.protocol === protocol &&
    one.port === port &&
    (address === "0.0.0.0" || one.address === "0.0.0.0" || one.address === address);
  const all = listeners.filter(isOne);
  const listener = all.find((one) => one.address === "0.0.0.0") ?? all[0];
  if (listener === undefined) return { kind: "open" };
  return { kind: "busy", by: listener.program, at: listener.address === "0.0.0.0" ? "" : listener.address };
}

/** As `inUse`. When nobody listens, the one that did may have ended in between, and it is asked for once more. */
async function whose(claim: Claim, listeners: readonly Listener[] | undefined): Promise<PortState> {
  const state = inUse(claim, listeners);
  if (state.kind === "busy") return state;
  const again = await hold(claim);
  return again === "in use" ? state : again;
}

async function hold(claim: Claim): Promise<PortState | "in use"> {
  try {
    return { kind: "held", close: claim.protocol === "udp" ? await holdUdp(claim) : await holdTcp(claim) };
  } catch (error) {
    // Else it has nothing to do with who listens: an address that is another host's, for one.
    return isErrno(error, "EADDRINUSE") ? "in use" : { kind: "open" };
  }
}

async function holdTcp({ address, port }: Claim): Promise<() => void> {
  // Whoever connects between this and the rules that lead elsewhere is refused.
  const server = createServer((socket) => socket.on("error", () => {}).resetAndDestroy());
  server.listen({ host: address, port, backlog: 1 });
  await once(server, "listening");
  server.on("error", () => {});
  return () => server.close();
}

async function holdUdp({ address, port }: Claim): Promise<() => void> {
  const socket = createSocket("udp4");
  socket.bind({ address, port, exclusive: true });
  try {
    await once(socket, "listening");
  } catch (error) {
    socket.close();
    throw error;
  }
  socket.on("error", () => {});
  return () => socket.close();
}
