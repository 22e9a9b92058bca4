/** The processes of a browser, which Linux lists in `/proc`. */
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Browser, Page } from 'playwright-core';
import { findFirefox, launchFirefox } from '../../support/firefox.ts';

interface ProcessInfo {
  readonly parent: number;
  readonly name: string;
  /** The processor time in ticks. */
  readonly time: number;
}

// The names of processes of pages, cut to 15 characters.
const NAMES = /^(?:chrom|Isolated Web)/;

/** A Firefox in which each tab has a process, and that goes on if one of the processes dies. */
export async function launchFirefoxWithProcesses(): Promise<Browser> {
  const directory = await mkdtemp(join(tmpdir(), 'firefox-'));
  const executablePath = join(directory, 'firefox');
  // Playwright sets the variable. With it, Firefox ends with the first process that dies.
  const script = `#!/bin/sh\nunset MOZ_CRASHREPORTER_SHUTDOWN\nexec '${findFirefox()}' "$@"\n`;
  await writeFile(executablePath, script, { mode: 0o755 });
  const firefoxUserPrefs = { 'dom.ipc.processCount.webIsolated': 8 };
  try {
    return await launchFirefox({ executablePath, firefoxUserPrefs });
  } finally {
    await rm(directory, { recursive: true });
  }
}

/** The process of a page, found by the processor time that it uses. */
export async function processOf(page: Page): Promise<number> {
  const before = readProcesses();
  await page.evaluate('{ const end = Date.now() + 1_000; while (Date.now() < end); }');
  const after = readProcesses();
  const [most] = [...after]
    .filter(([pid, { name }]) => NAMES.test(name) && isOwn(pid, after))
    .map(([pid, { time }]) => ({ pid, used: time - (before.get(pid)?.time ?? 0) }))
    .toSorted((a, b) => b.used - a.used);
  if (most === undefined) throw new Error('there is no process of a page');
  return most.pid;
}

function readProcesses(): Map<number, ProcessInfo> {
  const processes = new Map<number, ProcessInfo>();
  for (const pid of readdirSync('/proc').map(Number)) {
    if (!Number.isInteger(pid)) continue;
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const name = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'));
      // From the state on, see proc(5).
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      processes.set(pid, { parent: Number(fields[1]), name, time: Number(fields[11]) });
    } catch {
      // The process has ended.
    }
  }
  return processes;
}

/** Whether this process has started the process, directly or not. */
function isOwn(pid: number, processes: Map<number, ProcessInfo>): boolean {
  for (let each: number | undefined = pid; each; each = processes.get(each)?.parent) {
    if (each === process.pid) return true;
  }
  return false;
}
