/** `channels.listen()`: route handlers that follow channels. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { refuse } from '../http/refusals.ts';
import { stream as streamRoute, type RouteHandler } from '../http/route.ts';
import { isPoll } from '../protocol/request-headers.ts';
import type { EventStream, SubscribeOptions } from '../stream/event-stream.ts';
import type { Subscription } from '../stream/subscription-types.ts';
import { assertSubscribeOptions, toChannelSet } from './channel-options.ts';
import type { ListenNames } from './channels.ts';
import { Poll } from './poll.ts';

/**
 * Follows channels on a stream. Every check comes before the first change: an invalid call does not
 * open the stream.
 * @param channels valid channel names, each once
 */
type Follow = (
  stream: EventStream,
  channels: readonly string[],
  options: SubscribeOptions,
) => Promise<Subscription>;

/** Makes the route handler. See `Channels.listen()` for the contract. */
export function listenRoute<Req extends IncomingMessage, Res extends ServerResponse>(
  names: ListenNames<Req>,
  options: SubscribeOptions | ((req: Req) => SubscribeOptions | Promise<SubscribeOptions>),
  follow: Follow,
): RouteHandler<Req, Res> {
  // Invalid arguments throw when the route is made, not at the first request. The array is shared
  // by all streams of the route.
  const fixedNames = typeof names === 'function' ? undefined : toChannelSet(names);
  if (typeof options !== 'function') assertSubscribeOptions('listen()', options);
  return streamRoute<Req, Res>(async (stream, req, res) => {
    const requested = typeof names === 'function' ? await names(req) : names;
    if (requested === null) {
      refuse(res, 403, 'ERR_SSE_FORBIDDEN', 'You may not follow this.');
      return;
    }
    if (requested === undefined) {
      refuse(res, 404, 'ERR_SSE_NOT_FOUND', 'There is nothing to follow here.');
      return;
    }
    const channels = fixedNames ?? toChannelSet(requested);
    const requestOptions = typeof options === 'function' ? await options(req) : options;
    if (isPoll(req)) await followForPoll(stream, channels, requestOptions, follow);
    else await follow(stream, channels, requestOptions);
  });
}

/** Answers a poll: delivers events as to any stream, and ends the stream soon after. */
async function followForPoll(
  stream: EventStream,
  channels: readonly string[],
  options: SubscribeOptions,
  follow: Follow,
): Promise<void> {
  const checked = assertSubscribeOptions('listen()', options);
  const poll = new Poll(stream);
  poll.onSubscribed(await follow(stream, channels, poll.watch(checked)));
}
