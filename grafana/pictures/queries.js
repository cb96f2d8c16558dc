// What Grafana's Prometheus data source does: variables in, data frames out.
import { FieldType, toDataFrame } from '@grafana/data';

const STEP_SECONDS = 15;

export function interpolate(text, variables) {
  return text.replace(/\$\{?(\w+)\}?/g, (found, name) => variables[name] ?? found);
}

export function intervals(range) {
  const seconds = Math.round((range.to - range.from) / 1000);
  return { __rate_interval: '1m', __interval: `${STEP_SECONDS}s`, __range: `${seconds}s` };
}

async function ask(prometheus, target, variables, range) {
  const query = interpolate(target.expr, { ...variables, ...intervals(range) });
  const common = { query };
  const [endpoint, parameters] = target.instant
    ? ['query', { ...common, time: range.to / 1000 }]
    : ['query_range', { ...common, start: range.from / 1000, end: range.to / 1000, step: STEP_SECONDS }];
  const answer = await fetch(`${prometheus}/api/v1/${endpoint}?${new URLSearchParams(parameters)}`);
  const body = await answer.json();
  if (body.status !== 'success') {
    throw new Error(`${query}: ${body.error}`);
  }
  return body.data.result;
}

function seriesFrame(target, series, range) {
  const samples = series.values ?? [series.value];
  const values = new Map(samples.map(([time, value]) => [Math.round(time * 1000), Number(value)]));
  const times = [...values.keys()];
  if (!target.instant) {
    // A gap has to be a null, or lines are drawn over it.
    times.length = 0;
    for (let time = range.from; time <= range.to; time += STEP_SECONDS * 1000) {
      times.push(time);
    }
  }
  const legend = target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => series.metric[label] ?? '');
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: times },
      {
        name: 'Value',
        type: FieldType.number,
        labels: series.metric,
        config: { displayNameFromDS: legend },
        values: times.map((time) => values.get(time) ?? null),
      },
    ],
  });
}

function tableFrame(target, result, single) {
  const labels = [...new Set(result.flatMap(({ metric }) => Object.keys(metric)))].sort();
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: result.map(({ value }) => value[0] * 1000) },
      ...labels.map((name) => ({ name, type: FieldType.string, values: result.map(({ metric }) => metric[name] ?? '') })),
      {
        name: single ? 'Value' : `Value #${target.refId}`,
        type: FieldType.number,
        values: result.map(({ value }) => Number(value[1])),
      },
    ],
  });
}

export async function framesOf(panel, { prometheus, variables, range }) {
  const frames = await Promise.all(
    panel.targets.map(async (target) => {
      const result = await ask(prometheus, target, variables, range);
      if (panel.type === 'table') {
        return result.length ? [tableFrame(target, result, panel.targets.length === 1)] : [];
      }
      return result.map((series) => seriesFrame(target, series, range));
    })
  );
  return frames.flat();
}
