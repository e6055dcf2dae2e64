// Curves of metrics over steps, by uPlot.

const hidden = new Set(); // runs, by number
let zoom = null; // [from, to], null for all steps
let drawing = false, zooming = false;

const FIRST = ["reward/", "accuracy/", "domain/", "value/", "kl", "advantage/", "loss/"];
const rankOf = (name) => (name.startsWith("perf/") ? 99
  : (FIRST.findIndex((prefix) => name.startsWith(prefix)) + 1 || 50));
const metricNames = [...new Set(data.runs.flatMap((run) => Object.keys(run.curves)))]
  .sort((a, b) => rankOf(a) - rankOf(b));
let charts = [];

function chartOf(metric, log) {
  const weight = Number($("smoothing").value), series = [{ label: "step" }], tables = [];
  const shown = data.runs.map((run, i) => [run, i])
    .filter(([run, i]) => !hidden.has(i) && Object.hasOwn(run.curves, metric));
  const usable = log && shown.some(([run]) => run.curves[metric].some((x) => x > 0));
  const positive = (values) => (usable ? values.map((x) => (x > 0 ? x : null)) : values);
  const add = (run, i, values, more) => {
    tables.push([run.x, positive(values)]);
    const dash = i < RUN_COLOURS.length ? [] : [6, 4];
    series.push({ label: run.name, stroke: colourOf(i), dash, width: 2, spanGaps: true, ...more,
      points: { show: run.x.length < 2 }, value: (_, x) => number(x, 4) });
  };
  for (const [run, i] of shown) {
    if (weight) add(run, i, run.curves[metric], { alpha: 0.25, width: 1, class: "raw" });
    add(run, i, smooth(run.curves[metric], weight), {});
  }
  if (!shown.length) return null;
  const place = make("div", { class: "chart" });
  $("charts").append(place);
  return new uPlot({
    width: place.clientWidth, height: 190,
    title: metric + (log && !usable ? " (linear: nothing above 0)" : ""),
    cursor: { sync: { key: "steps", setSeries: false }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: usable ? { distr: 3 } : {} },
    axes: axes(), series,
    hooks: { setScale: [(chart, key) => key === "x" && zoomedBy(chart)] },
  }, uPlot.join(tables), place);
}

function drawCurves() {
  const words = $("metric-search").value.toLowerCase().split(/\s+/), log = $("log").checked;
  charts.forEach((chart) => chart.destroy());
  $("charts").replaceChildren();
  charts = [];
  drawing = true;
  const asked = metricNames.filter((name) => words.every((w) => name.toLowerCase().includes(w)));
  charts = asked.map((name) => chartOf(name, log)).filter(Boolean);
  // uPlot sets scales, and tells of them, after this turn.
  queueMicrotask(() => { drawing = false; });
  if (zoom) zoomTo(...zoom);
  const means = data.runs.filter((run) => run.per_point > 1)
    .map((run) => `each point of ${run.name} is the mean of ${run.per_point} steps`);
  $("curves-note").textContent = [`${charts.length} of ${metricNames.length} metrics`, ...means,
    ...(log ? ["values of 0 or below are left out of a log axis"] : [])].join("; ");
}

function zoomedBy(chart) {
  if (drawing || zooming) return;
  const { min, max } = chart.scales.x, x = chart.data[0];
  zoomTo(...(min <= x[0] && max >= x.at(-1) ? [null, null] : [min, max]));
}

function zoomTo(from, to) {
  zoom = from === null ? null : [from, to];
  $("zoom-from").value = from === null ? "" : Math.round(from);
  $("zoom-to").value = to === null ? "" : Math.round(to);
  zooming = true;
  for (const chart of charts) {
    const x = chart.data[0];
    chart.batch(() => chart.setScale("x", { min: from ?? x[0], max: to ?? x.at(-1) }));
  }
  queueMicrotask(() => { zooming = false; });
}

function zoomTyped() {
  const steps = data.runs.flatMap((run) => run.x);
  const typed = (id, other) => ($(id).value === "" ? other : Number($(id).value));
  const from = typed("zoom-from", Math.min(...steps)), to = typed("zoom-to", Math.max(...steps));
  if (from < to) zoomTo(from, to);
}

