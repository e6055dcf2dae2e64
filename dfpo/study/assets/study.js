// The page of `dfpo compare` and `dfpo critic`: curves, intervals and tables, filtered by arm,
// regime and domain.

const shownArms = new Set(data.arms);
const colourOfArm = (arm) => colourOf(data.arms.indexOf(arm));
let drawn = [];

function isShown({ arm, noise, domain }) {
  const is = (id, value) => value === undefined || ["", `=${value}`].includes($(id).value);
  return (arm === undefined || !data.arms.includes(arm) || shownArms.has(arm))
    && is("f-noise", noise) && is("f-domain", domain);
}

function startFilters() {
  for (const key of ["noise", "domain"]) {
    const all = [...data.curves, ...data.forest.rows].map((row) => row[key]);
    const values = [...new Set(all)];
    fill($(`f-${key}`), "all", values);
    $(`f-${key}`).parentElement.hidden = values.length < 2;
  }
  $("arms").replaceChildren(...data.arms.map((arm, i) => {
    const box = make("input", { type: "checkbox", change: () => {
      shownArms[box.checked ? "add" : "delete"](arm);
      draw();
    } });
    box.checked = true;
    return make("label", {}, box, " ", swatch(i), arm);
  }));
}

// Curves.

function chartOf(curve) {
  const arms = Object.keys(curve.arms).filter((arm) => shownArms.has(arm));
  if (!arms.length) return null;
  const weight = Number($("smoothing").value), series = [{ label: "step" }], rows = [], bands = [];
  for (const arm of arms) {
    const stroke = colourOfArm(arm), at = series.length, edge = { stroke, width: 0, class: "raw",
      points: { show: false } };
    series.push(lineOf(data.arms.indexOf(arm), arm),
      { ...edge, label: "highest" }, { ...edge, label: "lowest" });
    rows.push(...["mean", "high", "low"].map((name) => smooth(curve.arms[arm][name], weight)));
    bands.push({ series: [at + 1, at + 2], fill: `${stroke}2e` });
  }
  const title = [curve.domain, curve.noise].join(", ");
  return plot({ height: 240, title, scales: { x: { time: false } }, series, bands },
    [curve.x, ...rows]);
}

// Intervals.

// Differences have a sign and the decimals of the tables; scores have units of their own.
function amount(x) {
  const { decimals } = data.forest;
  if (decimals === undefined || !Number.isFinite(x)) return number(x);
  return (x >= 0 ? "+" : "") + x.toFixed(decimals);
}

function forestOf(panel, rows, low, high) {
  const span = high - low || 1, x = (v) => 8 + ((v - low) / span) * 344;
  const line = (name, [a, b], y, width) => {
    if (!Number.isFinite(a) || !Number.isFinite(b)) return [];
    const node = make("line", { x1: x(a), x2: x(b), y1: y, y2: y, "stroke-width": width });
    node.style.stroke = name;
    return [node];
  };
  const marks = rows.flatMap((row, i) => {
    const y = 14 + 40 * i, colour = colourOfArm(row.arm);
    const said = [row.arm, row.noise, row.domain].filter(Boolean).join(", ");
    const dot = (v, r, cy) => {
      const node = make("circle", { cx: x(v), cy, r });
      node.style.fill = colour;
      return Number.isFinite(v) ? [node] : [];
    };
    const value = `${amount(row.mean)} [${row.thin.map(amount).join(", ")}]`;
    return [make("text", { x: 8, y }, said),
      make("text", { x: 352, y, "text-anchor": "end" }, value),
      ...(low <= 0 && high >= 0 ? [make("line", { class: "clean", x1: x(0), x2: x(0), y1: y + 3,
        y2: y + 21 })] : []),
      ...line(colour, row.thin, y + 9, 1.5), ...line(colour, row.thick, y + 9, 5),
      ...dot(row.mean, 4, y + 9), ...row.seeds.flatMap((v) => dot(v, 2, y + 18))];
  });
  const bottom = 40 * rows.length;
  return make("figure", {}, make("figcaption", {}, panel), make("svg", { role: "img",
    viewBox: `0 0 360 ${bottom + 16}`, "aria-label": panel }, ...marks,
  make("text", { x: 8, y: bottom + 13 }, amount(low)),
  make("text", { x: 352, y: bottom + 13, "text-anchor": "end" }, amount(high))));
}

function drawForest() {
  const { panels, rows, shared, text } = data.forest, shown = rows.filter(isShown);
  const ends = (some) => [0, ...some.flatMap((row) =>
    [row.mean, ...row.thin, ...row.thick, ...row.seeds])].filter(Number.isFinite);
  $("forest-note").textContent = text;
  $("panels-of-forest").replaceChildren(...panels.flatMap((panel) => {
    const mine = shown.filter((row) => row.panel === panel), scale = ends(shared ? shown : mine);
    return mine.length ? [forestOf(panel, mine, Math.min(...scale), Math.max(...scale))] : [];
  }));
}

// Tables.

function table(head, rows) {
  const row = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
  const body = rows.map((cells) => row("td", cells));
  return make("div", { class: "wide" }, make("table", {},
    make("thead", {}, row("th", head)), make("tbody", {}, ...body)));
}

function cell(text) {
  const bold = /^\*\*(.*)\*\*$/.exec(text);
  return bold ? make("strong", {}, bold[1]) : text;
}

function drawTables() {
  $("all-tables").replaceChildren(...data.tables.flatMap(({ title, text, head, rows }) => {
    const named = (row) => Object.fromEntries(["domain", "noise", "arm"]
      .filter((key) => head.includes(key)).map((key) => [key, row[head.indexOf(key)]]));
    const shown = rows.filter((row) => isShown(named(row)));
    return [make("h3", {}, title), make("p", { class: "note" }, text),
      table(head, shown.map((row) => row.map(cell)))];
  }));
}

function draw() {
  drawn.forEach((chart) => chart.destroy());
  $("charts").replaceChildren();
  drawn = data.curves.filter(isShown).map(chartOf).filter(Boolean);
  drawForest();
  drawTables();
}

$("about").textContent = data.about;
for (const [id, has] of [["curves", data.curves.length], ["forest", data.forest.rows.length]]) {
  $(id).hidden = document.querySelector(`nav [href="#${id}"]`).hidden = !has;
}
$("smoothing").parentElement.hidden = !data.curves.length;
startFilters();
draw();
$("filters").addEventListener("input", draw);
redrawWith(draw);
