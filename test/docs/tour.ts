/** What a reader of a guide does: writes its files, types its commands, and compares what comes with what stands there. */
import { readFile, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pack, root, run } from '../package/packed.ts';
import { start, type Child } from '../support/child.ts';
import { freePort } from '../support/redis-server.ts';
import { until } from '../support/wait.ts';
import type { Page } from './pages.ts';

// Where the guide's server listens, what its log is called there, and how such a name looks.
const PORT = '3000';
const LOG = 'GMOBz1wR';
const ANY_LOG = /[\w-]{8}(?=\.\d)/g;

export class Tour implements AsyncDisposable {
  readonly directory: string;
  readonly port: number;
  /** Where the guide's Redis is here. */
  redisUrl = '';
  readonly #tarball: string;
  readonly #versions: Record<string, string>;
  readonly #running = new Map<string, Child>();
  #log = LOG;
  /** What the last command has printed. */
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

  /** In an empty folder, with the package as npm packs it. */
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
   * Does what a section says, up to its end.
   * @returns what stands there that is printed, and what was printed
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
        await this.#type(block.text.trim(), word);
      } else if (block.language === 'text' && word !== '') {
        written.push(named(block.text));
        printed.push(await this.#printedLike(named(block.text), word));
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

  async #type(text: string, name: string): Promise<void> {
    const command = text
      .replaceAll(`localhost:${PORT}`, `localhost:${this.port}`)
      .replaceAll('redis://localhost:6379', this.redisUrl)
      .replaceAll(LOG, this.#log)
      .replaceAll(/^npm install .*$/gm, (line) => this.#pinned(line));
    if (name !== '') {
      await this.startAs(name, command);
      return;
    }
    const cwd = text.startsWith('mkdir') ? this.directory : this.folder;
    const { stdout } = await run('bash', ['-e', '-c', command], { cwd });
    this.printed = stdout;
    this.#log = /"id":"([^.]+)\./.exec(stdout)?.[1] ?? this.#log;
  }

  /** Starts it in a terminal of this name, after what runs there has been stopped with Ctrl+C. */
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
    if (name === 'reader') await until('the stream', () => child.output !== '');
    else await until('the server', () => this.#answers(child));
  }

  async #answers(child: Child): Promise<boolean> {
    if (!child.isRunning) throw new Error(`the server has ended: ${child.output}`);
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

  /** What is printed in this terminal, as soon as it is what is wanted or no longer likely to become so. */
  async #printedLike(wanted: string, name: string): Promise<string> {
    const printed = () => named(this.#running.get(name)?.output ?? this.printed);
    await until('what stands in the guide', () => printed() === wanted, 3_000).catch(() => {});
    return printed();
  }

  #pinned(command: string): string {
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

/** With one name for every log. */
function named(text: string): string {
  return text.trim().replaceAll(ANY_LOG, LOG);
}
