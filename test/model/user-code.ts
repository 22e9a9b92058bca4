/**
 * Extra actions of user code when the library calls it: in filters, in wrappers of `res.write`, and
 * in subscribers of diagnostics channels.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { EventStream } from '../../src/index.ts';
import type { Link } from './link.ts';
import type { Act, ActKind, FollowOptions, Observer, Wrap } from './schedule.ts';

/** The actions of user code. */
export interface UserActions {
  /** The connection of a stream, if the connection is checked. */
  linkOf(stream: EventStream): Link | undefined;
  /** Whether the schedule is over for the connection, so that user code must not act any more. */
  isOver(link: Link): boolean;
  publish(): void;
  /** Ends a channel that the stream follows. */
  endFollowed(link: Link): void;
  send(link: Link): void;
  comment(link: Link): void;
  sendToOthers(link: Link): void;
  /** Ends the subscription that was made with the options. */
  unsubscribe(link: Link, options: FollowOptions): void;
  subscribe(link: Link): void;
  close(link: Link): void;
}

// Number of calls between the first and the second act. With more acts, filters that publish would
// never stop.
const CALLS_UNTIL_SECOND_ACT = 2;

// Maximum number of acts of one observer. An observer gets the messages of all streams.
const MAX_ACTS_PER_OBSERVER = 2;

/** The callbacks of the application that act when they are called. */
export class UserCode {
  /** Number of acts so far. */
  acts = 0;
  readonly #actions: UserActions;
  // Number of calls by drawn value: the options of a subscription, or the wrapper of a connection.
  readonly #calls = new Map<object, number>();
  readonly #listeners: (() => void)[] = [];

  constructor(actions: UserActions) {
    this.#actions = actions;
  }

  /** Called when the library calls a filter. */
  filter(link: Link, options: FollowOptions): void {
    if (options.act !== undefined && this.#isDue(options.act)) {
      this.#act(options.act.kind, link, options);
    }
  }

  /** Called when bytes are written through a wrapper of `res.write`. */
  write(link: Link | undefined, wrap: Wrap, passOn: () => boolean): boolean {
    const mustAct = link !== undefined && link.insideDepth === 0 && this.#isDue(wrap);
    if (mustAct && wrap.when === 'before') this.#act(wrap.kind, link);
    const result = passOn();
    if (mustAct && wrap.when === 'after') this.#act(wrap.kind, link);
    return result;
  }

  /** Subscribes to diagnostics channels, until {@link close}. */
  observe(observers: readonly Observer[]): void {
    for (const observer of observers) {
      let remaining = MAX_ACTS_PER_OBSERVER;
      const listener = (message: unknown): void => {
        const link = this.#actions.linkOf((message as { stream: EventStream }).stream);
        if (link === undefined || remaining === 0) return;
        remaining--;
        // A stream opens in the middle of a call of `subscribe`.
        this.#act(observer.kind, link, undefined, observer.of === 'open');
      };
      subscribe(`res-sse:${observer.of}`, listener);
      this.#listeners.push(() => void unsubscribe(`res-sse:${observer.of}`, listener));
    }
  }

  close(): void {
    for (const stop of this.#listeners.splice(0)) stop();
  }

  #isDue(act: Act): boolean {
    const calls = this.#calls.get(act) ?? 0;
    this.#calls.set(act, calls + 1);
    return calls === act.at || calls === act.at + CALLS_UNTIL_SECOND_ACT;
  }

  /**
   * Runs one act.
   * @param isInside whether the library is in the middle of a delivery to the stream
   */
  #act(kind: ActKind, link: Link, options?: FollowOptions, isInside = true): void {
    const actions = this.#actions;
    if (actions.isOver(link)) return;
    this.acts++;
    if (isInside) link.insideDepth++;
    try {
      if (kind === 'publishes') actions.publish();
      else if (kind === 'ends the channel') actions.endFollowed(link);
      else if (kind === 'sends') actions.send(link);
      else if (kind === 'comments') actions.comment(link);
      else if (kind === 'sends to others') actions.sendToOthers(link);
      else if (kind === 'subscribes') actions.subscribe(link);
      else if (kind === 'closes') actions.close(link);
      else if (options !== undefined) actions.unsubscribe(link, options);
    } finally {
      if (isInside) link.insideDepth--;
    }
  }
}
