/// <reference lib="dom" />
/** Types of events in a page with the types of the browser. Compiled, not executed. */
import type { TypedEventSource } from '../../src/index.ts';

interface Schema {
  haiku: { text: { text: string; author?: string } };
  news: { message: string };
}

const source = new EventSource('/listen') as TypedEventSource<Schema, 'haiku'>;
source.addEventListener('text', ({ data, lastEventId }) => {
  localStorage.setItem(lastEventId, data);
});
source.addEventListener('error', () => {
  if (source.readyState === source.CLOSED) location.reload();
});
source.addEventListener('open', () => document.body.classList.add('open'));
// @ts-expect-error -- no such event
source.addEventListener('txet', () => {});

const news = new EventSource('/news', { withCredentials: true }) as TypedEventSource<
  Schema,
  'news'
>;
news.addEventListener('message', ({ data }) => document.body.append(data));
