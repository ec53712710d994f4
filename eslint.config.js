import js from '@eslint/js';
import globals from 'globals';

export default [
  { ignores: ['.venv/', 'build/', 'runs/'] },
  js.configs.recommended,
  {
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      complexity: ['error', 10],
      eqeqeq: 'error',
      'no-unused-vars': 'error',
      'no-var': 'error',
      'prefer-const': 'error',
    },
  },
  { files: ['app/stage/**', 'web/**'], languageOptions: { globals: globals.browser } },
  { files: ['tests/stage/**', 'tests/web/**'], languageOptions: { globals: globals.node } },
];
