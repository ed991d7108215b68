/**
 * A program for a task's namespace, for tests: serves and connects as it is told by JSON lines on stdin, and answers each
 * with a line.
 */
import { createSocket } from "node:dgram";
import { Resolver } from "node:dns/promises";
import { connect, createServer, type Socket } from "node:net";
import { createInterface } from "node:readline";

interface Target {
  readonly host: string;
  readonly port: number;
  /** Address to connect from. */
  readonly from?: string;
  readonly timeoutMs?: number;
}

const [name = ""] = process.argv.slice(2);
const streams: { socket: Socket; sent: number; echoed: number; error: string }[] = [];

const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error ? String(error.code) : String(error);

/** Says to whom it is talking, then echoes. Resolves to "listens" or to the code of what was wrong. */
async function serveTcp(at: number | { readonly host: string; readonly port: number }): Promise<string> {
  const { host, port } = typeof at === "number" ? { host: "0.0.0.0", port: at } : at;
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.write(`${name} ${socket.remoteAddress}\n`);
    socket.pipe(socket);
  });
  return await new Promise<string>((resolve) => {
    server.on("error", (error) => resolve(codeOf(error)));
    server.listen(port, host, () => resolve("listens"));
  });
}

async function serveUdp(port: number): Promise<void> {
  const socket = createSocket("udp4");
  socket.on("message", (_, from) => socket.send(`${name} ${from.address}`, from.port, from.address));
  await new Promise<void>((resolve) => socket.bind(port, resolve));
}

async function getTcp({ host, port, from, timeoutMs = 1_500 }: Target): Promise<string> {
  return await new Promise((resolve) => {
    const socket = connect({ host, port, ...(from === undefined ? {} : { localAddress: from }) });
    const done = (text: string) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(text);
    };
    const timer = setTimeout(() => done("TIMEOUT"), timeoutMs);
    socket.on("data", (data) => done(String(data).trim()));
    socket.on("error", (error) => done(codeOf(error)));
  });
}

async function getUdp({ host, port, timeoutMs = 700 }: Target): Promise<string> {
  const socket = createSocket("udp4");
  try {
    return await new Promise((resolve) => {
      const timer = setTimeout(() => resolve("TIMEOUT"), timeoutMs);
      const done = (text: string) => {
        clearTimeout(timer);
        resolve(text);
      };
      socket.on("message", (data) => done(String(data)));
      socket.on("error", (error) => done(codeOf(error)));
      socket.connect(port, host, () => socket.send("?"));
    });
  } finally {
    socket.close();
  }
}

/** A connection that always has something under way. Its number. */
async function stream({ host, port }: Target): Promise<number> {
  const socket = connect({ host, port });
  await new Promise<void>((resolve, reject) => socket.once("data", () => resolve()).once("error", reject));
  const state = { socket, sent: 0, echoed: 0, error: "" };
  socket.on("data", (data) => {
    state.echoed += data.length;
  });
  socket.on("error", (error) => {
    state.error = codeOf(error);
  });
  socket.on("close", () => {
    state.error ||= "CLOSED";
  });
  const timer = setInterval(() => {
    if (state.error !== "" || socket.destroyed) clearInterval(timer);
    else if (socket.write("0123456789")) state.sent += 10;
  }, 5);
  return streams.push(state) - 1;
}

/** A connection that says nothing. Its number. */
async function idle({ host, port }: Target): Promise<number> {
  const socket = connect({ host, port });
  await new Promise<void>((resolve, reject) => socket.once("data", () => resolve()).once("error", reject));
  const state = { socket, sent: 0, echoed: 0, error: "" };
  socket.on("error", (error) => {
    state.error = codeOf(error);
  });
  socket.on("close", () => {
    state.error ||= "CLOSED";
  });
  return streams.push(state) - 1;
}

async function resolveName(host: string): Promise<string[] | string> {
  const resolver = new Resolver({ timeout: 1_000, tries: 1 });
  resolver.setServers(["169.254.42.1"]);
  return await resolver.resolve4(host).catch(codeOf);
}

async function run(command: string, argument: never): Promise<unknown> {
  switch (command) {
    case "serveTcp":
      return await serveTcp(argument);
    case "serveUdp":
      return await serveUdp(argument);
    case "getTcp":
      return await getTcp(argument);
    case "getUdp":
      return await getUdp(argument);
    case "stream":
      return await stream(argument);
    case "idle":
      return await idle(argument);
    case "streamState": {
      const { sent, echoed, error } = streams[argument] ?? { sent: 0, echoed: 0, error: "none" };
      return { sent, echoed, error };
    }
    case "resolve":
      return await resolveName(argument);
    default:
      throw new Error(`no command ${command}`);
  }
}

process.stdout.write('{"ready":true}\n');
for await (const line of createInterface({ input: process.stdin })) {
  const { id, command, argument } = JSON.parse(line) as { id: number; command: string; argument: never };
  run(command, argument).then(
    (result) => process.stdout.write(`${JSON.stringify({ id, result: result ?? null })}\n`),
    (error: unknown) => process.stdout.write(`${JSON.stringify({ id, error: codeOf(error) })}\n`),
  );
}
