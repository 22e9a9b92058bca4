/**
 * Follows a guide as a reader does: writes its files, runs its commands, and collects the
 * documented and the actual output.
 */
import { readFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pack, root, run } from '../package/packed.ts';
import { start, type Child } from '../support/child.ts';
import { freePort } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';
import type { Page } from './pages.ts';

// The port and the epoch of the log in the guide, and the pattern of an epoch.
const PORT = '3000';
const EPOCH = 'GMOBz1wR';
const ANY_EPOCH = /[\w-]{8}(?=\.\d)/g;

export class Tour implements AsyncDisposable {
  readonly directory: string;
  readonly port: number;
  /** The URL of Redis that replaces the URL in the guide. */
  redisUrl = '';
  readonly #tarball: string;
  readonly #versions: Record<string, string>;
  readonly #running = new Map<string, Child>();
  #epoch = EPOCH;
  /** The output of the last command. */
  printed = '';

  private constructor(
    directory: string,
    port: number,
    tarball: string,
    versions: Record<string, string>,
  ) {
    this.directory = directory;
    this.port = port;
    this.#tarball = tarball;
    this.#versions = versions;
  }

  /** Starts a tour in an empty folder, with the package as npm packs it. */
  static async begin(): Promise<Tour> {
    const directory = await mkdtemp(join(tmpdir(), 'res-sse-tour-'));
    const { filename } = await pack('--pack-destination', directory);
    const manifest = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as {
      devDependencies: Record<string, string>;
    };
    return new Tour(
      directory,
      await freePort(),
      join(directory, filename),
      manifest.devDependencies,
    );
  }

  get url(): string {
    return `http://localhost:${this.port}`;
  }

  get folder(): string {
    return join(this.directory, 'feed');
  }

  /**
   * Follows a section up to its end.
   * @returns the documented output and the actual output
   */
  async follow(page: Page, heading: string): Promise<{ written: string[]; printed: string[] }> {
    const lines = page.text.split('\n');
    const from = lines.indexOf(heading) + 1;
    if (from === 0) throw new Error(`${page.path} has no section ${heading}`);
    const next = lines.findIndex((line, index) => index >= from && line.startsWith('## '));
    const to = next === -1 ? lines.length : next;
    const written: string[] = [];
    const printed: string[] = [];
    for (const block of page.blocks.filter(({ line }) => line > from && line <= to)) {
      const [word = ''] = block.words;
      if (block.language === 'sh') {
        await this.#runCommand(block.text.trim(), word);
      } else if (block.language === 'text' && word !== '') {
        written.push(normalizeEpochs(block.text));
        printed.push(await this.#readOutput(normalizeEpochs(block.text), word));
      } else if (block.file !== undefined && ['js', 'html'].includes(block.language)) {
        await this.#write(block.file, block.text);
      }
    }
    return { written, printed };
  }

  async #write(file: string, text: string): Promise<void> {
    await mkdir(dirname(join(this.folder, file)), { recursive: true });
    await writeFile(join(this.folder, file), text);
  }

  async #runCommand(text: string, name: string): Promise<void> {
    const command = text
      .replaceAll(`localhost:${PORT}`, `localhost:${this.port}`)
      .replaceAll('redis://localhost:6379', this.redisUrl)
      .replaceAll(EPOCH, this.#epoch)
      .replaceAll(/^npm install .*$/gm, (line) => this.#withVersions(line));
    if (name !== '') {
      await this.startAs(name, command);
      return;
    }
    const cwd = text.startsWith('mkdir') ? this.directory : this.folder;
    const { stdout } = await run('bash', ['-e', '-c', command], { cwd });
    this.printed = stdout;
    this.#epoch = /"id":"([^.]+)\./.exec(stdout)?.[1] ?? this.#epoch;
  }

  /**
   * Starts a command in the terminal of this name, after stopping the current command of the
   * terminal with SIGINT.
   */
  async startAs(name: string, command: string): Promise<void> {
    await this.stop(name, 'SIGINT');
    const words = command.split('\n').at(-1) ?? '';
    const child = start(
      'bash',
      ['-c', `cd '${this.folder}' && exec env ${words} ${name === 'reader' ? '2>/dev/null' : ''}`],
      {
        PORT: String(this.port),
      },
    );
    this.#running.set(name, child);
    if (name === 'reader') await until('output of the reader', () => child.output !== '');
    else await until('a response of the server', () => this.#answers(child));
  }

  async #answers(child: Child): Promise<boolean> {
    if (!child.isRunning) throw new Error(`the server exited: ${child.output}`);
    return fetch(this.url).then(
      () => true,
      () => false,
    );
  }

  async stop(name: string, signal: NodeJS.Signals): Promise<number | null> {
    const child = this.#running.get(name);
    if (child === undefined) return null;
    this.#running.delete(name);
    await child.stop(signal, 20_000);
    return child.process.exitCode;
  }

  /**
   * Returns the output of a terminal as soon as it equals the expected output, or after a time
   * limit.
   */
  async #readOutput(expected: string, name: string): Promise<string> {
    const printed = () => normalizeEpochs(this.#running.get(name)?.output ?? this.printed);
    await until('the documented output', () => printed() === expected, 3_000).catch(() => {});
    return printed();
  }

  #withVersions(command: string): string {
    const [npm, install, ...names] = command.split(' ');
    const packages = names.map((name) =>
      name === 'res-sse' ? this.#tarball : `${name}@${this.#versions[name]}`,
    );
    return [npm, install, '--prefer-offline', '--no-audit', '--no-fund', ...packages].join(' ');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#running.values()) await child[Symbol.asyncDispose]();
    await rm(this.directory, { recursive: true, force: true });
  }
}

/** Replaces each epoch by the epoch of the guide. */
function normalizeEpochs(text: string): string {
  return text.trim().replaceAll(ANY_EPOCH, EPOCH);
}
