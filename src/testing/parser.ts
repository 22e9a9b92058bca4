/**
 * Text in, events out: the client's side of the event stream format, and nothing of the server's that writes it.
 * WHATWG HTML, 9.2.5 "Parsing an event stream" and 9.2.6 "Interpreting an event stream".
 */

/** An event as a client receives it. */
export interface ReceivedEvent {
  /** Event type, `'message'` where the server named none. */
  event: string;
  data: string;
  /** Its id; not there where the event brought none. */
  id?: string;
}

/** What a parser tells. */
export interface ParserListener {
  event(event: ReceivedEvent): void;
  /** One line of it, without the colon and the space behind it. */
  comment(text: string): void;
  /** Reconnection time in ms. */
  retry(ms: number): void;
}

const LINE_END = /\r\n|\r|\n/;

/** Takes text in pieces of any size. An event is told with the line that ends it, a CR at the end of a piece included. */
export class EventStreamParser {
  readonly #listener: ParserListener;
  #isFirst = true;
  #endedWithCr = false;
  // The beginning of a line that has not ended yet.
  #line = '';
  #data: string[] = [];
  #event = '';
  #id: string | undefined;
  /** What a client would send as `Last-Event-ID`. */
  lastEventId: string;

  constructor(listener: ParserListener, lastEventId = '') {
    this.#listener = listener;
    this.lastEventId = lastEventId;
  }

  feed(text: string): void {
    if (text === '') return;
    // One leading BOM is nothing, nor is a LF behind a CR that ended the last piece.
    const isSkipped =
      (this.#isFirst && text.startsWith('\uFEFF')) || (this.#endedWithCr && text.startsWith('\n'));
    const lines = (isSkipped ? text.slice(1) : text).split(LINE_END);
    this.#isFirst = false;
    this.#endedWithCr = text.endsWith('\r');
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop() ?? '';
    for (const line of lines) this.#interpret(line);
  }

  #interpret(line: string): void {
    if (line === '') {
      this.#dispatch();
      return;
    }
    const colon = line.indexOf(':');
    const name = colon === -1 ? line : line.slice(0, colon);
    const rest = colon === -1 ? '' : line.slice(colon + 1);
    const value = rest.startsWith(' ') ? rest.slice(1) : rest;
    if (name === '') this.#listener.comment(value);
    else if (name === 'data') this.#data.push(value);
    else if (name === 'event') this.#event = value;
    else if (name === 'id' && !value.includes('\0')) this.#id = value;
    else if (name === 'retry' && /^[0-9]+$/.test(value)) this.#listener.retry(Number(value));
  }

  #dispatch(): void {
    const [data, event, id] = [this.#data, this.#event, this.#id];
    this.#data = [];
    this.#event = '';
    this.#id = undefined;
    if (id !== undefined) this.lastEventId = id;
    if (data.length === 0) return;
    this.#listener.event({
      event: event || 'message',
      data: data.join('\n'),
      ...(id !== undefined && { id }),
    });
  }
}
