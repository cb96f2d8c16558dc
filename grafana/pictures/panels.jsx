// Each panel type, by Grafana's own components where they are published.
import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  FieldType,
  getDisplayProcessor,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
  standardFieldConfigEditorRegistry,
  transformDataFrame,
  VizOrientation,
} from '@grafana/data';
import { BarGauge, BigValue, TimeSeries, useTheme2, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { firstValueFrom } from 'rxjs';

export async function prepare(panel, frames, theme) {
  const transformed = await firstValueFrom(transformDataFrame(panel.transformations ?? [], frames));
  const data = applyFieldOverrides({
    data: transformed,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: standardFieldConfigEditorRegistry,
    replaceVariables: (text) => text,
    theme,
  });
  cacheFieldDisplayNames(data);
  for (const frame of data) {
    for (const field of frame.fields) {
      field.display = getDisplayProcessor({ field, theme });
    }
  }
  return data;
}

function NoValue({ panel, width, height }) {
  const style = { width, height, display: 'flex', alignItems: 'center', justifyContent: 'center', textAlign: 'center' };
  return <div style={{ ...style, opacity: 0.75 }}>{panel.fieldConfig.defaults.noValue}</div>;
}

function Repeated({ panel, data, width, height, orientation, render }) {
  const theme = useTheme2();
  const values = () =>
    getFieldDisplayValues({
      data,
      fieldConfig: panel.fieldConfig,
      reduceOptions: panel.options.reduceOptions,
      replaceVariables: (text) => text,
      theme,
    });
  return (
    <VizRepeater
      getValues={values}
      getAlignmentFactors={(found) => getDisplayValueAlignmentFactors(found)}
      renderValue={(props) => render(props, theme)}
      width={width}
      height={height}
      source={data}
      itemSpacing={3}
      autoGrid={true}
      orientation={orientation}
      minVizWidth={panel.options.minVizWidth}
      minVizHeight={panel.options.minVizHeight}
    />
  );
}

function Stat(properties) {
  const { options } = properties.panel;
  return (
    <Repeated
      {...properties}
      orientation={VizOrientation.Auto}
      render={({ value, alignmentFactors, width, height, count }, theme) => (
        <BigValue
          value={value.display}
          count={count}
          colorMode={options.colorMode}
          graphMode={options.graphMode}
          justifyMode={options.justifyMode}
          textMode={options.textMode === 'auto' ? 'value_and_name' : options.textMode}
          alignmentFactors={alignmentFactors}
          disableWideLayout={!options.wideLayout}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    />
  );
}

function Bars(properties) {
  const { options } = properties.panel;
  return (
    <Repeated
      {...properties}
      orientation={VizOrientation.Horizontal}
      render={({ value, alignmentFactors, width, height }, theme) => (
        <BarGauge
          value={value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor?.(value.colIndex)}
          displayMode={options.displayMode}
          orientation={VizOrientation.Horizontal}
          namePlacement={options.namePlacement}
          showUnfilled={options.showUnfilled}
          valueDisplayMode={options.valueMode}
          text={options.text}
          alignmentFactors={alignmentFactors}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    />
  );
}

function Lines({ panel, data, width, height, range }) {
  return (
    <TimeSeries
      frames={data}
      width={width}
      height={height}
      timeRange={range.forGrafana}
      timeZone="utc"
      legend={panel.options.legend}
      options={panel.options}
    />
  );
}

function Cells({ panel, data, width, height }) {
  return (
    <TableNG
      data={data[0]}
      width={width}
      height={height}
      noHeader={!panel.options.showHeader}
      cellHeight={panel.options.cellHeight}
      sortBy={panel.options.sortBy}
      fieldConfig={panel.fieldConfig}
      enableVirtualization={false}
    />
  );
}

// The heat map and the state timeline are not published; these are drawn by hand from the same options.

const STRIP = { bottom: 22, longest: 46 };

function Strips({ data, width, height, range, colorOf, textOf }) {
  const rows = data.flatMap((frame) =>
    frame.fields.filter((field) => field.type === FieldType.number).map((field) => ({ frame, field }))
  );
  const names = rows.map(({ frame, field }) => shorten(getFieldDisplayName(field, frame, data)));
  const left = 16 + 6.3 * Math.max(...names.map((name) => name.length));
  const step = (height - STRIP.bottom) / Math.max(rows.length, 1);
  const inner = width - left - 8;
  const x = (time) => left + ((time - range.from) / (range.to - range.from)) * inner;
  const ticks = [0.1, 0.3, 0.5, 0.7, 0.9].map((share) => range.from + share * (range.to - range.from));
  return (
    <svg width={width} height={height} style={{ fontSize: 12, fill: 'currentColor' }}>
      {rows.map(({ frame, field }, index) => (
        <g key={index}>
          <text x={left - 8} y={(index + 0.5) * step + 4} textAnchor="end">
            {names[index]}
          </text>
          {segments(frame.fields[0].values, field.values).map(({ from, to, value }) => (
            <g key={from}>
              <rect
                x={x(from)}
                y={index * step + 1}
                width={Math.max(x(to) - x(from), 1)}
                height={Math.max(step - 2, 1)}
                fill={colorOf(field, value)}
              />
              {textOf && x(to) - x(from) > 60 && step > 13 && (
                <text x={x(from) + 5} y={(index + 0.5) * step + 4} style={{ fill: '#fff' }}>
                  {textOf(field, value)}
                </text>
              )}
            </g>
          ))}
        </g>
      ))}
      {ticks.map((time) => (
        <text key={time} x={x(time)} y={height - 5} textAnchor="middle" opacity={0.75}>
          {new Date(time).toISOString().slice(11, 16)}
        </text>
      ))}
    </svg>
  );
}

function shorten(name) {
  return name.length > STRIP.longest ? `${name.slice(0, STRIP.longest - 1)}…` : name;
}

function segments(times, values) {
  const found = [];
  const step = times[1] - times[0];
  values.forEach((value, index) => {
    const last = found.at(-1);
    if (value === null) {
      return;
    }
    if (last && last.value === value && last.to === times[index]) {
      last.to += step;
    } else {
      found.push({ from: times[index], to: times[index] + step, value });
    }
  });
  return found;
}

function States(properties) {
  return (
    <Strips
      {...properties}
      colorOf={(field, value) => field.display(value).color}
      textOf={(field, value) => field.display(value).text}
    />
  );
}

const WARMTH = [[48, 18, 59], [70, 117, 237], [27, 207, 212], [97, 252, 108], [209, 232, 52], [251, 129, 34], [122, 4, 2]];

function warmth(share) {
  const place = Math.min(Math.max(share, 0), 1) * (WARMTH.length - 1);
  const low = Math.floor(place);
  const mixed = WARMTH[low].map((part, i) => part + (place - low) * ((WARMTH[low + 1] ?? WARMTH[low])[i] - part));
  return `rgb(${mixed.map(Math.round).join(',')})`;
}

function Heatmap(properties) {
  return <Strips {...properties} colorOf={(_, value) => warmth(value)} />;
}

const KINDS = { stat: Stat, bargauge: Bars, timeseries: Lines, table: Cells, heatmap: Heatmap, 'state-timeline': States };
const DRAW_EMPTY = ['stat', 'bargauge'];

export function PanelContent(properties) {
  const { panel, data } = properties;
  const Kind = KINDS[panel.type];
  if (!data.some((frame) => frame.length) && !DRAW_EMPTY.includes(panel.type)) {
    return <NoValue {...properties} />;
  }
  return <Kind {...properties} />;
}
