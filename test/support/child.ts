/** Programs that a test starts. They always end with the test, and their output is kept. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { within } from './wait.ts';

export interface Child extends AsyncDisposable {
  readonly process: ChildProcess;
  readonly pid: number;
  /** The output so far, of stdout and stderr. */
  readonly output: string;
  readonly isRunning: boolean;
  /** Resolves when the program has ended, for any reason. */
  readonly ended: Promise<void>;
  /** Sends a signal and waits for the end. */
  stop(signal?: NodeJS.Signals, ms?: number): Promise<void>;
}

/**
 * Starts a program. It is killed when it is disposed of, or when the process of the tests ends,
 * even by a SIGKILL.
 */
export function start(
  command: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Child {
  // On Linux the kernel kills the program when the process of the tests ends.
  const words =
    process.platform === 'linux'
      ? ['setpriv', '--pdeathsig', 'KILL', command, ...args]
      : [command, ...args];
  const child = spawn(words[0] as string, words.slice(1), {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (chunk: Buffer) => (output += chunk.toString()));
  }
  const ended = (async () => {
    try {
      await once(child, 'close');
    } catch (error) {
      output += String(error);
    }
  })();
  const isRunning = () =>
    child.pid !== undefined && child.exitCode === null && child.signalCode === null;

  async function stop(signal: NodeJS.Signals = 'SIGTERM', ms = 10_000): Promise<void> {
    if (isRunning()) child.kill(signal);
    await within(`the end of ${command}`, ended, ms);
  }

  return {
    process: child,
    get pid() {
      return child.pid as number;
    },
    get output() {
      return output;
    },
    get isRunning() {
      return isRunning();
    },
    ended,
    stop,
    // SIGKILL also ends a process that is stopped (SIGSTOP).
    [Symbol.asyncDispose]: () => stop('SIGKILL'),
  };
}
