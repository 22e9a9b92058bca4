/** Starts an example as its reader does: `npx tsx <file>` in `examples/`. */
import { start, type Child } from '../support/child.ts';
import { until } from '../support/wait.ts';

export interface Program extends AsyncDisposable {
  readonly url: string;
  readonly child: Child;
}

const ADDRESS = /http:\/\/\S+:[1-9]\d*/;

/**
 * Starts a program, on a free port unless `env` has a `PORT`. Resolves when the program has printed
 * its address.
 */
export async function startProgram(
  file: string,
  env: Record<string, string> = {},
): Promise<Program> {
  const child = start('env', ['-C', 'examples', process.execPath, '--import', 'tsx', file], {
    PORT: '0',
    ...env,
  });
  try {
    await until(`the address of ${file}`, () => {
      if (!child.isRunning) throw new Error('the program exited');
      return ADDRESS.test(child.output);
    });
  } catch (error) {
    await child[Symbol.asyncDispose]();
    throw new Error(`${file} did not start: ${child.output}`, { cause: error });
  }
  return {
    url: ADDRESS.exec(child.output)?.[0] as string,
    child,
    [Symbol.asyncDispose]: () => child[Symbol.asyncDispose](),
  };
}
