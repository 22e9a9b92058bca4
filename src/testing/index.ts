/** `res-sse/testing`: tests of endpoints and of brokers, for any test runner. */
export { brokerContract } from './broker-contract.ts';
export { readEvents } from './read-events.ts';

export type { BrokerCheck, BrokerContractOptions } from './broker-contract.ts';
export type { EventReader } from './event-reader.ts';
export type { ReceivedEvent } from '../client/parser.ts';
export type { ReadOptions } from './read-events.ts';
export type { ReadTarget } from './target.ts';
