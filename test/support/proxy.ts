/** The proxies of docs/proxies.md, started with the configurations of that page. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { start, type Child } from './child.ts';
import { freePort } from './redis-server.ts';
import { until } from './wait.ts';

export interface Proxy extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  /** The certificate of the proxy, in PEM, if it uses TLS. */
  readonly ca: string | undefined;
}

export interface ProxyOptions {
  /** The port of the application behind the proxy. */
  app: number;
  /** Idle timeouts in whole seconds that replace those of the configuration. */
  idle?: number;
  /** Further directives for all servers of nginx. */
  more?: string;
}

const DOCUMENT = new URL('../../docs/proxies.md', import.meta.url);

/**
 * @returns a configuration of docs/proxies.md: the code block whose first line is, for example,
 * "```nginx gzip"
 * @throws {Error} if there is no configuration of this name
 */
export function documented(program: 'nginx' | 'haproxy' | 'http', name: string): string {
  const block = new RegExp(`^\`\`\`${program} ${name}\\n([^]*?)^\`\`\`$`, 'm').exec(
    readFileSync(DOCUMENT, 'utf8'),
  )?.[1];
  if (block === undefined) {
    throw new Error(`docs/proxies.md has no configuration of ${program} called ${name}`);
  }
  return block;
}

/**
 * Starts a documented nginx on a free port; resolves when it accepts connections.
 * @example await using proxy = await startNginx('default', { app: server.port });
 */
export async function startNginx(name: string, options: ProxyOptions): Promise<Proxy> {
  return launch('nginx', documented('nginx', name), options, (dir, servers) => {
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
      (kind) => `${kind}_temp_path "${dir}/${kind}";`,
    );
    // A single process, so that no worker remains after its end.
    const file = `daemon off; master_process off; pid "${dir}/pid"; error_log stderr;
events {}
http {
access_log off;
${temporary.join('\n')}
${options.idle === undefined ? '' : `proxy_read_timeout ${options.idle}s;`}
${options.more ?? ''}
${servers}}
`;
    writeFileSync(join(dir, 'nginx.conf'), file);
    const args = ['-p', dir, '-e', 'stderr', '-c', join(dir, 'nginx.conf')];
    return { command: onSystemPath('nginx'), args, check: ['-t', ...args] };
  });
}

/** The same for HAProxy. */
export async function startHaproxy(name: string, options: ProxyOptions): Promise<Proxy> {
  return launch('haproxy', documented('haproxy', name), options, (dir, sections) => {
    const file =
      options.idle === undefined
        ? sections
        : sections.replaceAll(/(timeout (?:client|server)) +\S+/g, `$1 ${options.idle}s`);
    writeFileSync(join(dir, 'haproxy.cfg'), file.replaceAll('/etc/haproxy/', `${dir}/`));
    if (file.includes('again.http')) {
      writeFileSync(join(dir, 'again.http'), documented('http', 'again'));
    }
    const args = ['-f', join(dir, 'haproxy.cfg')];
    return { command: onSystemPath('haproxy'), args: ['-db', ...args], check: ['-c', ...args] };
  });
}

async function launch(
  program: string,
  block: string,
  { app }: ProxyOptions,
  prepare: (dir: string, block: string) => { command: string; args: string[]; check: string[] },
): Promise<Proxy> {
  const dir = mkdtempSync(join(tmpdir(), `res-sse-${program}-`));
  let child: Child | undefined;
  async function dispose(): Promise<void> {
    await child?.[Symbol.asyncDispose]();
    rmSync(dir, { recursive: true, force: true });
  }
  try {
    const isTls = block.includes('443');
    if (isTls) makeCertificate(dir);
    const port = await freePort();
    const { command, args, check } = prepare(dir, placed(block, port, app, dir));
    // Throws with the output of the program if the configuration is invalid.
    execFileSync(command, check, { stdio: 'pipe' });
    const launched = start(command, args);
    child = launched;
    await until(`${program} on port ${port}`, () => {
      if (!launched.isRunning) throw new Error(`${program} has ended: ${launched.output}`);
      return accepts(port);
    });
    const ca = isTls ? readFileSync(join(dir, 'example.crt'), 'utf8') : undefined;
    return {
      url: `${isTls ? 'https' : 'http'}://localhost:${port}`,
      port,
      ca,
      [Symbol.asyncDispose]: dispose,
    };
  } catch (error) {
    await dispose();
    throw error;
  }
}

/** @returns the configuration with the ports and files of this machine, and no other changes */
function placed(block: string, port: number, app: number, dir: string): string {
  return block
    .replace(
      /(listen|bind) (?:\*?:)?(?:80|443)\b/,
      (_, word: string) => `${word} 127.0.0.1:${port}`,
    )
    .replaceAll('127.0.0.1:4444', `127.0.0.1:${app}`)
    .replaceAll('/etc/ssl/', `${dir}/`);
}

function makeCertificate(dir: string): void {
  const subject = [
    '-subj',
    '/CN=localhost',
    '-addext',
    'subjectAltName=DNS:localhost',
    '-days',
    '2',
  ];
  const key = [
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:prime256v1',
    '-nodes',
    '-keyout',
    'example.key',
  ];
  execFileSync('openssl', ['req', '-x509', ...key, '-out', 'example.crt', ...subject], {
    cwd: dir,
    stdio: 'pipe',
  });
  // HAProxy needs both in one file.
  const both = ['example.crt', 'example.key'].map((name) => readFileSync(join(dir, name), 'utf8'));
  writeFileSync(join(dir, 'example.pem'), both.join(''));
}

async function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

/** On Debian, servers are in a folder that is only in the PATH of root. */
function onSystemPath(command: string): string {
  try {
    return execFileSync('which', [command], { encoding: 'utf8' }).trim();
  } catch {
    return join('/usr/sbin', command);
  }
}
