// The page of `dfpo report`. Texts of prompts, answers, metrics and settings are anybody's: they
// become text nodes and nothing else, and the page's policy runs no other script than this.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const RUN_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8a8a8a"];
const CIVIDIS = [[0, 32, 76], [65, 77, 107], [124, 123, 120], [187, 173, 108], [255, 233, 69]];
const DIVERGING = [[179, 88, 6], [241, 163, 64], [240, 240, 240], [103, 169, 207], [33, 102, 172]];
const LISTED = 400; // answers in the list at once
const view = { hidden: new Set(), chosen: null, held: null, token: 0, shown: [], zoom: null };

// Elements.

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "line", "polyline", "polygon", "circle", "text"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

function table(head, rows) {
  const cells = (tag, row) => row.map((cell) => make(tag, {}, cell));
  return [
    make("thead", {}, make("tr", {}, ...cells("th", head))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row)))),
  ];
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}

function number(x, digits = 3) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  return Number.isInteger(x) ? String(x) : String(Number(x.toPrecision(digits)));
}

function signed(x) {
  return (x > 0 ? "+" : "") + number(x);
}

function colourOf(run) {
  return RUN_COLOURS[run % RUN_COLOURS.length];
}

function swatch(run) {
  const line = make("span", { class: "swatch" });
  line.style.borderColor = colourOf(run);
  line.style.borderTopStyle = run < RUN_COLOURS.length ? "solid" : "dashed";
  return line;
}

// Overview.

function drawOverview() {
  const scores = ["id", "ood", "id_greedy", "ood_greedy"].filter((key) =>
    data.runs.some((run) => run.after && key in run.after));
  const head = ["run", "algorithm", "noise", "seed", "state", "steps",
    ...scores.map((key) => `${key.replace("_", ", ")}: before → after`)];
  const rows = data.runs.map((run, i) => [
    runSwitch(run, i), run.algorithm, run.noise, run.seed, run.state, `${run.done} of ${run.steps}`,
    ...scores.map((key) => run.after
      ? `${number(run.before[key])} → ${number(run.after[key])}` : "–"),
  ]);
  $("summary").replaceChildren(make("table", {}, ...table(head, rows)));
}

function runSwitch(run, i) {
  const box = make("input", { type: "checkbox", change: () => {
    view.hidden[box.checked ? "delete" : "add"](i);
    drawCurves();
  } });
  box.checked = true;
  return make("label", {}, box, " ", swatch(i), run.name);
}

// Curves.

const metricNames = [...new Set(data.runs.flatMap((run) => Object.keys(run.curves)))];
let charts = [];

function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((x) => {
    if (x === null) return null;
    sum = weight * sum + (1 - weight) * x;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function chartOf(metric, log) {
  const weight = Number($("smoothing").value), series = [{ label: "step" }], tables = [];
  const shown = data.runs.map((run, i) => [run, i])
    .filter(([run, i]) => !view.hidden.has(i) && Object.hasOwn(run.curves, metric));
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
  const style = getComputedStyle(document.documentElement);
  const axis = { stroke: style.getPropertyValue("--ink"),
    grid: { stroke: style.getPropertyValue("--line"), width: 1 } };
  const place = make("div", { class: "chart" });
  $("charts").append(place);
  return new uPlot({
    width: place.clientWidth, height: 190,
    title: metric + (log && !usable ? " (linear: nothing above 0)" : ""),
    cursor: { sync: { key: "steps", setSeries: false }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: usable ? { distr: 3 } : {} },
    axes: [axis, { ...axis, size: 62 }], series,
    hooks: { setScale: [(chart, key) => key === "x" && zoomedBy(chart)] },
  }, uPlot.join(tables), place);
}

function drawCurves() {
  const words = $("metric-search").value.toLowerCase().split(/\s+/), log = $("log").checked;
  charts.forEach((chart) => chart.destroy());
  $("charts").replaceChildren();
  charts = [];
  view.drawing = true;
  const asked = metricNames.filter((name) => words.every((w) => name.toLowerCase().includes(w)));
  charts = asked.map((name) => chartOf(name, log)).filter(Boolean);
  view.drawing = false;
  if (view.zoom) zoomTo(...view.zoom);
  const means = data.runs.filter((run) => run.per_point > 1)
    .map((run) => `each point of ${run.name} is the mean of ${run.per_point} steps`);
  $("curves-note").textContent = [`${charts.length} of ${metricNames.length} metrics`, ...means,
    ...(log ? ["values of 0 or below are left out of a log axis"] : [])].join("; ");
}

function zoomedBy(chart) {
  // uPlot tells of the first scale of a new chart too.
  if (view.drawing || view.zooming || chart.status === 0) return;
  const { min, max } = chart.scales.x, x = chart.data[0];
  zoomTo(...(min <= x[0] && max >= x.at(-1) ? [null, null] : [min, max]));
}

function zoomTo(from, to) {
  view.zoom = from === null ? null : [from, to];
  $("zoom-from").value = from === null ? "" : Math.round(from);
  $("zoom-to").value = to === null ? "" : Math.round(to);
  view.zooming = true;
  for (const chart of charts) {
    const x = chart.data[0];
    chart.batch(() => chart.setScale("x", { min: from ?? x[0], max: to ?? x.at(-1) }));
  }
  // uPlot applies scales, and tells of them, after this turn.
  queueMicrotask(() => { view.zooming = false; });
}

function zoomTyped() {
  const steps = data.runs.flatMap((run) => run.x);
  const typed = (id, other) => ($(id).value === "" ? other : Number($(id).value));
  const from = typed("zoom-from", Math.min(...steps)), to = typed("zoom-to", Math.max(...steps));
  if (from < to) zoomTo(from, to);
}

// Answers.

const answers = data.runs.flatMap((run, i) => run.answers.map((a) => ({ ...a, run: i })));
const PAINTS = {
  value: { of: (a) => a.values, colours: CIVIDIS, doc: "predicted return before the token" },
  spread: { of: (a) => a.spreads, colours: CIVIDIS, doc: "standard deviation of that prediction" },
  change: { of: (a) => a.changes, colours: DIVERGING, doc: "by how much the token moves the value" },
  advantage: { of: (a) => a.advantages, colours: DIVERGING, doc: "what the policy's loss took" },
  none: { of: () => [], colours: CIVIDIS, doc: "" },
};

function unpack(answer) {
  // Quantiles are 16-bit integers between the answer's least and greatest; the last is missing.
  if (answer.rows) return answer;
  const bytes = Uint8Array.from(atob(answer.packed.bytes), (c) => c.charCodeAt(0));
  const all = new Uint16Array(bytes.buffer), { low, high, width } = answer.packed;
  const value = (n) => (n === 65535 ? NaN : low + (n / 65534) * (high - low));
  answer.rows = [];
  for (let i = 0; width && i < all.length; i += width) {
    answer.rows.push([...all.subarray(i, i + width)].map(value));
  }
  const mean = (row) => row.reduce((a, b) => a + b, 0) / row.length;
  const after = answer.rows.length > answer.values.length ? mean(answer.rows.at(-1)) : null;
  const next = [...answer.values.slice(1), after];
  answer.changes = answer.values.map((v, i) => (v === null || next[i] === null ? null : next[i] - v));
  return answer;
}

function startFilters() {
  const all = ["", "all"], distinct = (key) => [...new Set(answers.map((a) => a[key]))];
  fill($("f-run"), [all, ...data.runs.map((run, i) => [i, run.name])]);
  fill($("f-step"), [all, ...distinct("step").sort((a, b) => a - b).map((x) => [x, x])]);
  fill($("f-domain"), [all, ...distinct("domain").map((x) => [`=${x}`, x])]);
  fill($("f-verdict"), [all, ["right", "right"], ["wrong", "wrong"]]);
  fill($("f-noise"), [all, ["noisy", "changed by noise"], ["true", "as it was"]]);
  fill($("paint"), Object.keys(PAINTS).map((name) => [name, name]));
  const kept = data.runs.map((run) => `${run.shown_steps} of ${run.kept_steps} kept steps of `
    + `${run.name}`).filter((_, i) => data.runs[i].shown_steps < data.runs[i].kept_steps);
  view.left = kept.length ? `; the page has room for ${kept.join(", ")}` : "";
}

function matches(answer) {
  const is = (id, value) => $(id).value === "" || $(id).value === String(value);
  const words = $("f-search").value.toLowerCase();
  return is("f-run", answer.run) && is("f-step", answer.step) && is("f-domain", `=${answer.domain}`)
    && is("f-verdict", answer.right ? "right" : "wrong")
    && is("f-noise", answer.told === answer.clean ? "true" : "noisy")
    && (!words || `${answer.prompt}\n${answer.answer}`.toLowerCase().includes(words));
}

function rewardOf(answer) {
  const told = answer.told === answer.clean ? [`reward ${number(answer.clean)}`] : [
    make("span", { class: "noisy" }, `told ${number(answer.told)}, clean ${number(answer.clean)}`)];
  return [answer.right ? "✓ right, " : "✗ wrong, ", ...told];
}

function drawList() {
  view.shown = answers.filter(matches);
  const items = view.shown.slice(0, LISTED).map((answer) => make("li", {}, make("button", {
    type: "button", click: () => choose(answer),
  }, swatch(answer.run), `step ${answer.step}, ${answer.domain}, `, ...rewardOf(answer),
  make("span", { class: "snippet" }, answer.answer || "(empty)"))));
  $("list").replaceChildren(...items);
  const cut = view.shown.length > LISTED ? `, the first ${LISTED} listed` : "";
  $("answers-note").textContent = answers.length
    ? `${view.shown.length} of ${answers.length} answers${cut}${view.left}` : "No answers were kept.";
  choose(view.shown.includes(view.chosen) ? view.chosen : view.shown[0] ?? null);
}

function choose(answer) {
  if (answer !== view.chosen) view.token = 0;
  view.chosen = answer;
  [...$("list").querySelectorAll("button")].forEach((button, i) =>
    button.setAttribute("aria-current", view.shown[i] === answer));
  drawPanels();
}

function step(by) {
  const place = view.shown.indexOf(view.chosen) + by;
  if (!view.shown[place]) return;
  choose(view.shown[place]);
  $("list").querySelectorAll("button")[place]?.scrollIntoView({ block: "nearest" });
}

function drawPanels() {
  const pair = [view.held, view.chosen].filter((a, i, both) => a && both.indexOf(a) === i);
  $("panels").replaceChildren(...pair.map(panel));
}

function panel(answer) {
  unpack(answer);
  const name = `${data.runs[answer.run].name}, step ${answer.step}, answer ${answer.sample}`;
  const facts = [["prompt", answer.prompt], ["answer", answer.answer],
    ...(answer.expected === null ? [] : [["expected", answer.expected]])];
  const held = answer === view.held;
  const hold = make("button", { type: "button", click: () => holdBeside(held ? null : answer) },
    held ? "let go" : "hold beside");
  const node = make("article", { class: "panel" },
    make("h3", {}, swatch(answer.run), name, " ", hold),
    make("p", {}, `${answer.domain}: `, ...rewardOf(answer),
      answer.truncated ? ", cut off at the longest answer" : ""),
    twins(answer),
    make("dl", {}, ...facts.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])));
  const parts = { tokens: make("div", { class: "tokens", tabindex: 0, role: "group",
    "aria-label": "tokens; arrow keys move along them" }), fan: make("div"), dots: make("div"),
    words: make("p", { class: "note words", "aria-live": "polite" }) };
  const at = (i) => { view.token = i; pointAt(answer, parts, i); };
  const colours = paintOf(answer);
  parts.tokens.append(...answer.tokens.map((text, i) => {
    const token = make("span", { class: "token", pointerenter: () => at(i), click: () => at(i) },
      text.replaceAll("\n", "↵") || "·");
    if (colours[i]) [token.style.background, token.style.color] = colours[i];
    return token;
  }));
  node.append(scaleOf(answer), parts.tokens, parts.fan, parts.dots, parts.words);
  if (answer.cut) node.append(make("p", { class: "note" }, `the first ${answer.tokens.length} tokens`));
  node.move = (by) => at(Math.max(0, Math.min(answer.tokens.length - 1, view.token + by)));
  if (answer.tokens.length) node.move(0);
  return node;
}

function twins(answer) {
  const same = answers.filter((a) => a !== answer && a.prompt === answer.prompt);
  if (!same.length) return "";
  const select = make("select", { change: () => same[select.value] && beside(answer, same[select.value]) });
  fill(select, [["", `${same.length} more on this prompt`], ...same.map((a, i) => [i,
    `${data.runs[a.run].name}, step ${a.step}, ${a.right ? "right" : "wrong"}, told ${number(a.told)}`])]);
  return make("p", {}, make("label", {}, "beside it ", select));
}

function beside(answer, other) {
  view.held = answer;
  view.chosen = other;
  drawList();
}

function holdBeside(answer) {
  view.held = answer;
  drawPanels();
}

function pointAt(answer, parts, i) {
  [...parts.tokens.children].forEach((token, n) => token.classList.toggle("chosen", n === i));
  const row = answer.rows[i], values = [];
  if (row) {
    parts.fan.replaceChildren(fan(answer, i));
    parts.dots.replaceChildren(dotplot(answer, row));
    values.push(`value ${number(answer.values[i])} ± ${number(answer.spreads[i])}, `
      + `5 to 95 % ${number(percentile(row, 0.05))} to ${number(percentile(row, 0.95))}, `
      + `the token moves it by ${signed(answer.changes[i])}`);
  }
  values.push(`advantage ${signed(answer.advantages[i])}`);
  parts.words.textContent = `token ${i + 1} of ${answer.tokens.length} `
    + `“${answer.tokens[i].slice(0, 60)}”: ${values.join(", ")}`;
}

// Colours.

function bounds(answer, name) {
  const { low, high } = data.runs[answer.run], values = PAINTS[name].of(answer).filter(Number.isFinite);
  if (name === "value") return [low, high];
  const most = Math.max(1e-12, ...values.map(Math.abs));
  return name === "spread" ? [0, Math.max(most, (high - low) / 2)] : [-most, most];
}

function between(colours, share) {
  const place = Math.max(0, Math.min(1, share)) * (colours.length - 1), i = Math.min(3, Math.floor(place));
  return colours[i].map((c, k) => Math.round(c + (place - i) * (colours[i + 1][k] - c)));
}

function paintOf(answer) {
  const name = $("paint").value, [low, high] = bounds(answer, name);
  return PAINTS[name].of(answer).map((x) => {
    if (!Number.isFinite(x)) return null;
    const [r, g, b] = between(PAINTS[name].colours, (x - low) / (high - low));
    return [`rgb(${r} ${g} ${b})`, 0.3 * r + 0.59 * g + 0.11 * b < 115 ? "#ffffff" : "#000000"];
  });
}

function scaleOf(answer) {
  const name = $("paint").value, { colours, doc, of } = PAINTS[name], [low, high] = bounds(answer, name);
  if (!of(answer).length) return make("p", { class: "note" }, name === "none" ? "" : `no ${name} known`);
  const bar = make("i");
  bar.style.background = `linear-gradient(90deg, ${colours.map((c) => `rgb(${c.join(" ")})`).join(", ")})`;
  return make("div", { class: "scale" }, number(low), bar, number(high), `${name}: ${doc}`);
}

// Drawings of one answer.

function percentile(row, level) {
  const place = Math.max(0, Math.min(row.length - 1, level * row.length - 0.5)), i = Math.floor(place);
  return row[i] + (place - i) * ((row[i + 1] ?? row[i]) - row[i]);
}

function extent(answer) {
  const { low, high } = data.runs[answer.run], { packed, told, clean } = answer;
  const all = [low, high, packed.low, packed.high, told, clean].filter(Number.isFinite);
  return [Math.min(...all), Math.max(...all)];
}

function fan(answer, here) {
  const [low, high] = extent(answer), n = answer.values.length, rows = answer.rows.slice(0, n);
  const x = (i) => 40 + ((i + 0.5) / n) * 550, y = (v) => 100 - ((v - low) / (high - low || 1)) * 90;
  const points = (level) => rows.map((row, i) => `${x(i)},${y(percentile(row, level)) || 0}`);
  const band = (a, b, name) => make("polygon", { class: name,
    points: [...points(a), ...points(b).reverse()].join(" ") });
  const line = answer.values.map((v, i) => `${x(i)},${y(v ?? 0)}`).join(" ");
  return make("svg", { viewBox: "0 0 600 116", role: "img",
    "aria-label": "predicted return along the answer: mean, middle half, 5 to 95 %" },
  make("line", { class: "axis", x1: 40, x2: 590, y1: 100, y2: 100 }),
  make("text", { x: 0, y: 104 }, number(low)), make("text", { x: 0, y: 16 }, number(high)),
  band(0.05, 0.95, "outer"), band(0.25, 0.75, "inner"), make("polyline", { class: "mean", points: line }),
  make("line", { class: "here", x1: x(here), x2: x(here), y1: 6, y2: 100 }),
  make("text", { x: 40, y: 114 }, "mean, middle half and 5 to 95 % of the return, token by token"));
}

function dotplot(answer, row) {
  const [low, high] = extent(answer), bins = 40, heights = new Map();
  const x = (v) => 40 + ((v - low) / (high - low || 1)) * 550;
  const dots = row.filter(Number.isFinite).map((v) => {
    const bin = Math.round(((v - low) / (high - low || 1)) * bins), n = heights.get(bin) ?? 0;
    heights.set(bin, n + 1);
    return make("circle", { class: "dot", r: 4, cx: 40 + (bin / bins) * 550, cy: 124 - 8 * n });
  });
  const mark = (v, name) => make("line", { class: name, x1: x(v), x2: x(v), y1: 0, y2: 130 });
  const mean = row.reduce((a, b) => a + b, 0) / row.length;
  const words = `each dot is 1/${row.length} of the chance; line: mean, dotted: clean reward`
    + (answer.told === answer.clean ? "" : ", dashed: told reward");
  return make("svg", { viewBox: "0 0 600 158", role: "img", "aria-label": "return distribution" },
    make("line", { class: "axis", x1: 40, x2: 590, y1: 130, y2: 130 }),
    make("text", { x: 40, y: 143 }, number(low)),
    make("text", { x: 590, y: 143, "text-anchor": "end" }, number(high)),
    make("text", { x: 40, y: 156 }, words), ...dots,
    ...(Number.isFinite(mean) ? [mark(mean, "mean")] : []), mark(answer.clean, "clean"),
    ...(answer.told === answer.clean ? [] : [mark(answer.told, "told")]));
}

// Noise, settings, plots.

function drawNoise() {
  for (const [i, run] of data.runs.entries()) {
    const mine = answers.filter((a) => a.run === i), groups = new Map([["all", mine]]);
    mine.forEach((a) => groups.set(`${a.domain} `, [...(groups.get(`${a.domain} `) ?? []), a]));
    const mean = (group, key) => number(group.reduce((sum, a) => sum + a[key], 0) / group.length);
    const share = (group) => group.filter((a) => a.told !== a.clean).length;
    const rows = [...groups].map(([name, group]) => [name, group.length,
      `${share(group)} (${number((100 * share(group)) / group.length)} %)`,
      mean(group, "clean"), mean(group, "told")]);
    const head = ["kept answers of", "answers", "changed by noise", "mean clean", "mean told"];
    $("noise-tables").append(make("h3", {}, swatch(i), `${run.name}: noise ${run.noise}`));
    if (!mine.length) $("noise-tables").append(make("p", { class: "note" }, "No answers were kept."));
    else $("noise-tables").append(make("div", { class: "wide" }, make("table", {}, ...table(head, rows))),
      scatter(mine, run));
  }
}

function scatter(mine, run) {
  const pairs = new Map();
  mine.forEach((a) => pairs.set(`${a.clean} ${a.told}`, [a.clean, a.told,
    (pairs.get(`${a.clean} ${a.told}`)?.[2] ?? 0) + 1]));
  const all = mine.flatMap((a) => [a.clean, a.told, run.low, run.high]);
  const low = Math.min(...all), high = Math.max(...all), size = high - low || 1;
  const x = (v) => 60 + ((v - low) / size) * 220, y = (v) => 250 - ((v - low) / size) * 220;
  const most = Math.max(...[...pairs.values()].map((p) => p[2]));
  const svg = make("svg", { viewBox: "0 0 460 290", role: "img", "aria-label": "told against clean" },
    make("line", { class: "axis", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }),
    make("text", { x: 60, y: 284 }, `clean reward, ${number(low)} to ${number(high)}`),
    make("text", { x: 0, y: 12 }, `told reward, ${number(low)} to ${number(high)}`),
    ...[...pairs.values()].map(([clean, told, n]) => make("circle", { class: "inner",
      cx: x(clean), cy: y(told), r: 3 + 17 * Math.sqrt((n - 1) / most) })),
    ...(pairs.size > 12 ? [] : [...pairs.values()].map(([clean, told, n]) =>
      make("text", { x: x(clean) + 22, y: y(told) + 4 }, `${n} of ${mine.length}`))));
  svg.style.maxWidth = "28rem";
  return svg;
}

function drawSettings() {
  const several = data.runs.length > 1, only = $("differing").checked;
  $("differing-text").textContent = several ? "only what differs between the runs"
    : "only what differs from the algorithm's own default";
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.settings)))];
  const rows = names.map((name) => ({ name, values: data.runs.map((run) => run.settings[name] ?? "–"),
    usual: data.runs[0].defaults[name] ?? "–" }));
  const differs = ({ values, usual }) => (several ? new Set(values).size > 1 : values[0] !== usual);
  const kept = rows.filter((row) => !only || differs(row));
  const head = ["setting", ...data.runs.map((run) => run.name), ...(several ? [] : ["default"])];
  $("settings-table").replaceChildren(...table(head, kept.map(({ name, values, usual }) =>
    [name, ...values, ...(several ? [] : [usual])])));
  [...$("settings-table").tBodies[0].rows].forEach((row, i) =>
    row.classList.toggle("differs", differs(kept[i])));
}

function drawPlots() {
  $("images").append(...data.runs.flatMap((run) => run.plots.map((plot) => make("figure", {},
    make("img", { src: plot.source, alt: `${plot.name} of ${run.name}`, loading: "lazy" }),
    make("figcaption", {}, `${run.name}: ${plot.name.replaceAll("_", " ")}`)))));
  if (!$("images").children.length) $("images").append(make("p", { class: "note" }, "None was drawn."));
}

// Keys.

function cyclePaint() {
  $("paint").selectedIndex = ($("paint").selectedIndex + 1) % $("paint").options.length;
  drawPanels();
}

function toggleKeys() {
  $("keys").hidden = !$("keys").hidden;
  $("keys-button").setAttribute("aria-expanded", !$("keys").hidden);
}

const movePanels = (by) => document.querySelectorAll(".panel").forEach((node) => node.move(by));
const KEYS = {
  "/": () => $("f-search").focus(), j: () => step(1), k: () => step(-1), v: cyclePaint,
  b: () => holdBeside(view.chosen), Escape: () => holdBeside(null), "?": toggleKeys,
  ArrowRight: () => movePanels(1), ArrowLeft: () => movePanels(-1),
};

addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea");
  if (typing && event.key === "Escape") event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

$("smoothing").value = 0;
startFilters();
drawOverview();
drawCurves();
drawList();
drawNoise();
drawSettings();
drawPlots();
["metric-search", "smoothing", "log"].forEach((id) => $(id).addEventListener("input", drawCurves));
["zoom-from", "zoom-to"].forEach((id) => $(id).addEventListener("change", zoomTyped));
$("zoom-all").addEventListener("click", () => zoomTo(null, null));
$("filters").addEventListener("input", (event) =>
  (event.target.id === "paint" ? drawPanels() : drawList()));
document.querySelectorAll("form").forEach((f) => f.addEventListener("submit", (e) => e.preventDefault()));
$("differing").addEventListener("input", drawSettings);
$("keys-button").addEventListener("click", toggleKeys);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCurves);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCurves(); } });
