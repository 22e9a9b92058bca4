/** The package as npm packs it. `pretest` has built it. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export const run = promisify(execFile);

/** The root of the repository. */
export const root = fileURLToPath(new URL('../..', import.meta.url));

interface Packed {
  filename: string;
  files: { path: string }[];
}

/** `npm pack` with the build that is there: to build again would take it away under the other tests. */
export async function pack(...options: string[]): Promise<Packed> {
  const { stdout } = await run('npm', ['pack', '--json', '--ignore-scripts', ...options], {
    cwd: root,
  });
  const [packed] = JSON.parse(stdout) as Packed[];
  if (packed === undefined) throw new Error('npm pack has packed nothing');
  return packed;
}
