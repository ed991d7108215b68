import type { BuildOptions } from "esbuild";

/** How a program is bundled: for dist/, and by tests that run one of their own. */
export const bundleOptions = {
  bundle: true,
  platform: "node",
  target: "node24",
  // Node 24 has `using`. What esbuild makes of it keeps an error in a variable of the whole function: in a loop, every later
  // pass would throw the error of an earlier one again.
  supported: { using: true },
  format: "esm",
  // The engine keeps a program's text: without layout and licences, which may not fit one byte a character, it is a third
  // of the size. Names stay, for stack traces.
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: "none",
  logLevel: "warning",
  // Some dependencies are CommonJS and call require() for Node's own modules.
  banner: {
    js: 'import { createRequire as __createRequire } from "node:module"; const require = __createRequire(import.meta.url);',
  },
} as const satisfies BuildOptions;
