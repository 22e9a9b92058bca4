import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Two cores: real servers, real browsers and heap measurements do not go well side by side.
    fileParallelism: false,
    testTimeout: 20_000,
    hookTimeout: 60_000,
    execArgv: ['--expose-gc'],
    coverage: { provider: 'v8', include: ['src/**/*.ts'] },
  },
});
