/** The current state of a schedule: clients, connections and the registry. */
import type { Link } from './link.ts';
import type { Registry } from './registry.ts';
import type { WorkMeter } from './work.ts';

/** A client, across all its connections. */
export interface Client {
  link: Link | undefined;
  lastId: string;
}

/** The current state of a schedule. */
export class Scene {
  readonly faults: string[] = [];
  /** All connections of clients, open or closed. */
  readonly links: Link[] = [];
  readonly crowd: Link[] = [];
  readonly clients: readonly Client[];
  readonly work: WorkMeter;
  readonly clock: { now: number };
  /** Factor for the size of padded events. */
  readonly scale: number;
  registry: Registry;
  /** Number of requests that were answered 204. */
  noContent = 0;
  /** Number of calls of `publish()` and `end()` that were rejected. */
  refused = 0;
  /** Whether the schedule is over, so that user code does not act any more. */
  isOver = false;

  constructor(
    clients: number,
    registry: Registry,
    work: WorkMeter,
    clock: { now: number },
    scale: number,
  ) {
    this.clients = Array.from({ length: clients }, () => ({ link: undefined, lastId: '' }));
    this.registry = registry;
    this.work = work;
    this.clock = clock;
    this.scale = scale;
  }

  /** Open connections of clients. */
  get open(): Link[] {
    return this.links.filter((link) => link.isOpen);
  }

  reportFault(description: string): void {
    this.faults.push(description);
  }
}
