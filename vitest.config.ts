import { defineConfig } from "vitest/config";

// A slow machine, such as an emulated one, gets longer to wait; nothing else changes.
const patience = Number(process.env["EMBASSY_TEST_PATIENCE"] ?? 1);

// Two projects: `unit` runs beside its code and in parallel; `system` owns the machine's namespaces, one file at a time.
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["{lib,control-plane,node-agent,netd,cli}/**/*.test.ts"],
          testTimeout: 30_000 * patience,
        },
      },
      {
        test: {
          name: "system",
          include: ["test/**/*.test.ts"],
          fileParallelism: false,
          testTimeout: 300_000 * patience,
          hookTimeout: 300_000 * patience,
        },
      },
    ],
  },
});
