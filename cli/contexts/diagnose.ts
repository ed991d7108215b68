import { connect } from "node:tls";
import { ClusterError, isErrno, messageOf } from "../../lib/errors/errors.ts";
import type { Context } from "./contexts.ts";

const patienceMs = 2_000;

/** What became of one attempt to speak to an endpoint. */
type Outcome =
  | { readonly kind: "answers" }
  | { readonly kind: "unreachable"; readonly words: string }
  | { readonly kind: "wrong-server"; readonly words: string }
  | { readonly kind: "refuses-us"; readonly words: string };

/**
 * Says in one sentence why no member of the cluster can be called: gRPC itself tells a refused certificate and a dead
 * host alike. Tries the context's endpoints once each.
 */
export async function diagnose(context: Context, cause: ClusterError): Promise<ClusterError> {
  const outcomes = await Promise.all(
    context.endpoints.map(async (endpoint) => ({ endpoint, outcome: await attempt(context, endpoint) })),
  );
  for (const { endpoint, outcome } of outcomes) {
    if (outcome.kind === "refuses-us") {
      return new ClusterError(`the cluster at ${endpoint} does not accept this certificate (${outcome.words})`, {
        code: "denied",
        subject: `context/${context.name}`,
        hint: `Context ${context.name} is of another cluster, or its certificate has expired: import the one of this cluster with \`clusterctl context import FILE\`.`,
        cause,
      });
    }
    if (outcome.kind === "wrong-server") {
      return new ClusterError(
        `${endpoint} is not a member of the cluster that context ${context.name} is for (${outcome.words})`,
        {
          code: "denied",
          subject: `context/${context.name}`,
          hint: "Its certificate is of another CA. Check the context's endpoints, or import the context of that cluster.",
          cause,
        },
      );
    }
  }
  if (outcomes.some(({ outcome }) => outcome.kind === "answers")) return cause;
  const words = outcomes
    .map(({ endpoint, outcome }) => `${endpoint}: ${outcome.kind === "unreachable" ? outcome.words : "no answer"}`)
    .join("; ");
  return new ClusterError(`the cluster of context ${context.name} cannot be reached (${words})`, {
    code: "unavailable",
    subject: `context/${context.name}`,
    hint: "Check that clusterd runs there, or choose another cluster with `clusterctl context use NAME`.",
    cause,
  });
}

async function attempt(context: Context, endpoint: string): Promise<Outcome> {
  const colon = endpoint.lastIndexOf(":");
  return await new Promise<Outcome>((resolve) => {
    let connected = false;
    let secured = false;
    const settle = (outcome: Outcome) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(outcome);
    };
    // A server that has refused a certificate closes the connection; one that accepts it sends its HTTP/2 settings.
    const ended = (words: string) => {
      if (secured) settle({ kind: "refuses-us", words });
      else if (connected) settle({ kind: "wrong-server", words });
      else settle({ kind: "unreachable", words });
    };
    const socket = connect({
      host: endpoint.slice(0, colon),
      port: Number(endpoint.slice(colon + 1)),
      ca: context.ca,
      cert: context.certificate,
      key: context.key,
      ALPNProtocols: ["h2"],
      servername: "",
      checkServerIdentity: () => undefined,
    });
    const timer = setTimeout(() => {
      settle(secured ? { kind: "answers" } : { kind: "unreachable", words: "no answer" });
    }, patienceMs);
    socket.on("connect", () => {
      connected = true;
    });
    socket.on("secureConnect", () => {
      secured = true;
    });
    socket.on("data", () => settle({ kind: "answers" }));
    socket.on("error", (error) => {
      if (isErrno(error, "ECONNREFUSED")) settle({ kind: "unreachable", words: "connection refused" });
      else if (/ALERT/.test((error as NodeJS.ErrnoException).code ?? "")) {
        settle({
          kind: "refuses-us",
          words: messageOf(error)
            .replace(/^.*SSL routines:[^:]*:/, "")
            .replace(/:.*$/s, ""),
        });
      } else ended(messageOf(error));
    });
    socket.on("close", () => ended("it closes the connection"));
  });
}
