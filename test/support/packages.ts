/** Finds the folders of packages that a test passes to a program or to a page. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** Folders with packages, in the order in which Node looks them up from a test. */
export const packageFolders: readonly string[] = [
  join(root, 'test/apps/node_modules'),
  join(root, 'node_modules'),
];

/**
 * The folder of an installed package.
 * @throws {Error} if the package is not installed
 */
export function packageFolder(name: string): string {
  const found = packageFolders
    .map((folder) => join(folder, name))
    .find((folder) => existsSync(folder));
  if (found === undefined) throw new Error(`the package ${name} is not installed`);
  return found;
}
