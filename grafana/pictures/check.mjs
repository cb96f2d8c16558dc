// Checks the built dashboards against Grafana's own types with tsc, and that seeded mistakes are caught.
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const dashboards = join(here, '..', 'dashboards');
const out = join(here, 'checked');

const all = (board) => board.panels.flatMap((panel) => (panel.type === 'row' ? panel.panels : [panel]));
const first = (board, type) => all(board).find((panel) => panel.type === type);

const MISTAKES = {
  enum: (board) => (first(board, 'timeseries').options.legend.displayMode = 'lists'),
  option: (board) => (first(board, 'stat').options.textSize = 12),
  custom: (board) => (first(board, 'timeseries').fieldConfig.defaults.custom.lineThickness = 2),
  type: (board) => (first(board, 'timeseries').fieldConfig.defaults.custom.lineWidth = 'thick'),
  target: (board) => (first(board, 'timeseries').targets[0].interval = '15s'),
  noExpression: (board) => delete first(board, 'stat').targets[0].expr,
  rows: (board) => (board.rows = []),
  thresholds: (board) => (first(board, 'stat').fieldConfig.defaults.thresholds.mode = 'relative'),
  refresh: (board) => (board.templating.list[1].refresh = 'onTimeChange'),
  unit: (board) => (first(board, 'stat').fieldConfig.defaults.unit = 7),
  link: (board) => delete board.links[0].icon,
  panelType: (board) => (first(board, 'stat').type = 'singlestat'),
  cell: (board) => (first(board, 'table').fieldConfig.defaults.custom.cellOptions.type = 'colour'),
  source: (board) => (first(board, 'table').datasource.uid = 'trainvitals-prometheus'),
};

function write(name, board) {
  const text = `import type { Dashboard } from '../dashboard';\nexport const board: Dashboard = ${JSON.stringify(board, null, 1)};\n`;
  writeFileSync(join(out, `${name}.ts`), text);
}

rmSync(out, { recursive: true, force: true });
mkdirSync(out);
const names = readdirSync(dashboards).filter((name) => name.endsWith('.json'));
for (const name of names) {
  write(name.replace('.json', ''), JSON.parse(readFileSync(join(dashboards, name), 'utf8')));
}
for (const [name, make] of Object.entries(MISTAKES)) {
  const board = JSON.parse(readFileSync(join(dashboards, 'training-run.json'), 'utf8'));
  make(board);
  write(`mistake-${name}`, board);
}

let findings = '';
try {
  execFileSync(join(here, 'node_modules', '.bin', 'tsc'), ['--project', here, '--pretty', 'false'], {
    cwd: here,
    encoding: 'utf8',
  });
} catch (failed) {
  findings = failed.stdout;
}
const lines = findings.split('\n').filter((line) => /^\S/.test(line) && !line.startsWith('checked/mistake-'));
const missed = Object.keys(MISTAKES).filter((name) => !findings.includes(`checked/mistake-${name}.ts`));
rmSync(out, { recursive: true });
console.log(lines.join('\n') || `${names.length} dashboards fit Grafana's types`);
console.log(missed.length ? `not caught: ${missed.join(', ')}` : `${Object.keys(MISTAKES).length} seeded mistakes caught`);
process.exit(lines.length || missed.length ? 1 : 0);
