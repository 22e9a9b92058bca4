/**
 * Installs what the tests need beside the packages of the root. Runs before every `npm test`, so it
 * is quick where everything is installed. With `--packages` it installs the npm packages only, which
 * the type checker and the linter need as well.
 */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync, lstatSync, statSync, symlinkSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

// The programs that tests start, the Debian package of each, and the paths where it may be. `env`
// names a variable with another path.
const TOOLS = [
  {
    name: 'Chromium',
    debian: 'chromium',
    env: 'CHROMIUM_PATH',
    paths: ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'],
  },
  {
    name: 'Firefox',
    debian: 'firefox-esr',
    env: 'FIREFOX_PATH',
    paths: ['/usr/bin/firefox-esr', '/usr/bin/firefox'],
  },
  { name: 'curl', debian: 'curl', paths: onPath('curl') },
  { name: 'Redis', debian: 'redis-server', paths: onPath('redis-server') },
  { name: 'OpenSSL', debian: 'openssl', paths: onPath('openssl') },
  { name: 'iproute2', debian: 'iproute2', paths: onSystemPath('ip') },
  { name: 'nginx', debian: 'nginx-light', paths: onSystemPath('nginx') },
  { name: 'HAProxy', debian: 'haproxy', paths: onSystemPath('haproxy') },
];

// Folders with a package.json and a lock file of their own, so that `npm install` in the root
// installs only what building and unit tests need.
const FOLDERS = ['test/apps', 'examples/frameworks'];

const root = fileURLToPath(new URL('../..', import.meta.url));
const tools = process.argv.includes('--packages') ? [] : missingTools();
const folders = FOLDERS.filter((folder) => !isInstalled(folder));

announce();
if (tools.length > 0) installTools();
for (const folder of folders) installPackages(folder);
linkPackages();

/** Says in one line what will be installed, or fails if it cannot be installed here. */
function announce() {
  if (tools.length === 0 && folders.length === 0) return;
  if (tools.length > 0 && (!existsSync('/usr/bin/apt-get') || process.getuid?.() !== 0)) {
    fail(
      `The tests need ${listOf(tools.map(({ name }) => name))}. On Debian or Ubuntu: sudo apt-get ` +
        `install ${debianPackages(tools)}. Elsewhere: put the programs into a folder of PATH.` +
        `${variables(tools)}\nWithout them you can run: npm run test:unit`,
    );
  }
  const parts = [
    ...(tools.length === 0 ? [] : [`${debianPackages(tools)} (apt-get)`]),
    ...(folders.length === 0 ? [] : [`the npm packages of ${listOf(folders)}`]),
  ];
  console.log(`Installing what the tests need: ${parts.join('; ')}.`);
}

function missingTools() {
  for (const { name, env } of TOOLS) {
    const chosen = env === undefined ? undefined : process.env[env];
    if (chosen && !isExecutable(chosen)) fail(`There is no ${name} at ${env}, which is ${chosen}.`);
  }
  return TOOLS.filter((tool) => !isThere(tool));
}

function installTools() {
  apt('update');
  apt('install', '--yes', '--no-install-recommends', ...tools.map(({ debian }) => debian));
  // Ubuntu's chromium is a stub that points to a snap, which is no use in a container.
  const still = tools.filter((tool) => !isThere(tool));
  if (still.length > 0) {
    fail(
      `${listOf(still.map(({ name }) => name))} cannot be started after the installation.${variables(still)}`,
    );
  }
}

function apt(...args) {
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const { status } = spawnSync('apt-get', ['-qq', ...args], {
    env,
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  if (status !== 0) fail(`apt-get ${args.join(' ')} has failed.`);
}

/** The words with commas and an "and" between them. */
function listOf(words) {
  return new Intl.ListFormat('en').format(words);
}

function debianPackages(list) {
  return list.map(({ debian }) => debian).join(' ');
}

/** Describes the variables that name another path of a tool. */
function variables(list) {
  return list
    .filter(({ env }) => env !== undefined)
    .map(({ name, env }) => ` ${env} may name a ${name} elsewhere.`)
    .join('');
}

/** Whether the packages of a folder are installed as its lock file has them. */
function isInstalled(folder) {
  // npm writes this file last.
  const installed = join(root, folder, 'node_modules/.package-lock.json');
  const locked = join(root, folder, 'package-lock.json');
  return existsSync(installed) && statSync(installed).mtimeMs >= statSync(locked).mtimeMs;
}

function installPackages(folder) {
  // `npm ci` would empty the folder to which the link points: that of another checkout.
  const installed = join(root, folder, 'node_modules');
  if (lstatSync(installed, { throwIfNoEntry: false })?.isSymbolicLink() === true) {
    fail(`${installed} is a link. Remove it, and start again.`);
  }
  const args = ['ci', '--silent', '--prefix', join(root, folder)];
  const { status } = spawnSync('npm', args, { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] });
  if (status !== 0) fail(`npm ${args.join(' ')} has failed.`);
}

/** Makes the packages of test/apps visible to Node for all files below test. */
function linkPackages() {
  const link = join(root, 'test/node_modules');
  if (lstatSync(link, { throwIfNoEntry: false }) === undefined) {
    symlinkSync('apps/node_modules', link);
  }
}

function isThere({ env, paths }) {
  return (env !== undefined && Boolean(process.env[env])) || paths.some(isExecutable);
}

function onPath(command) {
  return (process.env.PATH ?? '').split(delimiter).map((directory) => join(directory, command));
}

/** Debian installs servers in a folder that only root's PATH has. */
function onSystemPath(command) {
  return [...onPath(command), join('/usr/sbin', command)];
}

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

function fail(message) {
  console.error(message.trim());
  process.exit(1);
}
