import type { Command } from "commander";
import { ClusterError } from "../lib/errors/errors.ts";
import type { ClusterClient } from "../proto/gen/embassy/v1/api.ts";
import type { Context, Contexts } from "./contexts/contexts.ts";
import type { Screen } from "./render/style.ts";

/** What a command works with. One for the life of the process. */
export interface Cli {
  readonly out: Screen;
  readonly err: Screen;
  readonly environment: NodeJS.ProcessEnv;
  readonly contexts: Contexts;
  /** Aborted when the user interrupts the command. */
  readonly signal: AbortSignal;
  /** For `exec`: the terminal itself. */
  readonly stdin: NodeJS.ReadStream;
  readonly stdout: NodeJS.WriteStream;
  readonly stderr: NodeJS.WriteStream;
  /** What the process exits with when the command does not fail. */
  exitCode: number;
}

/** A command of clusterctl: adds itself to the program. */
export type Register = (program: Command, cli: Cli) => void;

export const outputs = ["table", "json"] as const;
export type Output = (typeof outputs)[number];

/** Options that every command has. */
export interface GlobalOptions {
  readonly context?: string;
  readonly output: Output;
}

/** The options of a command and of the program above it. */
export function globalOptions(command: Command): GlobalOptions {
  return command.optsWithGlobals<GlobalOptions>();
}

/** Prints a value as JSON, for programs. */
export function printJson(cli: Cli, value: unknown): void {
  cli.out.write(`${JSON.stringify(value, null, 2)}\n`);
}

/** How long a connection may take to come about. Over a slow line it takes three round trips. */
const connectMs = 4_000;

/**
 * Runs `work` with a client for the chosen cluster. When no member can be called, throws an error that says why:
 * `unavailable` for a cluster that is not reachable, `denied` for a certificate that it does not accept. That takes six
 * seconds at most, however long the deadline of a call is: a host that is gone does not even refuse a connection.
 */
export async function withCluster<T>(
  cli: Cli,
  options: GlobalOptions,
  work: (client: ClusterClient) => Promise<T>,
): Promise<T> {
  const context = cli.contexts.resolve(options.context);
  for (let turn = 1; ; turn++) {
    try {
      return await withMember(cli, options, { ...context, endpoints: rotate(context.endpoints, turn - 1) }, work);
    } catch (error) {
      // That member says that it has no quorum: it may be cut off from others that have.
      const alone =
        error instanceof ClusterError && error.code === "unavailable" && error.subject?.startsWith("manager/");
      if (alone !== true || turn >= context.endpoints.length || cli.signal.aborted) throw error;
    }
  }
}

function rotate<T>(list: readonly T[], by: number): T[] {
  return [...list.slice(by), ...list.slice(0, by)];
}

async function withMember<T>(
  cli: Cli,
  options: GlobalOptions,
  context: Context,
  work: (client: ClusterClient) => Promise<T>,
): Promise<T> {
  // Half of the start-up time is gRPC: only commands that talk to a cluster pay for it.
  const { connect } = await import("./contexts/connect.ts");
  const client = connect(context);
  try {
    const result = await Promise.race([work(client), connectedOrFails(client)]);
    await learnEndpoints(cli, options, context, client);
    return result;
  } catch (error) {
    if (!cli.signal.aborted && error instanceof ClusterError && error.code === "unavailable" && isTransport(error)) {
      const { diagnose } = await import("./contexts/diagnose.ts");
      throw await diagnose(context, error);
    }
    throw error;
  } finally {
    client.close();
  }
}

/** Notes in the context where the control plane's members are now, for when the one that it names is gone. */
async function learnEndpoints(
  cli: Cli,
  options: GlobalOptions,
  context: Context,
  client: ClusterClient,
): Promise<void> {
  if ((options.context ?? cli.contexts.current() ?? "/").includes("/")) return;
  try {
    const { call } = await import("../lib/grpc/client.ts");
    const { addresses } = await call(client.info.bind(client), {}, { deadlineMs: 500, signal: cli.signal });
    // A context that reaches the cluster by other addresses than its own, through a tunnel say, stays as it is.
    const same = context.endpoints.filter((endpoint) => addresses.includes(endpoint));
    if (same.length > 0 && (same.length < addresses.length || same.length < context.endpoints.length)) {
      cli.contexts.save({ ...context, endpoints: addresses });
    }
  } catch {
    // It has done its work; the next command may learn it.
  }
}

const connectedTooLate = new Error("no connection in time");

/** Rejects when there is no connection in time; settles in no other case. */
async function connectedOrFails(client: ClusterClient): Promise<never> {
  return await new Promise<never>((_resolve, reject) => {
    client.waitForReady(Date.now() + connectMs, (error) => {
      if (error === undefined) return;
      reject(
        new ClusterError(`the cluster is slow: no connection after ${connectMs / 1_000} s`, {
          code: "unavailable",
          hint: "Try again.",
          cause: connectedTooLate,
        }),
      );
    });
  });
}

/** Did the call fail before a member answered it? An answer carries its own words in a trailer. */
function isTransport(error: ClusterError): boolean {
  const cause: unknown = error.cause;
  if (cause === connectedTooLate) return true;
  if (!(cause instanceof Error) || !("metadata" in cause)) return false;
  const { metadata } = cause as { metadata?: { get(key: string): unknown[] } };
  return metadata?.get("embassy-error-bin").length === 0;
}
