/** A client that behaves like an EventSource: it reconnects to any node, with its last id. */
import http from 'node:http';
import { createParser } from 'eventsource-parser';

/** One client of the soak. */
export class Client {
  channels;
  lastEventId = '';
  /** Time of the last successful connection; `undefined` while not connected. */
  connectedAt;
  node;
  isPaused = false;
  #account;
  #choose;
  #spoil;
  #request;
  #response;
  #timer;
  #isGone = false;

  /**
   * @param {string} name name in the report
   * @param {readonly string[]} channels
   * @param {object} options
   * @param {import('./checker.mjs').Checker} options.checker
   * @param {() => import('./nodes.mjs').SoakNode} options.choose returns a running node
   * @param {import('./spoil.mjs').Spoil} [options.spoil] changes the record of this client
   */
  constructor(name, channels, { checker, choose, spoil }) {
    this.name = name;
    this.channels = channels;
    this.#account = checker.createAccount(name, channels);
    this.#choose = choose;
    this.#spoil = spoil;
    this.connect();
  }

  /** Connects, unless the client is connected or has left. */
  connect() {
    if (this.#isGone || this.#request !== undefined) return;
    clearTimeout(this.#timer);
    this.node = this.#choose();
    const headers = {
      Accept: 'text/event-stream',
      ...(this.lastEventId !== '' && { 'Last-Event-ID': this.lastEventId }),
    };
    const url = `http://127.0.0.1:${this.node.port}/listen/${this.channels.join()}`;
    const request = http.get(url, { headers, agent: false });
    this.#request = request;
    // Ignored, because an 'error' is followed by a 'close'.
    request.on('error', () => {});
    request.on('close', () => this.#onClose(request));
    request.on('response', (response) => this.#onResponse(response));
  }

  /** Breaks the connection. @param {number} [ms] time in ms until the client reconnects */
  drop(ms) {
    this.#request?.destroy();
    this.#reconnectIn(ms);
  }

  /** Breaks the connection for good. */
  leave() {
    this.#isGone = true;
    this.#request?.destroy();
    clearTimeout(this.#timer);
    this.#account.isClosed = true;
  }

  /** Stops reading for some time. @param {number} ms */
  pause(ms) {
    const response = this.#response;
    if (response === undefined || this.isPaused) return;
    this.isPaused = true;
    response.pause();
    setTimeout(() => {
      this.isPaused = false;
      response.resume();
    }, ms).unref();
  }

  #onResponse(response) {
    if (response.statusCode !== 200) {
      response.resume();
      this.#account.note({ kind: 'refused', status: response.statusCode });
      return;
    }
    this.#response = response;
    this.connectedAt = performance.now();
    this.#account.note({ kind: 'connected' });
    const parser = createParser({ onEvent: (event) => this.#onEvent(event) });
    response.setEncoding('utf8');
    response.on('error', () => {});
    // Data that arrives after the client has closed the connection is ignored.
    response.on('data', (text) => {
      if (this.#response === response && !this.#request?.destroyed) parser.feed(text);
    });
  }

  #onClose(request) {
    if (this.#request !== request) return;
    this.#request = undefined;
    this.#response = undefined;
    this.connectedAt = undefined;
    if (this.#timer === undefined) this.#reconnectIn(200 + Math.random() * 1_300);
  }

  /** @param {number | undefined} ms time in ms; the client does not reconnect if `undefined` */
  #reconnectIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#isGone || ms === undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.connect();
    }, ms);
  }

  /** Records an event in the account of this client. */
  #onEvent({ event, data, id }) {
    if (this.#spoil?.isDeaf) return;
    if (id !== undefined) this.lastEventId = id;
    if (event === 'sse:gap') this.#account.note({ kind: 'gap', ...JSON.parse(data) });
    else if (event === 'sse:checkpoint') this.#account.note({ kind: 'checkpoint', id });
    else {
      const { n, channel } = JSON.parse(data);
      const items = [{ kind: 'event', n, channel, id }];
      for (const item of this.#spoil?.change(items) ?? items) this.#account.note(item);
    }
  }
}
