import { BaseSequencer, type TestSpecification } from 'vitest/node';

/**
 * Vitest runs the projects of a group in the order of their names. The file that takes longest is
 * one of `package`; if it were the last to start, it would run alone at the end.
 */
export class PackageFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    // oxlint-disable-next-line unicorn/no-array-sort -- this is no array
    const sorted = await super.sort(files);
    return sorted.toSorted(
      (one, other) => groupOf(one) - groupOf(other) || rankOf(one) - rankOf(other),
    );
  }
}

function groupOf({ project }: TestSpecification): number {
  return project.config.sequence.groupOrder;
}

function rankOf({ project }: TestSpecification): number {
  return project.name === 'package' ? 0 : 1;
}
