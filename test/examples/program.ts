/** An example as its reader starts it: `npx tsx <file>` in `examples/`. */
import { start, type Child } from '../support/child.ts';
import { until } from '../support/wait.ts';

export interface Program extends AsyncDisposable {
  readonly url: string;
  readonly child: Child;
}

const ADDRESS = /http:\/\/\S+:[1-9]\d*/;

/** Resolves when it has printed its address. On a free port, unless `PORT` says otherwise. */
export async function startProgram(
  file: string,
  env: Record<string, string> = {},
): Promise<Program> {
  const child = start('env', ['-C', 'examples', process.execPath, '--import', 'tsx', file], {
    PORT: '0',
    ...env,
  });
  try {
    await until(`${file} to print its address`, () => {
      if (!child.isRunning) throw new Error('it has ended');
      return ADDRESS.test(child.output);
    });
  } catch (error) {
    await child[Symbol.asyncDispose]();
    throw new Error(`${file} has not started: ${child.output}`, { cause: error });
  }
  return {
    url: ADDRESS.exec(child.output)?.[0] as string,
    child,
    [Symbol.asyncDispose]: () => child[Symbol.asyncDispose](),
  };
}
