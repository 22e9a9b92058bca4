/** The port of the demo, and what is said where it cannot be had. */

/** @returns `PORT`, or 4444; ends the process with a sentence and exit code 1 if `PORT` is no port */
export function portFromEnvironment(): number {
  const { PORT } = process.env;
  const port = Number(PORT || 4444);
  if (!Number.isInteger(port) || port < 0 || port > 65_535) {
    console.error(
      `PORT is ${JSON.stringify(PORT)}, which is not a port; set it to a number from 0 to 65535.`,
    );
    process.exit(1);
  }
  return port;
}

/** Says why the port cannot be listened on. The process ends with exit code 1 as soon as nothing else keeps it. */
export function explainPort(port: number, { code, message }: NodeJS.ErrnoException): void {
  const reasons: Record<string, string> = {
    EADDRINUSE: `Port ${port} is taken`,
    EACCES: `This user may not listen on port ${port}`,
  };
  console.error(`${reasons[code ?? ''] ?? message}; set PORT to another one.`);
  process.exitCode = 1;
}
