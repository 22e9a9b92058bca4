/**
 * What user code does when the library calls it, besides its job: filters, a `write` in front of the response's own, and
 * subscribers of diagnostics channels.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { EventStream } from '../../src/index.ts';
import type { Link } from './link.ts';
import type { Act, ActKind, FollowOptions, Observer, Wrap } from './schedule.ts';

/** How acts are carried out. */
export interface Hands {
  /** The connection of a stream that is audited. */
  linkOf(stream: EventStream): Link | undefined;
  /** Whether the schedule is over for the connection, so that nothing is to be done any more. */
  isOver(link: Link): boolean;
  publish(): void;
  send(link: Link): void;
  comment(link: Link): void;
  sendToOthers(link: Link): void;
  /** Ends the subscription that was made with the options. */
  unsubscribe(link: Link, options: FollowOptions): void;
  subscribe(link: Link): void;
  close(link: Link): void;
}

// A second act comes so many calls after the first; with more, filters that publish would never come to rest.
const UNTIL_SECOND_ACT = 2;

// Observers hear of all streams.
const ACTS_OF_AN_OBSERVER = 2;

export class UserCode {
  /** How many acts were carried out. */
  acts = 0;
  readonly #hands: Hands;
  // By what was drawn: the options of a subscription, the wrap of a connection.
  readonly #calls = new Map<object, number>();
  readonly #listeners: (() => void)[] = [];

  constructor(hands: Hands) {
    this.#hands = hands;
  }

  /** A filter is asked about an event. */
  filter(link: Link, options: FollowOptions): void {
    if (options.act !== undefined && this.#isTurnOf(options.act)) {
      this.#do(options.act.kind, link, options);
    }
  }

  /** Bytes are written through a `write` that somebody has put in front. */
  write(link: Link | undefined, wrap: Wrap, passOn: () => boolean): boolean {
    const acts = link !== undefined && link.inside === 0 && this.#isTurnOf(wrap);
    if (acts && wrap.when === 'before') this.#do(wrap.kind, link);
    const answer = passOn();
    if (acts && wrap.when === 'after') this.#do(wrap.kind, link);
    return answer;
  }

  /** Subscribes to diagnostics channels, until {@link close}. */
  observe(observers: readonly Observer[]): void {
    for (const observer of observers) {
      let left = ACTS_OF_AN_OBSERVER;
      const listener = (message: unknown): void => {
        const link = this.#hands.linkOf((message as { stream: EventStream }).stream);
        if (link === undefined || left === 0) return;
        left--;
        // A stream that opens is in the middle of a subscribe.
        this.#do(observer.kind, link, undefined, observer.of === 'open');
      };
      subscribe(`res-sse:${observer.of}`, listener);
      this.#listeners.push(() => void unsubscribe(`res-sse:${observer.of}`, listener));
    }
  }

  close(): void {
    for (const stop of this.#listeners.splice(0)) stop();
  }

  #isTurnOf(act: Act): boolean {
    const calls = this.#calls.get(act) ?? 0;
    this.#calls.set(act, calls + 1);
    return calls === act.at || calls === act.at + UNTIL_SECOND_ACT;
  }

  /** @param isInside whether the library is in the middle of something with this stream */
  #do(kind: ActKind, link: Link, options?: FollowOptions, isInside = true): void {
    const hands = this.#hands;
    if (hands.isOver(link)) return;
    this.acts++;
    if (isInside) link.inside++;
    try {
      if (kind === 'publishes') hands.publish();
      else if (kind === 'sends') hands.send(link);
      else if (kind === 'comments') hands.comment(link);
      else if (kind === 'sends to others') hands.sendToOthers(link);
      else if (kind === 'subscribes') hands.subscribe(link);
      else if (kind === 'closes') hands.close(link);
      else if (options !== undefined) hands.unsubscribe(link, options);
    } finally {
      if (isInside) link.inside--;
    }
  }
}
