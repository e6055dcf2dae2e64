// Curves of metrics over steps.

let charts = [];

function chartOf(metric) {
  const switches = $("summary").querySelectorAll("input");
  const shown = data.runs.map((run, i) => ({ ...run, i, values: run.curves[metric] }))
    .filter((run) => switches[run.i].checked && Object.hasOwn(run.curves, metric));
  if (!shown.length) return null;
  const usable = shown.some((run) => run.values.some((x) => x > 0)), asked = $("log").checked;
  const log = asked && usable, weight = Number($("smoothing").value);
  const positive = (values) => (log ? values.map((x) => (x > 0 ? x : null)) : values);
  const series = [{ label: "step" }], tables = [];

  for (const { x, values, i, name } of shown) {
    const line = { ...lineOf(i, name), points: { show: x.length < 2 } };
    if (weight) {
      series.push({ ...line, alpha: 0.25, width: 1, class: "raw" });
      tables.push([x, positive(values)]);
    }
    series.push(line);
    tables.push([x, positive(smooth(values, weight))]);
  }

  // uPlot draws what is always 0 on an axis up to 100.
  const range = (_, low, high) => (low || high ? uPlot.rangeNum(low, high, 0.1, true) : [-1, 1]);
  return plot({
    height: 190, series, title: metric + (asked && !usable ? " (linear: nothing above 0)" : ""),
    scales: { x: { time: false }, y: log ? { distr: 3 } : { range } },
    drag: { setScale: false }, hooks: { setSelect: [zoomToSelection] },
  }, uPlot.join(tables));
}

function drawCurves() {
  const words = $("metric-search").value.toLowerCase().split(/\s+/);
  const asked = data.metrics.filter((name) => words.every((w) => name.toLowerCase().includes(w)));
  charts.forEach((chart) => chart.destroy());
  $("charts").replaceChildren();
  charts = asked.map(chartOf).filter(Boolean);
  zoom();
  $("curves-note").textContent =
    `${charts.length} of ${data.metrics.length} metrics${data.notes.curves}`;
}

// Two fields say which steps are seen; where they are empty, all.

function zoom() {
  for (const chart of charts) {
    const steps = chart.data[0];
    const min = Number($("zoom-from").value || steps[0]);
    const max = Number($("zoom-to").value || steps.at(-1));
    if (min < max) chart.setScale("x", { min, max });
  }
}

function zoomTo(from, to) {
  $("zoom-from").value = from;
  $("zoom-to").value = to;
  zoom();
}

function zoomToSelection(chart) {
  const { left, width } = chart.select;
  const [from, to] = [left, left + width].map((at) => Math.round(chart.posToVal(at, "x")));
  chart.setSelect({ left: 0, width: 0 }, false);
  if (from < to) zoomTo(from, to);
}
