/** Access to the machine: the C compiler, the CPUs, and CPU time and memory of a process. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';

/**
 * Compiles the load client. The client is written in C, because a client in Node would need more
 * CPU time than the servers that are measured.
 * @returns {string} the path of the program, in a directory that is removed at exit
 */
export function compileClient() {
  if (process.platform !== 'linux') {
    throw new Error('the benchmark needs Linux, because it reads /proc');
  }
  const directory = mkdtempSync(join(tmpdir(), 'res-sse-bench-'));
  process.on('exit', () => rmSync(directory, { recursive: true, force: true }));
  const out = join(directory, 'client');
  const { error, status } = spawnSync(
    'cc',
    ['-O2', '-o', out, join(import.meta.dirname, 'client.c')],
    { stdio: 'inherit' },
  );
  if (error !== undefined) {
    throw new Error(
      'the benchmark needs a C compiler as `cc`; on Debian: apt-get install gcc libc6-dev',
    );
  }
  if (status !== 0) throw new Error('cc failed to compile client.c');
  return out;
}

/**
 * Chooses one CPU for the server and another one for the client.
 * @returns {{ server: number, client: number } | undefined} `undefined` if this process may use
 * only one CPU, or if `taskset` is not installed
 */
export function chooseCpus() {
  if (spawnSync('taskset', ['--version']).status !== 0) return undefined;
  const [, allowed] = /^Cpus_allowed_list:\s*(\S+)$/m.exec(
    readFileSync('/proc/self/status', 'utf8'),
  ) ?? ['', ''];
  const cpus = allowed.split(',').flatMap((range) => {
    const [first, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (unused, at) => first + at);
  });
  return cpus.length < 2 ? undefined : { server: cpus[0], client: cpus[1] };
}

/**
 * Reads the CPU time of all threads of a process.
 * @returns the time in µs, and the user and system ticks, which are coarser (10 ms)
 */
export function cpuTime(pid) {
  let ns = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`)) ns += threadTime(pid, thread);
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // The fields follow the name in parentheses, which may contain any character: the state, 10 other
  // fields, then the ticks.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { us: ns / 1e3, userTicks: Number(fields[11]), systemTicks: Number(fields[12]) };
}

/** @returns the CPU time of one thread in ns */
function threadTime(pid, thread) {
  try {
    return Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]);
  } catch {
    // The thread has ended since the directory was read.
    return 0;
  }
}

/** @returns CPU time in µs between two calls of {@link cpuTime}, and the user part of it */
export function cpuBetween(before, after) {
  const user = after.userTicks - before.userTicks;
  const system = after.systemTicks - before.systemTicks;
  const us = after.us - before.us;
  return { us, userUs: user + system === 0 ? 0 : (us * user) / (user + system) };
}

/** @returns the resident memory of a process in bytes */
export function residentBytes(pid) {
  const [, kilobytes] =
    /^Rss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')) ?? [];
  return Number(kilobytes) * 1024;
}
