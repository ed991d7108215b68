import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";

it("prints all that it has to say into a pipe, however slowly that is read", () => {
  const directory = mkdtempSync(join(tmpdir(), "embassy-main-"));
  try {
    const file = join(directory, "big.yml");
    const image = `registry.example/${"x".repeat(200)}:1`;
    const services = Array.from({ length: 500 }, (_, n) => `  service-${n}: { image: "${image}" }\n`);
    writeFileSync(file, `services:\n${services.join("")}`);
    const program = `"${process.execPath}" "${join(import.meta.dirname, "main.ts")}" config "${file}"`;
    // A pipe of the shell's: one that Node makes for a child is a socket, which takes more.
    const printed = execFileSync("sh", ["-c", `${program} | { head -c 1; cat; }`], { encoding: "utf8" });
    expect(printed.split(image)).toHaveLength(501);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
