/** The port of the demo, and the error messages for a port that cannot be used. */

const DEFAULT_PORT = 4444;

/**
 * Reads the port from the environment variable `PORT`. If `PORT` is not a port, prints an error and
 * ends the process with exit code 1.
 * @returns the port, 4444 by default
 */
export function readPort(): number {
  const { PORT } = process.env;
  const port = Number(PORT || DEFAULT_PORT);
  if (!Number.isInteger(port) || port < 0 || port > 65_535) {
    console.error(
      `PORT is ${JSON.stringify(PORT)}, which is not a port; set it to a number from 0 to 65535.`,
    );
    process.exit(1);
  }
  return port;
}

/**
 * Prints why the port cannot be listened on. The process ends with exit code 1 when nothing else
 * keeps it alive.
 * @param port the port
 * @param error the error of `listen()`
 */
export function explainPort(port: number, { code, message }: NodeJS.ErrnoException): void {
  const reasons: Record<string, string> = {
    EADDRINUSE: `Port ${port} is already in use`,
    EACCES: `This user may not listen on port ${port}`,
  };
  console.error(`${reasons[code ?? ''] ?? message}; set PORT to another port.`);
  process.exitCode = 1;
}
