import { defineConfig, type TestProjectInlineConfiguration } from 'vitest/config';
import { PackageFirst } from './test/support/package-first.ts';

// Tests that need a browser, in folders whose other tests need none.
const IN_BROWSER = [
  'test/demo/{missing-nothing,page}.test.ts',
  'test/examples/dashboard.test.ts',
  'test/faults/hostile-pages.test.ts',
  'test/nodes/demo.test.ts',
];

// Tests that measure memory or work of a process of their own. They run after all others.
const MEASURING = [
  'test/faults/{admission-heap,bounded-work,cycles,slow-readers,unreachable-broker}.test.ts',
  'test/faults/hostile-{readers,requests}.test.ts',
];

// Tests of what `docs/testing.md` shows.
const DOCS_OF_TESTING = 'test/testing/docs.test.ts';

/** Most tests wait most of the time, so more files may be at work than there are cores. */
const unit = project('unit', 0, 4, [
  'test/*.test.ts',
  'test/brokers/{memory,redis-model}.test.ts',
  'test/{client,testing}/*.test.ts',
]);
unit.test.exclude = [DOCS_OF_TESTING];

const integration = project('integration', 1, 3, [
  'test/{demo,examples,integration,nodes,proxies,support}/**/*.test.ts',
  'test/brokers/redis*.test.ts',
  'test/faults/**/*.test.ts',
]);
integration.test.exclude = [...IN_BROWSER, ...MEASURING, 'test/brokers/redis-model.test.ts'];

export default defineConfig({
  test: {
    sequence: { sequencer: PackageFirst },
    coverage: { provider: 'v8', include: ['src/**/*.ts'] },
    projects: [
      unit,
      project('model', 1, 3, ['test/model/**/*.test.ts']),
      integration,
      project('browser', 1, 3, [
        'test/{browser,client/browser,clients}/**/*.test.ts',
        ...IN_BROWSER,
      ]),
      project('package', 1, 3, ['test/package/**/*.test.ts']),
      project('docs', 1, 3, ['test/docs/**/*.test.ts', DOCS_OF_TESTING]),
      project('measure', 2, 2, MEASURING),
    ],
  },
});

/**
 * @param group projects of one group run at the same time, the groups one after the other
 * @param workers how many files are run at the same time
 */
function project(
  name: string,
  group: number,
  workers: number,
  include: string[],
): { test: NonNullable<TestProjectInlineConfiguration['test']> } {
  return {
    test: {
      name,
      include,
      maxWorkers: workers,
      sequence: { groupOrder: group },
      testTimeout: 20_000,
      hookTimeout: 60_000,
      execArgv: ['--expose-gc'],
    },
  };
}
