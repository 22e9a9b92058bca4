/** A client that behaves as an EventSource: it comes back with the last id that it got, to whichever node. */
import http from 'node:http';
import { createParser } from 'eventsource-parser';

export class Client {
  channels;
  lastEventId = '';
  /** When its stream last came about; `undefined` while there is none. */
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
   * @param {string} who
   * @param {readonly string[]} channels
   * @param {{ checker: import('./checker.mjs').Checker, choose: () => import('./nodes.mjs').SoakNode, spoil?: import('./spoil.mjs').Spoil }} world
   */
  constructor(who, channels, { checker, choose, spoil }) {
    this.who = who;
    this.channels = channels;
    this.#account = checker.account(who, channels);
    this.#choose = choose;
    this.#spoil = spoil;
    this.connect();
  }

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
    // An 'error' is followed by a 'close'.
    request.on('error', () => {});
    request.on('close', () => this.#ended(request));
    request.on('response', (response) => this.#opened(response));
  }

  /** Breaks the connection. @param {number} [ms] after which it comes back */
  drop(ms) {
    this.#request?.destroy();
    this.#returnIn(ms);
  }

  /** Never comes back. */
  leave() {
    this.#isGone = true;
    this.#request?.destroy();
    clearTimeout(this.#timer);
    this.#account.isClosed = true;
  }

  /** Reads nothing for so long. */
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

  #opened(response) {
    if (response.statusCode !== 200) {
      response.resume();
      this.#account.note({ kind: 'refused', status: response.statusCode });
      return;
    }
    this.#response = response;
    this.connectedAt = performance.now();
    this.#account.note({ kind: 'connected' });
    const parser = createParser({ onEvent: (event) => this.#take(event) });
    response.setEncoding('utf8');
    response.on('error', () => {});
    // What comes after the client has hung up is not for anybody.
    response.on('data', (text) => {
      if (this.#response === response && !this.#request?.destroyed) parser.feed(text);
    });
  }

  #ended(request) {
    if (this.#request !== request) return;
    this.#request = undefined;
    this.#response = undefined;
    this.connectedAt = undefined;
    if (this.#timer === undefined) this.#returnIn(200 + Math.random() * 1_300);
  }

  #returnIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#isGone || ms === undefined) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.connect();
    }, ms);
  }

  #take({ event, data, id }) {
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
