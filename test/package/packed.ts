/** Packs the package as npm does. `npm run pretest` builds the package before. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export const run = promisify(execFile);

/** The root of the repository. */
export const root = fileURLToPath(new URL('../..', import.meta.url));

interface PackResult {
  filename: string;
  files: { path: string }[];
}

/**
 * Runs `npm pack` with the existing build. Another build would remove `dist/` while other tests use
 * it.
 */
export async function pack(...options: string[]): Promise<PackResult> {
  const { stdout } = await run('npm', ['pack', '--json', '--ignore-scripts', ...options], {
    cwd: root,
  });
  const [result] = JSON.parse(stdout) as PackResult[];
  if (result === undefined) throw new Error('npm pack printed no result');
  return result;
}
