/**
 * A parser of event streams, as a client reads them.
 *
 * Specification: WHATWG HTML, 9.2.5 "Parsing an event stream" and 9.2.6 "Interpreting an event
 * stream". The parser shares no code with the server, so that a mistake of the server cannot hide
 * here. The package `eventsource-parser` is not used, because it does not report the id of a block
 * without data, which changes the last event ID, and holds back an event that ends with a CR until
 * the next character.
 */

/** An event as a client receives it. */
export interface ReceivedEvent {
  /** Event type, `'message'` if the server sent none. */
  event: string;
  /** The data, with LF between its lines. */
  data: string;
  /** The id. The property is missing if the event had no id. */
  id?: string;
}

/** The callbacks of a parser. */
export interface ParserListener {
  onEvent(event: ReceivedEvent): void;
  /** @param id the id of a block without data, which is no event */
  onId?(id: string): void;
  /** @param text one comment line, without the colon and one space after the colon */
  onComment(text: string): void;
  /** @param ms reconnection time in ms */
  onRetry(ms: number): void;
}

const LINE_END = /\r\n|\r|\n/;

/**
 * Parses text that arrives in pieces of any size:
 *
 * ```text
 *   pieces  "da" "ta: a\r" "\nid: 1\n\n"     the LF of the last piece belongs to the CR before
 *   lines   "data: a"  "id: 1"  ""           an empty line ends a block
 *   event   { event: 'message', data: 'a', id: '1' }
 * ```
 *
 * An event is reported at the end of its last line. If a piece ends with a CR, the line ends there,
 * because the next piece may come much later.
 */
export class EventStreamParser {
  readonly #listener: ParserListener;
  #isFirstPiece = true;
  #endedWithCr = false;
  // The start of a line whose end has not arrived.
  #partialLine = '';
  // The fields of the current block.
  #dataLines: string[] = [];
  #event = '';
  #id: string | undefined;
  /** The value that a client would send as `Last-Event-ID`. */
  lastEventId: string;

  /**
   * @param listener called synchronously by `feed()`
   * @param lastEventId the id that the client has sent with its request
   */
  constructor(listener: ParserListener, lastEventId = '') {
    this.#listener = listener;
    this.lastEventId = lastEventId;
  }

  /** Parses the next piece of the text. */
  feed(text: string): void {
    if (text === '') return;
    // Ignored: one byte order mark at the start, and the LF of a CRLF that was cut in two.
    const isIgnored =
      (this.#isFirstPiece && text.startsWith('\uFEFF')) ||
      (this.#endedWithCr && text.startsWith('\n'));
    const lines = (isIgnored ? text.slice(1) : text).split(LINE_END);
    this.#isFirstPiece = false;
    this.#endedWithCr = text.endsWith('\r');
    lines[0] = this.#partialLine + lines[0];
    this.#partialLine = lines.pop() ?? '';
    for (const line of lines) this.#interpretLine(line);
  }

  #interpretLine(line: string): void {
    if (line === '') {
      this.#endBlock();
      return;
    }
    const colon = line.indexOf(':');
    const name = colon === -1 ? line : line.slice(0, colon);
    const rest = colon === -1 ? '' : line.slice(colon + 1);
    const value = rest.startsWith(' ') ? rest.slice(1) : rest;
    if (name === '') this.#listener.onComment(value);
    else if (name === 'data') this.#dataLines.push(value);
    else if (name === 'event') this.#event = value;
    // The specification ignores ids with a NUL.
    else if (name === 'id' && !value.includes('\0')) this.#id = value;
    else if (name === 'retry' && /^[0-9]+$/.test(value)) this.#listener.onRetry(Number(value));
  }

  /** Reports the event of the block. A block without data is no event, but its id counts. */
  #endBlock(): void {
    const [dataLines, event, id] = [this.#dataLines, this.#event, this.#id];
    this.#dataLines = [];
    this.#event = '';
    this.#id = undefined;
    if (id !== undefined) this.lastEventId = id;
    if (dataLines.length > 0) {
      this.#listener.onEvent({
        event: event || 'message',
        data: dataLines.join('\n'),
        ...(id !== undefined && { id }),
      });
    } else if (id !== undefined) this.#listener.onId?.(id);
  }
}
