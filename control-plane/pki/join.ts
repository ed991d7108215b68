import type { Clock } from "../../lib/clock/clock.ts";
import { ClusterError, hasCode } from "../../lib/errors/errors.ts";
import { unary } from "../../lib/grpc/server.ts";
import { newId } from "../../lib/ids/ids.ts";
import type { Log } from "../../lib/log/log.ts";
import type { Authority } from "../../lib/pki/authority.ts";
import type {
  EnrollRequest,
  EnrollResponse,
  JoinServer,
  RenewResponse,
} from "../../proto/gen/embassy/v1/dispatcher.ts";
import { NodeSpec } from "../../proto/gen/embassy/v1/state.ts";
import type { Store, Write } from "../store/types.ts";
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
const attempts = 20;

/** The Join service: certificates for hosts that bring a join token. */
export class Join {
  readonly #deps: JoinDeps;
  #last: Promise<unknown> = Promise.resolve();

  constructor(deps: JoinDeps) {
    this.#deps = deps;
  }

  get service(): JoinServer {
    return { enroll: unary<EnrollRequest, EnrollResponse>(async (request) => await this.enroll(request)) };
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
    const members = [...store.view.members.values()].map(({ address }) => address);
    return {
      nodeId: id,
      certificatePem: certificate,
      caPem: authority.certificate,
      clusterId,
      managers: [...new Set([this.#deps.advertise, ...members])],
    };
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
