/** `res-sse/testing`: what tests of endpoints and of brokers need, whatever runs them. */
export { brokerContract } from './broker-contract.ts';
export { readEvents } from './read-events.ts';

export type { BrokerCheck, BrokerContractOptions } from './broker-contract.ts';
export type { ReceivedEvent } from './parser.ts';
export type { EventReader, ReadOptions } from './read-events.ts';
export type { ReadTarget } from './target.ts';
