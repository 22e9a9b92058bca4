/** The broker contract as checks that any test runner can run. */
import type { Broker } from '../index.ts';
import { CHECKS } from './broker-checks.ts';
import { Nodes } from './broker-node.ts';
import { SHARED_CHECKS } from './shared-broker-checks.ts';

/** A check of one guarantee of the contract. */
export interface BrokerCheck {
  /** The guarantee, as the name of a test. */
  readonly name: string;
  /** Runs the check. Rejects with an assertion error if the broker violates the guarantee. */
  readonly run: () => Promise<void>;
}

/** Options of {@link brokerContract}. */
export interface BrokerContractOptions {
  /**
   * Whether brokers with the same log name share a log, as the nodes of a registry do.
   * @defaultValue `false`
   */
  shared?: boolean | undefined;
  /** Time in ms after which an entry that has not arrived counts as lost. @defaultValue `10_000` */
  timeout?: number | undefined;
}

/**
 * Makes the checks of the broker contract. Each check makes its own brokers, opens them and closes
 * them. A closed broker has to refuse calls with an error whose `code` is `ERR_SSE_CLOSED`.
 * @param makeBroker makes a broker that has not been opened; each log name is a new, empty log
 * @returns the checks, to be registered as tests
 * @example
 * const checks = brokerContract((log) => myBroker({ log }), { shared: true });
 * for (const { name, run } of checks) test(name, run);
 */
export function brokerContract(
  makeBroker: (log: string) => Broker | Promise<Broker>,
  { shared = false, timeout = 10_000 }: BrokerContractOptions = {},
): BrokerCheck[] {
  const checks = shared ? { ...CHECKS, ...SHARED_CHECKS } : CHECKS;
  return Object.entries(checks).map(([name, check]) => ({
    name,
    run: async () => {
      const nodes = new Nodes(makeBroker, timeout);
      try {
        await check(nodes);
      } finally {
        await nodes.close();
      }
    },
  }));
}
