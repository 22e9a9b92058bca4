/** What the machine gives: a C compiler, two CPUs to keep server and client apart, and the kernel's accounts of a process. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';

/**
 * Compiles the load client. It is in C because one in Node would need more CPU than the servers.
 * @returns {string} its path in a directory that is removed when this process ends
 */
export function compileClient() {
  if (process.platform !== 'linux') {
    throw new Error('The benchmark needs Linux: it reads CPU time and memory from /proc.');
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
      'The benchmark needs a C compiler as `cc`; on Debian or Ubuntu: apt-get install gcc libc6-dev',
    );
  }
  if (status !== 0) throw new Error('cc could not compile client.c');
  return out;
}

/** The CPU for the server and the one for the client; `undefined` where there are no two, or no `taskset`. */
export function twoCpus() {
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

/** CPU time of all threads of a process in µs, and which part of it was the process's own code by the kernel's coarser ticks. */
export function cpuTime(pid) {
  let ns = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`)) ns += threadTime(pid, thread);
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // Behind the name, which may hold anything: the state, then 10 fields, then the ticks.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { us: ns / 1e3, userTicks: Number(fields[11]), systemTicks: Number(fields[12]) };
}

function threadTime(pid, thread) {
  try {
    return Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]);
  } catch {
    // It has ended since the directory was read.
    return 0;
  }
}

/** @returns what was used between two calls of {@link cpuTime} */
export function cpuBetween(before, after) {
  const user = after.userTicks - before.userTicks;
  const system = after.systemTicks - before.systemTicks;
  const us = after.us - before.us;
  return { us, userUs: user + system === 0 ? 0 : (us * user) / (user + system) };
}

/** Bytes of memory that a process really occupies. */
export function residentBytes(pid) {
  const [, kilobytes] =
    /^Rss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')) ?? [];
  return Number(kilobytes) * 1024;
}
