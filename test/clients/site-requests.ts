/** The requests of a page that follows `/listen`, and a time in which it would have sent more. */
import type { Page } from 'playwright-core';
import type { StreamServer } from '../support/app.ts';
import { until } from '../support/wait.ts';

/** A request to `/listen`: the client's last event id, and the status of the answer. */
export interface ListenRequest {
  readonly lastEventId: string | undefined;
  status?: number;
}

/** Records the requests to `/listen` from now on. */
export function recordRequests({ server }: StreamServer): ListenRequest[] {
  const requests: ListenRequest[] = [];
  server.prependListener('request', (req, res) => {
    if (req.url?.startsWith('/listen') !== true) return;
    const lastEventId = req.headers['last-event-id'] as string | undefined;
    const request: ListenRequest = { lastEventId };
    requests.push(request);
    res.on('finish', () => (request.status = res.statusCode));
  });
  return requests;
}

/** Waits until another stream of the page has reconnected this number of times. */
export async function untilOthersHaveReconnected(
  { page, server }: { page: Page; server: StreamServer },
  count: number,
): Promise<void> {
  const before = server.streams.length;
  await page.evaluate(`window.other = new EventSource('/')`);
  await until(
    `${count} reconnects of another stream`,
    () => server.streams.length > before + count,
  );
  await page.evaluate('other.close()');
}
