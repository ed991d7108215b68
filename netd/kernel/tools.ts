import { ClusterError } from "../../lib/errors/errors.ts";
import { run } from "../../lib/process/run.ts";

/** Runs a program to its end and gives its stdout. Throws `internal` with its stderr when it fails. */
export async function runTool(program: string, args: readonly string[], input?: string): Promise<string> {
  const { code, stdout, stderr } = await run(program, args, { input });
  if (code === 0) return stdout;
  const said = stderr.trim() || `exit code ${code}`;
  throw new ClusterError(`${program} ${args.join(" ")}: ${said}`, { code: "internal", subject: program });
}
