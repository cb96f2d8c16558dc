// Draws the dashboard that the address names: ?dashboard=…&prometheus=…&from=…&to=…&theme=…&var-run=…
import { createTheme, dateTime } from '@grafana/data';
import { GlobalStyles, PanelChrome, PortalContainer, ThemeContext } from '@grafana/ui';
import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';

import { setUp } from './grafana.js';
import { PanelContent, prepare } from './panels.jsx';
import { framesOf, interpolate } from './queries.js';

const COLUMNS = 24;
const UNIT = 38; // pixels of a grid row, its gap included
const GAP = 8;
const HEADER = 72;

const asked = new URLSearchParams(window.location.search);
const theme = createTheme({ colors: { mode: asked.get('theme') ?? 'dark' } });
const from = Number(asked.get('from'));
const to = Number(asked.get('to'));
const range = { from, to, forGrafana: { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } } };
const chosen = Object.fromEntries(
  [...asked].filter(([name]) => name.startsWith('var-')).map(([name, value]) => [name.slice(4), value])
);
const allOpen = asked.has('open');

// Rows that are folded stay so, unless all are to be seen.
function placed(panels) {
  let moved = 0;
  return panels.flatMap((panel) => {
    const y = panel.gridPos.y + moved;
    const shown = { ...panel, gridPos: { ...panel.gridPos, y } };
    if (panel.type !== 'row' || !panel.collapsed || !allOpen) {
      return [shown];
    }
    const children = panel.panels.map((child) => ({
      ...child,
      gridPos: { ...child.gridPos, y: child.gridPos.y - panel.gridPos.y + y },
    }));
    const bottom = Math.max(...children.map(({ gridPos }) => gridPos.y + gridPos.h));
    moved += bottom - y - 1;
    return [shown, ...children];
  });
}

function Panel({ panel }) {
  const [data, setData] = useState(null);
  const [failure, setFailure] = useState(null);
  useEffect(() => {
    framesOf(panel, { prometheus: asked.get('prometheus'), variables: chosen, range })
      .then((frames) => prepare(panel, frames, theme))
      .then(setData, setFailure);
  }, [panel]);
  const { x, y, w, h } = panel.gridPos;
  const column = (document.documentElement.clientWidth - 2 * GAP) / COLUMNS;
  const width = w * column - GAP;
  const height = h * UNIT - GAP;
  return (
    <div style={{ position: 'absolute', left: x * column + GAP, top: HEADER + y * UNIT, width, height }}>
      <PanelChrome title={interpolate(panel.title, chosen)} description={panel.description} width={width} height={height}>
        {(innerWidth, innerHeight) =>
          failure ? (
            <pre className="failure">{String(failure.stack)}</pre>
          ) : (
            data && <PanelContent panel={panel} data={data} width={innerWidth} height={innerHeight} range={range} />
          )
        }
      </PanelChrome>
    </div>
  );
}

function Row({ panel }) {
  const top = HEADER + panel.gridPos.y * UNIT;
  const mark = panel.collapsed && !allOpen ? '›' : '⌄';
  const count = panel.collapsed && !allOpen ? ` (${panel.panels.length} panels)` : '';
  return (
    <div style={{ position: 'absolute', left: 2 * GAP, top: top + 4, fontSize: 16 }}>
      {mark} {panel.title}
      <span style={{ opacity: 0.6 }}>{count}</span>
    </div>
  );
}

function Header({ dashboard }) {
  const variables = dashboard.templating.list.filter(({ name }) => name !== 'datasource');
  const shown = (value) => (value === '.*' ? 'All' : value.replace('.*', ''));
  return (
    <div style={{ position: 'absolute', left: 2 * GAP, top: GAP, right: 3 * GAP }}>
      <div style={{ display: 'flex', justifyContent: 'space-between', fontSize: 18 }}>
        <b>{dashboard.title}</b>
        <span style={{ fontSize: 12, opacity: 0.6 }}>
          Drawn from the shipped dashboard and made-up data with Grafana’s UI library; not a screenshot of Grafana
        </span>
      </div>
      <div style={{ display: 'flex', gap: 16, marginTop: 6 }}>
        {variables.map(({ name, label }) => (
          <span key={name}>
            <span style={{ opacity: 0.6 }}>{label} </span>
            {shown(chosen[name])}
          </span>
        ))}
      </div>
    </div>
  );
}

function Dashboard({ dashboard }) {
  const panels = placed(dashboard.panels);
  const bottom = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  return (
    <div style={{ position: 'relative', height: HEADER + bottom * UNIT }}>
      <Header dashboard={dashboard} />
      {panels.map((panel) => (panel.type === 'row' ? <Row key={panel.id} panel={panel} /> : <Panel key={panel.id} panel={panel} />))}
    </div>
  );
}

setUp();
const dashboard = await (await fetch(asked.get('dashboard'))).json();
createRoot(document.getElementById('root')).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <Dashboard dashboard={dashboard} />
    <PortalContainer />
  </ThemeContext.Provider>
);
