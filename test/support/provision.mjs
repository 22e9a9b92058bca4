/** Brings what the tests need and a new machine lacks. Runs before every `npm test`, so it is quick where all is there. */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';

// What a test starts, the Debian package that has it, and where to look; `env` names a variable that points elsewhere.
const TOOLS = [
  {
    name: 'Chromium',
    debian: 'chromium',
    env: 'CHROMIUM_PATH',
    paths: ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'],
  },
  { name: 'curl', debian: 'curl', paths: onPath('curl') },
  { name: 'Redis', debian: 'redis-server', paths: onPath('redis-server') },
  { name: 'OpenSSL', debian: 'openssl', paths: onPath('openssl') },
  { name: 'iproute2', debian: 'iproute2', paths: onSystemPath('ip') },
  { name: 'nginx', debian: 'nginx-light', paths: onSystemPath('nginx') },
  { name: 'HAProxy', debian: 'haproxy', paths: onSystemPath('haproxy') },
];

for (const { name, env } of TOOLS) {
  const chosen = env === undefined ? undefined : process.env[env];
  if (chosen && !isExecutable(chosen)) fail(`There is no ${name} at ${env}, which is ${chosen}.`);
}
const missing = TOOLS.filter((tool) => !isThere(tool));
if (missing.length > 0) bring(missing);

function bring(tools) {
  const packages = tools.map((tool) => tool.debian);
  const wanted = `The tests need ${tools.map((tool) => tool.name).join(' and ')}`;
  if (!existsSync('/usr/bin/apt-get') || process.getuid?.() !== 0) {
    fail(
      `${wanted}. On Debian or Ubuntu: sudo apt-get install ${packages.join(' ')}. ${variables(tools)}`,
    );
  }
  console.log(`${wanted}; installing ${packages.join(', ')} from the distribution's packages.`);
  apt('update');
  apt('install', '--yes', '--no-install-recommends', ...packages);
  // Ubuntu's chromium is a stub that points to a snap, which is no use in a container.
  const still = tools.filter((tool) => !isThere(tool)).map((tool) => tool.name);
  if (still.length > 0) {
    fail(`${still.join(' and ')} cannot be started after the installation. ${variables(tools)}`);
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

/** Where else a tool may be, in words. */
function variables(tools) {
  return tools
    .filter((tool) => tool.env !== undefined)
    .map((tool) => `A ${tool.name} that is elsewhere is found by ${tool.env}.`)
    .join(' ');
}

function isThere({ env, paths }) {
  return (env !== undefined && Boolean(process.env[env])) || paths.some(isExecutable);
}

function onPath(command) {
  return (process.env.PATH ?? '').split(delimiter).map((directory) => join(directory, command));
}

/** Debian keeps servers where only root's PATH looks. */
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
