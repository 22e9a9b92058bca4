/** A real browser. */
import { existsSync } from 'node:fs';
import { chromium, type Browser, type LaunchOptions } from 'playwright-core';

const PATHS = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

// No requests to its vendor, and no features that a container does not have.
const ARGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/**
 * Starts a headless Chromium that ends when disposed of.
 * @example await using browser = await launchChromium();
 * @throws {Error} if there is no Chromium: a test that needs a browser fails without one
 */
export async function launchChromium(options: LaunchOptions = {}): Promise<Browser> {
  return chromium.launch({ executablePath: findChromium(), args: ARGS, ...options });
}

function findChromium(): string {
  const { CHROMIUM_PATH: chosen } = process.env;
  const path = [chosen, ...PATHS].find(
    (candidate) => candidate !== undefined && existsSync(candidate),
  );
  if (chosen && path !== chosen) {
    throw new Error(`there is no Chromium at CHROMIUM_PATH, which is ${chosen}`);
  }
  if (path === undefined) {
    throw new Error(
      `these tests need Chromium: apt-get install chromium, or set CHROMIUM_PATH (looked for ${PATHS.join(', ')})`,
    );
  }
  return path;
}
