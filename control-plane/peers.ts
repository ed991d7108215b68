import { call, channelOptions, clientCredentials } from "../lib/grpc/client.ts";
import { requirePeer, unary } from "../lib/grpc/server.ts";
import type { TlsIdentity } from "../lib/grpc/tls.ts";
import {
  ManagerClient,
  type ManagerServer,
  type ReleasedRequest,
  type ReleasedResponse,
  type SecretsRequest,
  type SecretsResponse,
  type SettledRequest,
  type SettledResponse,
} from "../proto/gen/embassy/v1/dispatcher.ts";
import type { View } from "./store/types.ts";

export interface PeersDeps {
  readonly view: Pick<View, "members" | "memberSessions">;
  /** This member's name. */
  readonly member: string;
  /** The present certificate. */
  readonly identity: () => TlsIdentity;
}

/** The other members that are alive, as this one asks them. One connection each, made with the first question. */
export class Peers implements Disposable {
  readonly #deps: PeersDeps;
  readonly #clients = new Map<string, { readonly identity: TlsIdentity; readonly client: ManagerClient }>();

  constructor(deps: PeersDeps) {
    this.#deps = deps;
  }

  /** Resolves once no host that another member serves leads to the task any more; false: a member could not be asked. */
  async released(taskId: string, revision: number, signal: AbortSignal): Promise<boolean> {
    return await this.#askAll(async (client) => {
      const request = { taskId, revision };
      await call<ReleasedRequest, ReleasedResponse>(client.released.bind(client), request, { signal });
    });
  }

  /** Resolves once every host that another member serves has applied what it was sent; false: a member could not be asked. */
  async settled(revision: number, signal: AbortSignal): Promise<boolean> {
    return await this.#askAll(async (client) => {
      await call<SettledRequest, SettledResponse>(client.settled.bind(client), { revision }, { signal });
    });
  }

  [Symbol.dispose](): void {
    for (const { client } of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  async #askAll(ask: (client: ManagerClient) => Promise<void>): Promise<boolean> {
    const { view, member } = this.#deps;
    const others = [...view.memberSessions.values()].filter(({ name }) => name !== member);
    const answers = await Promise.allSettled(
      others.map(async ({ name }) => await ask(this.#client(view.members.get(name)?.address ?? ""))),
    );
    return answers.every(({ status }) => status === "fulfilled");
  }

  #client(address: string): ManagerClient {
    const identity = this.#deps.identity();
    const known = this.#clients.get(address);
    if (known?.identity === identity) return known.client;
    known?.client.close();
    const client = new ManagerClient(address, clientCredentials(identity), channelOptions);
    this.#clients.set(address, { identity, client });
    return client;
  }
}

export interface ManagerServiceDeps {
  /** Throws `denied` unless it is a manager's join token that is valid now. */
  readonly checkToken: (token: string) => void;
  readonly secrets: () => Promise<SecretsResponse>;
  readonly network: {
    released(taskId: string, revision: number): Promise<void>;
    settledAt(revision: number): Promise<void>;
  };
}

/** What members ask one another. */
export function managerService({ checkToken, secrets, network }: ManagerServiceDeps): ManagerServer {
  return {
    secrets: unary<SecretsRequest, SecretsResponse>(async ({ token }, call) => {
      requirePeer(call, ["manager"]);
      checkToken(token);
      return await secrets();
    }),
    released: unary<ReleasedRequest, ReleasedResponse>(async ({ taskId, revision }, call) => {
      requirePeer(call, ["manager"]);
      await network.released(taskId, revision);
      return {};
    }),
    settled: unary<SettledRequest, SettledResponse>(async ({ revision }, call) => {
      requirePeer(call, ["manager"]);
      await network.settledAt(revision);
      return {};
    }),
  };
}
