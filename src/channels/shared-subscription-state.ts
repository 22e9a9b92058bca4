/** The subscription state of a stream, shared by live streams with identical subscriptions. */
import type { Audience } from './audience.ts';
import type { FollowerHost } from './follower-host.ts';
import type { SubscriptionRecord } from './subscription.ts';

interface StateFields {
  readonly host: FollowerHost;
  /** The stream's subscriptions, in the order of the calls of `subscribe`. */
  readonly subscriptions: readonly SubscriptionRecord[];
  /** The placed channels with history. */
  readonly channels: readonly string[];
  /** The epoch of the log to which the stream's cursor belongs; `''` before it is known. */
  readonly epoch: string;
  /**
   * The audience of which the stream is a member. Defined while the stream is live, and until
   * it has left an audience that was retired.
   */
  readonly audience: Audience | undefined;
}

/**
 * Immutable: {@link with} makes a changed copy. Ten thousand live streams with the same
 * subscriptions have one state.
 *
 * ```text
 * StreamFollower 1 ──┐
 * StreamFollower 2 ──┼──► SharedSubscriptionState ◄──► Audience
 * StreamFollower 3 ──┘          (.audience, .sharedState)
 * StreamFollower 4 ─────► SharedSubscriptionState ───► Audience      has a filter: its own state
 * ```
 */
export class SharedSubscriptionState implements StateFields {
  readonly host: FollowerHost;
  readonly subscriptions: readonly SubscriptionRecord[];
  readonly channels: readonly string[];
  readonly epoch: string;
  readonly audience: Audience | undefined;
  /** Whether a subscription has a filter. */
  readonly isFiltered: boolean;
  /** Whether a subscription has `control: false`: the library sends no events of its own. */
  readonly isWithoutControl: boolean;
  /** Whether a subscription has an `onGap`. */
  readonly hasGapHandler: boolean;

  constructor({ host, subscriptions, channels, epoch, audience }: StateFields) {
    this.host = host;
    this.subscriptions = subscriptions;
    this.channels = channels;
    this.epoch = epoch;
    this.audience = audience;
    this.isFiltered = subscriptions.some(({ options }) => options.filter !== undefined);
    this.isWithoutControl = subscriptions.some(({ options }) => options.control === false);
    this.hasGapHandler = subscriptions.some(({ options }) => options.onGap !== undefined);
  }

  /** The state of a stream without subscriptions. */
  static initial(host: FollowerHost): SharedSubscriptionState {
    return new SharedSubscriptionState({
      host,
      subscriptions: [],
      channels: [],
      epoch: '',
      audience: undefined,
    });
  }

  /** Returns a copy with changes. */
  with(changes: Partial<Omit<StateFields, 'host'>>): SharedSubscriptionState {
    const { host, subscriptions, channels, epoch, audience } = this;
    return new SharedSubscriptionState({
      host,
      subscriptions,
      channels,
      epoch,
      audience,
      ...changes,
    });
  }

  /**
   * Returns the state of a stream that has joined an audience: the state that the audience has of
   * an earlier member, if the subscriptions are identical, otherwise a copy of this state.
   */
  inAudience(audience: Audience): SharedSubscriptionState {
    const { sharedState } = audience;
    if (sharedState instanceof SharedSubscriptionState && isLike(sharedState, this)) {
      return sharedState;
    }
    // The array of channels is shared, too.
    const state = this.with({ audience, channels: audience.channels });
    if (isShareable(state)) audience.sharedState = state;
    return state;
  }
}

/**
 * Whether other streams may use the state. A state with functions of one request is not shared.
 */
function isShareable({ subscriptions }: SharedSubscriptionState): boolean {
  return subscriptions.every((record) => record.isShareable);
}

function isLike(one: SharedSubscriptionState, other: SharedSubscriptionState): boolean {
  return (
    one.epoch === other.epoch &&
    one.subscriptions.length === other.subscriptions.length &&
    one.subscriptions.every((record, index) =>
      record.isLike(other.subscriptions[index] as SubscriptionRecord),
    )
  );
}
