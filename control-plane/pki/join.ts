import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError, hasCode } from "../../lib/errors/errors.ts";
import { unary } from "../../lib/grpc/server.ts";
import { newId } from "../../lib/ids/ids.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Authority } from "../../lib/pki/authority.ts";
import type {
  EnrollManagerRequest,
  EnrollManagerResponse,
  EnrollRequest,
  EnrollResponse,
  JoinServer,
  RenewResponse,
} from "../../proto/gen/embassy/v1/dispatcher.ts";
import { Member, NodeSpec } from "../../proto/gen/embassy/v1/state.ts";
import type { Store, View, Write } from "../store/types.ts";
import { isHost } from "./init.ts";
import { findToken } from "./tokens.ts";

export interface JoinDeps {
  readonly store: Pick<Store, "view" | "commit">;
  readonly authority: Authority;
  readonly clusterId: string;
  /** Of this member's main listener. */
  readonly advertise: string;
  readonly clock: Pick<Clock, "nowMs">;
  readonly log: Log;
}

const namePattern = /^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$/;
const managerNamePattern = /^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$/i;
const attempts = 20;

/** host:port of every member that has served, in a stable order: where nodes and users find the control plane. */
export function servedAddresses(view: Pick<View, "members">): string[] {
  const served = [...view.members.values()].filter(({ startedAtMs, address }) => startedAtMs > 0 && address !== "");
  return served.map(({ address }) => address).sort();
}

/** The Join service: certificates for hosts that bring a join token. */
export class Join {
  readonly #deps: JoinDeps;
  #last: Promise<unknown> = Promise.resolve();

  constructor(deps: JoinDeps) {
    this.#deps = deps;
  }

  get service(): JoinServer {
    return {
      enroll: unary<EnrollRequest, EnrollResponse>(async (request) => await this.enroll(request)),
      enrollManager: unary<EnrollManagerRequest, EnrollManagerResponse>(
        async (request) => await this.enrollManager(request),
      ),
    };
  }

  /**
   * A node certificate for a host with a valid token; writes the node. A name whose node is down is taken over: the old
   * node goes, and the new one keeps its labels and availability. Throws `denied` (token), `invalid` (name, request),
   * `conflict` (the name's node is up).
   */
  async enroll(request: EnrollRequest): Promise<EnrollResponse> {
    // One at a time: hosts that join at once would only make one another's transactions fail.
    const mine = this.#last.then(() => this.#enroll(request));
    this.#last = mine.catch(() => undefined);
    return await mine;
  }

  async #enroll(request: EnrollRequest): Promise<EnrollResponse> {
    const { authority, store, clusterId, clock, log } = this.#deps;
    findToken(store.view, request.token, authority.fingerprint, clock.nowMs());
    const name = request.nodeName;
    if (!namePattern.test(name)) {
      throw new ClusterError(`${JSON.stringify(name)} cannot be a node's name`, {
        code: "invalid",
        subject: "node name",
        hint: "Use a host name: 1 to 63 of a-z, 0-9, - and ., beginning and ending with a letter or digit.",
      });
    }
    const id = newId();
    const grant = { commonName: id, role: "node", nowMs: clock.nowMs() } as const;
    const certificate = await authority.sign(request.csrDer, grant);
    await this.#write(id, name, request.token);
    log.info("node enrolled", { nodeId: id, node: name });
    const members = servedAddresses(store.view);
    return {
      nodeId: id,
      certificatePem: certificate,
      caPem: authority.certificate,
      clusterId,
      managers: [...new Set([this.#deps.advertise, ...members])],
    };
  }

  /**
   * A manager certificate for a host with a valid manager's token; reserves the member's name. A name that has been
   * reserved and never served is given to the last who asks; of two hosts, the first then finds that it is another's.
   * Throws `denied` (token), `invalid` (name, address, request), `conflict` (the name of another manager).
   */
  async enrollManager(request: EnrollManagerRequest): Promise<EnrollManagerResponse> {
    const { authority, store, clusterId, advertise, clock, log } = this.#deps;
    const { name, address, instance, csrDer } = request;
    const nowMs = clock.nowMs();
    const token = findToken(store.view, request.token, authority.fingerprint, nowMs, "manager");
    if (!managerNamePattern.test(name)) {
      throw new ClusterError(`${JSON.stringify(name)} cannot be a manager's name`, {
        code: "invalid",
        subject: "manager name",
        hint: "Use a host name: 1 to 63 letters, digits, - and ., beginning and ending with a letter or digit.",
      });
    }
    const [, host = ""] = /^(.+):[0-9]{1,5}$/.exec(address) ?? [];
    if (!isHost(host) || instance === "") {
      throw new ClusterError(`${JSON.stringify(address)} is not an address HOST:PORT`, {
        code: "invalid",
        subject: "address",
      });
    }
    const certificate = await authority.sign(csrDer, { commonName: name, role: "manager", nowMs });
    const known = store.view.members.get(name);
    if (known !== undefined && known.startedAtMs > 0 && known.instance !== instance) {
      throw new ClusterError(`the cluster has a manager ${name} (${known.address}) already`, {
        code: "conflict",
        subject: `manager/${name}`,
        hint: `Give this one another --name; or, when that one is lost, remove it first: \`clusterctl manager rm ${name}\`.`,
      });
    }
    const other = [...store.view.members.values()].find((one) => one.address === address && one.name !== name);
    if (other !== undefined) {
      throw new ClusterError(`${address} is the address of manager ${other.name}`, {
        code: "conflict",
        subject: `manager/${name}`,
        hint: `Give the address of this host with --advertise; or, when ${other.name} was this host, remove it first: \`clusterctl manager rm ${other.name}\`.`,
      });
    }
    if (known?.instance !== instance || known.address !== address) {
      const value = Member.create({ name, address, instance });
      await store.commit([
        { table: "members", id: name, value, ifRevision: store.view.members.revisionOf(name) },
        { table: "tokens", id: token.id, value: token, ifRevision: store.view.tokens.revisionOf(token.id) },
      ]);
    }
    log.info("manager enrolled", { manager: name, address });
    return { certificatePem: certificate, caPem: authority.certificate, clusterId, address: advertise };
  }

  async #write(id: string, name: string, tokenText: string): Promise<void> {
    const { store, authority, clock } = this.#deps;
    for (let attempt = 1; ; attempt++) {
      const { view } = store;
      const nowMs = clock.nowMs();
      const token = findToken(view, tokenText, authority.fingerprint, nowMs);
      const old = [...view.nodes.values()].find((node) => node.name === name);
      if (old !== undefined && view.sessions.get(old.id) !== undefined) {
        throw new ClusterError(`a node named ${name} is up`, {
          code: "conflict",
          subject: `node/${name}`,
          hint: "Give this host another --name, or stop noded on the other host first.",
        });
      }
      const value = NodeSpec.create({ ...old, id, name, createdAtMs: nowMs });
      const writes: Write[] = [
        { table: "nodes", id, value, ifRevision: 0 },
        // Written as it is: of two members that give one name at the same time, with one token, the second conflicts.
        { table: "tokens", id: token.id, value: token, ifRevision: view.tokens.revisionOf(token.id) },
      ];
      if (old !== undefined) {
        writes.push(
          { table: "nodes", id: old.id, value: undefined, ifRevision: view.nodes.revisionOf(old.id) },
          { table: "nodeStatuses", id: old.id, value: undefined },
        );
      }
      const expect = old === undefined ? [] : [{ table: "sessions", id: old.id, revision: 0 } as const];
      try {
        await store.commit(writes, { expect });
        return;
      } catch (error) {
        if (!hasCode(error, "conflict") || attempt === attempts) throw error;
      }
    }
  }
}

/**
 * A new certificate for a node that showed its present one (Dispatcher.Renew). Throws `denied` for a node that was removed,
 * `invalid` for a bad request.
 */
export async function renewCertificate(
  deps: Pick<JoinDeps, "store" | "authority" | "clock">,
  nodeId: string,
  csrDer: Uint8Array,
): Promise<RenewResponse> {
  if (deps.store.view.nodes.get(nodeId) === undefined) {
    throw new ClusterError(`node ${nodeId} is not part of the cluster`, {
      code: "denied",
      subject: `node/${nodeId}`,
      hint: "It was removed: join it again with `noded join`.",
    });
  }
  const grant = { commonName: nodeId, role: "node", nowMs: deps.clock.nowMs() } as const;
  return { certificatePem: await deps.authority.sign(csrDer, grant), caPem: deps.authority.certificate };
}
