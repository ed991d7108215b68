import http from "node:http";
import https from "node:https";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";

export interface HttpOptions {
  /** Longest silence of the other end, before and within an answer. */
  readonly idleTimeoutMs: number;
  /** Environment to read HTTP_PROXY, HTTPS_PROXY and NO_PROXY from. */
  readonly proxyEnv: NodeJS.ProcessEnv;
}

export interface HttpRequest {
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal | undefined;
}

/** GET requests over kept-alive connections; redirects are the caller's business. */
export class HttpClient {
  readonly #options: HttpOptions;
  readonly #plain: http.Agent;
  readonly #tls: https.Agent;

  constructor(options: HttpOptions) {
    this.#options = options;
    const agent = { keepAlive: true, maxSockets: 16, proxyEnv: options.proxyEnv };
    this.#plain = new http.Agent(agent);
    this.#tls = new https.Agent(agent);
  }

  /** The answer, its body not yet read: read or destroy it. Throws `unavailable` when the other end cannot be reached. */
  async get(request: HttpRequest): Promise<http.IncomingMessage> {
    const { url, headers, signal } = request;
    const module = url.protocol === "https:" ? https : http;
    const agent = url.protocol === "https:" ? this.#tls : this.#plain;
    return await new Promise((resolve, reject) => {
      const options = {
        agent,
        headers: { ...headers, "user-agent": "embassy" },
        ...(signal === undefined ? {} : { signal }),
      };
      const pending = module.get(url, options, resolve);
      pending.setTimeout(this.#options.idleTimeoutMs, () => {
        pending.destroy(new Error(`no answer for ${this.#options.idleTimeoutMs / 1000} s`));
      });
      pending.on("error", (cause) => reject(signal?.aborted === true ? signal.reason : unreachable(url, cause)));
    });
  }

  close(): void {
    this.#plain.destroy();
    this.#tls.destroy();
  }
}

function unreachable(url: URL, cause: Error): ClusterError {
  const words = cause instanceof AggregateError ? cause.errors.map(messageOf).join("; ") : cause.message;
  const notTls = /wrong version number|packet length too long/i.test(words);
  return new ClusterError(`cannot reach registry ${url.host}: ${notTls ? "it does not speak TLS" : words}`, {
    code: "unavailable",
    hint: notTls
      ? `If it is meant to speak plain HTTP, start noded with --insecure-registry ${url.host}.`
      : "Check the registry's address, and that this node reaches it.",
    cause,
  });
}

/** The body as bytes. Throws `invalid` when it is longer than `maxBytes`. */
export async function readBody(response: http.IncomingMessage, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxBytes) {
      response.destroy();
      throw new ClusterError(`the registry's answer is longer than ${maxBytes} bytes`, { code: "invalid" });
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
