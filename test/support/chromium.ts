/** A real browser. */
import { existsSync } from 'node:fs';
import { chromium, type Browser, type LaunchOptions, type Page } from 'playwright-core';

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

/** Freezes a hidden page, or lets it go on, as the browser does to save energy. */
export async function setFrozen(page: Page, isFrozen: boolean): Promise<void> {
  await endFocusEmulation(page);
  const session = await page.context().newCDPSession(page);
  await session.send('Page.setWebLifecycleState', { state: isFrozen ? 'frozen' : 'active' });
  await session.detach();
}

/**
 * Playwright shows all pages as visible, and Chromium does not freeze a visible page. Only the
 * session that emulates the focus can end this, and Playwright does not offer it.
 */
async function endFocusEmulation(page: Page): Promise<void> {
  const { _connection: connection } = page as unknown as PrivatePage;
  const { _mainFrameSession: session } = connection.toImpl(page).delegate;
  const { _client: client } = session;
  await client.send('Emulation.setFocusEmulationEnabled', { enabled: false });
}

interface PrivatePage {
  readonly _connection: {
    toImpl(page: Page): { readonly delegate: { readonly _mainFrameSession: PrivateSession } };
  };
}

interface PrivateSession {
  readonly _client: { send(method: string, parameters: object): Promise<unknown> };
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
