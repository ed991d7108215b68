import { connect } from "node:tls";
import { ClusterError, type ErrorCode } from "../../lib/errors/errors.ts";
import { certificateProblem, connectionWords, type Meaning, meaningOf } from "../../lib/net/tls-words.ts";
import type { Context } from "./contexts.ts";

const patienceMs = 2_000;

/** What became of one attempt to speak to an endpoint. */
type Outcome =
  | { readonly kind: "answers" }
  | { readonly kind: "unreachable"; readonly words: string }
  | { readonly kind: "wrong-server"; readonly meaning: Meaning }
  | { readonly kind: "refuses-us" };

/**
 * Says in one sentence why no member of the cluster can be called: gRPC itself tells a refused certificate and a dead
 * host alike. Tries the context's endpoints once each.
 */
export async function diagnose(context: Context, cause: ClusterError): Promise<ClusterError> {
  const outcomes = await Promise.all(
    context.endpoints.map(async (endpoint) => ({ endpoint, outcome: await attempt(context, endpoint) })),
  );
  const told = (code: ErrorCode, message: string, hint: string) =>
    new ClusterError(message, { code, subject: `context/${context.name}`, hint, cause });
  for (const { endpoint, outcome } of outcomes) {
    if (outcome.kind === "refuses-us") {
      const problem = certificateProblem(context.certificate, Date.now());
      if (problem !== undefined) {
        return told(
          "denied",
          `the certificate of context ${context.name} ${problem}`,
          "Make another on a manager with `clusterd admin create --name USER --out FILE`, and `clusterctl context import FILE`.",
        );
      }
      return told(
        "denied",
        `the cluster at ${endpoint} does not accept the certificate of context ${context.name}`,
        "The context is of another cluster, or of one that was made anew: import that of this cluster with `clusterctl context import FILE`.",
      );
    }
    if (outcome.kind === "wrong-server") {
      const { words, hint, code } = outcome.meaning;
      return told(
        code,
        `${endpoint} is not a member of the cluster that context ${context.name} is for: ${words}`,
        hint,
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
    const ended = (code: string) => {
      const meaning = meaningOf(code);
      if (secured) settle({ kind: "refuses-us" });
      else if (connected && meaning !== undefined) settle({ kind: "wrong-server", meaning });
      // It may just be starting, or on its way out.
      else if (connected) settle({ kind: "unreachable", words: "it breaks the connection off" });
      else settle({ kind: "unreachable", words: connectionWords(code) });
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
    socket.on("error", (error: NodeJS.ErrnoException) => {
      const code = error.code ?? "";
      const isOfOurs = /ALERT_(?!PROTOCOL_VERSION|NO_APPLICATION_PROTOCOL)/.test(code);
      if (isOfOurs) settle({ kind: "refuses-us" });
      else ended(code);
    });
    socket.on("close", () => ended("ECONNRESET"));
  });
}
