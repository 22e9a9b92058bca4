/** Who takes part in a schedule, at each moment. */
import type { Link } from './link.ts';
import type { Registry } from './registry.ts';
import type { WorkMeter } from './work.ts';

/** A client over all its connections. */
export interface Client {
  link: Link | undefined;
  lastId: string;
}

export class Scene {
  readonly faults: string[] = [];
  /** Every connection of a client there was. */
  readonly links: Link[] = [];
  readonly crowd: Link[] = [];
  readonly clients: readonly Client[];
  readonly work: WorkMeter;
  readonly clock: { now: number };
  /** How much larger padded events are. */
  readonly scale: number;
  registry: Registry;
  /** Whether nothing more is published. */
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

  /** Connections of clients that are there. */
  get open(): Link[] {
    return this.links.filter((link) => link.isOpen);
  }

  fault(what: string): void {
    this.faults.push(what);
  }
}
