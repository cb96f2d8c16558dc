// The parts of Grafana's core that its published packages expect to be set up for them.
import {
  booleanOverrideProcessor,
  dataLinksOverrideProcessor,
  identityOverrideProcessor,
  numberOverrideProcessor,
  standardFieldConfigEditorRegistry,
  standardTransformers,
  standardTransformersRegistry,
  stringOverrideProcessor,
  thresholdsOverrideProcessor,
  unitOverrideProcessor,
  valueMappingsOverrideProcessor,
} from '@grafana/data';

const STANDARD = {
  unit: unitOverrideProcessor,
  min: numberOverrideProcessor,
  max: numberOverrideProcessor,
  decimals: numberOverrideProcessor,
  displayName: stringOverrideProcessor,
  color: identityOverrideProcessor,
  noValue: stringOverrideProcessor,
  links: dataLinksOverrideProcessor,
  mappings: valueMappingsOverrideProcessor,
  thresholds: thresholdsOverrideProcessor,
};
const CUSTOM = [
  'align', 'axisPlacement', 'cellOptions', 'drawStyle', 'fillOpacity', 'gradientMode', 'inspect', 'lineInterpolation',
  'lineStyle', 'lineWidth', 'pointSize', 'scaleDistribution', 'showPoints', 'stacking', 'thresholdsStyle', 'width',
];

const item = (id, process, isCustom) => ({
  id: isCustom ? `custom.${id}` : id,
  path: id,
  isCustom,
  name: id,
  editor: () => null,
  override: () => null,
  process,
  shouldApply: () => true,
  settings: {},
});

export function setUp() {
  standardFieldConfigEditorRegistry.setInit(() => [
    ...Object.entries(STANDARD).map(([id, process]) => item(id, process, false)),
    ...CUSTOM.map((id) => item(id, identityOverrideProcessor, true)),
    item('spanNulls', booleanOverrideProcessor, true),
  ]);
  standardTransformersRegistry.setInit(() =>
    [...new Set(Object.values(standardTransformers))].map((transformation) => ({
      id: transformation.id,
      name: transformation.name,
      transformation: () => Promise.resolve(transformation),
      editor: () => null,
      imageDark: '',
      imageLight: '',
    }))
  );
}
