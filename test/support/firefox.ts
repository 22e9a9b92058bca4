/** A real Firefox, as Mozilla and Debian build it. */
import { existsSync } from 'node:fs';
import { firefox, type Browser, type LaunchOptions } from 'playwright-core';

const PATHS = ['/usr/bin/firefox-esr', '/usr/bin/firefox'];

/**
 * Starts a headless Firefox that ends when disposed of. The channel `moz-firefox` is driven by
 * WebDriver BiDi, so it needs no patched build.
 * @example await using browser = await launchFirefox();
 * @throws {Error} if there is no Firefox: a test that needs a browser fails without one
 */
export async function launchFirefox(options: LaunchOptions = {}): Promise<Browser> {
  return firefox.launch({ channel: 'moz-firefox', executablePath: findFirefox(), ...options });
}

/** The path of Firefox. @throws {Error} if there is none */
export function findFirefox(): string {
  const { FIREFOX_PATH: chosen } = process.env;
  const path = chosen || PATHS.find((candidate) => existsSync(candidate));
  if (path !== undefined && existsSync(path)) return path;
  throw new Error(
    `these tests need Firefox: apt-get install firefox-esr, or set FIREFOX_PATH (looked for ${path ?? PATHS.join(', ')})`,
  );
}
