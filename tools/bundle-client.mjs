/**
 * Writes `dist/client/index.js`: the client as one minified module without imports, so that a page
 * can load it without a bundler. Part of `npm run build`, after the compiler.
 */
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = new URL('../', import.meta.url);

await build({
  entryPoints: [fileURLToPath(new URL('src/client/index.ts', root))],
  outfile: fileURLToPath(new URL('dist/client/index.js', root)),
  bundle: true,
  format: 'esm',
  minify: true,
  sourcemap: true,
  sourcesContent: false,
  target: 'es2022',
  // Options of the compiler that concern types only are not known to esbuild.
  tsconfigRaw: {},
  logLevel: 'warning',
});
