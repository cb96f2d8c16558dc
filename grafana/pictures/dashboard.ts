// A dashboard as file provisioning takes it, with the panels that plugin.py knows, out of Grafana's own types.
import type { GraphFieldConfig, TableFieldOptions } from '@grafana/schema';
import type * as dashboard from '@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen';
import type * as bargauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as states from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// JSON holds the values of enums, not the enums.
type Plain<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Plain<Item>[]
    : T extends object
      ? { [Key in keyof T]: Plain<T[Key]> }
      : T;

type Source = { type: 'prometheus'; uid: '${datasource}' };
type Empty = Record<string, never>;

interface Target {
  datasource: Source;
  editorMode: 'code' | 'builder';
  expr: string;
  format: 'table' | 'time_series';
  instant: boolean;
  legendFormat: string;
  range: boolean;
  refId: string;
}

interface DataLink {
  targetBlank: boolean;
  title: string;
  url: string;
}

interface Override {
  matcher: { id: 'byName' | 'byRegexp' | 'byFrameRefID'; options: string };
  properties: Array<{ id: string; value: unknown }>;
}

type PanelOf<Type extends string, Options, Custom> = Plain<
  Omit<dashboard.Panel, 'type' | 'options' | 'fieldConfig' | 'targets' | 'datasource' | 'transformations'>
> & {
  datasource: Source;
  fieldConfig: {
    defaults: Plain<Omit<dashboard.FieldConfig, 'custom' | 'links'>> & {
      custom: Custom extends Empty ? Empty : Plain<Custom>;
      links?: DataLink[];
    };
    overrides: Override[];
  };
  options: Plain<Options>;
  targets: Target[];
  transformations?: Array<{ id: 'merge' | 'filterFieldsByName' | 'organize'; options: object }>;
  type: Type;
};

// frameIndex is required by the type and 0 where it is absent.
type TableOptions = Omit<table.Options, 'frameIndex'>;

export type Panel =
  | PanelOf<'timeseries', timeseries.Options, GraphFieldConfig>
  | PanelOf<'stat', stat.Options, Empty>
  | PanelOf<'bargauge', bargauge.Options, Empty>
  | PanelOf<'table', TableOptions, TableFieldOptions>
  | PanelOf<'heatmap', heatmap.Options, heatmap.FieldConfig>
  | PanelOf<'state-timeline', states.Options, states.FieldConfig>;

export type Row = Omit<dashboard.RowPanel, 'panels'> & { panels: Panel[] };

// The model leaves open what a data source reads from an annotation or a variable.
type Annotation =
  | Plain<dashboard.AnnotationQuery>
  | (Plain<Omit<dashboard.AnnotationQuery, 'datasource'>> & {
      datasource: Source;
      expr: string;
      tagKeys: string;
      textFormat: string;
      titleFormat: string;
      useValueForTime: boolean;
    });
type Variable = Plain<Omit<dashboard.VariableModel, 'current' | 'query'>> & {
  current: Partial<Plain<dashboard.VariableOption>>;
  definition?: string;
  query: string | { qryType: 1; query: string; refId: string };
  skipUrlSync: boolean;
};

export type Dashboard = Plain<
  Omit<dashboard.Dashboard, 'panels' | 'annotations' | 'templating' | 'links' | 'timepicker'>
> & {
  annotations: { list: Annotation[] };
  links: Plain<dashboard.DashboardLink>[];
  panels: Array<Panel | Row>;
  templating: { list: Variable[] };
  timepicker: object;
};
