// Overview, noise, settings, plots; keys; and the start of it all.

function drawOverview() {
  const { head, rows } = data.overview;
  $("summary").replaceChildren(make("table", {}, ...table(["run", ...head],
    rows.map((row, i) => [runSwitch(data.runs[i], i), ...row]))));
}

function runSwitch(run, i) {
  const box = make("input", { type: "checkbox", change: () => {
    hidden[box.checked ? "delete" : "add"](i);
    drawCurves();
  } });
  box.checked = true;
  return make("label", {}, box, " ", swatch(i), run.name);
}

function drawNoise() {
  for (const [i, run] of data.runs.entries()) {
    $("noise-tables").append(make("h3", {}, swatch(i), `${run.name}: noise ${run.noise}`),
      ...run.noise_tables.map(({ head, rows }) =>
        make("div", { class: "wide" }, make("table", {}, ...table(head, rows)))));
    if (!run.noise_tables.length) {
      $("noise-tables").append(make("p", { class: "note" }, "No answers were kept."));
    }
  }
}

function drawSettings() {
  const { head, rows, what } = data.settings;
  const kept = rows.filter((row) => row.differs || !$("differing").checked);
  $("differing-text").textContent = what;
  $("settings-table").replaceChildren(...table(head, kept.map((row) => row.cells)));
  [...$("settings-table").tBodies[0].rows].forEach((row, i) =>
    row.classList.toggle("differs", kept[i].differs));
}

function drawPlots() {
  $("images").append(...data.runs.flatMap((run) => run.plots.map((plot) => make("figure", {},
    make("img", { src: plot.source, alt: `${plot.name} of ${run.name}`, loading: "lazy" }),
    make("figcaption", {}, `${run.name}: ${plot.name.replaceAll("_", " ")}`)))));
  if (!$("images").children.length) $("images").append("None was drawn.");
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

function move(by) {
  const panels = [...document.querySelectorAll(".panel")];
  const last = Math.max(...panels.map((node) => node.last)); // of the longer answer
  view.token = Math.max(0, Math.min(view.token + by, last));
  panels.forEach((node) => node.point(view.token));
}

const KEYS = {
  "/": () => $("f-search").focus(), j: () => step(1), k: () => step(-1), v: cyclePaint,
  b: () => holdBeside(view.chosen), Escape: () => holdBeside(null), "?": toggleKeys,
  ArrowRight: () => move(1), ArrowLeft: () => move(-1),
};

addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea");
  if (typing && event.key === "Escape") event.target.blur();
  const own = typing || event.ctrlKey || event.metaKey || event.altKey; // not ours to take
  if (own || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// A page that `dfpo report --live` serves loads itself anew, with what was set on it.

const FIELDS = [...document.querySelectorAll("input[id], select")];

function save() {
  const fields = FIELDS.map((f) => [f.id, f.type === "checkbox" ? f.checked : f.value]);
  const { run, step, sample } = view.chosen ?? {};
  const all = { fields, chosen: [run, step, sample], zoom };
  sessionStorage.setItem("view", JSON.stringify(all));
}

function restore() {
  const saved = JSON.parse(sessionStorage.getItem("view") ?? "null");
  for (const [id, value] of saved?.fields ?? []) {
    $(id)[typeof value === "boolean" ? "checked" : "value"] = value;
  }
  zoom = saved?.zoom ?? null;
  const is = (a) => [a.run, a.step, a.sample].every((x, i) => x === saved?.chosen[i]);
  view.chosen = answers.find(is) ?? null;
}

$("smoothing").value = 0;
startFilters();
if (data.live) restore();
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
addEventListener("submit", (event) => event.preventDefault());
$("differing").addEventListener("input", drawSettings);
$("keys-button").addEventListener("click", toggleKeys);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCurves);
let width = innerWidth;
addEventListener("resize", () => {
  // A phone's bars come and go and change the height alone.
  if (innerWidth !== width) drawCurves();
  width = innerWidth;
});
if (data.live) setInterval(() => { save(); location.reload(); }, 1000 * data.live);
