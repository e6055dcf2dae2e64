// Keys, and the start of it all. Tables and plots stand in the page.

function nextPaint() {
  const { selectedIndex, options } = $("paint");
  $("paint").selectedIndex = (selectedIndex + 1) % options.length;
  drawPanels();
}

const KEYS = {
  "/": () => $("f-search").focus(), j: () => step(1), k: () => step(-1), v: nextPaint,
  b: () => hold(view.chosen), Escape: () => hold(null), "?": () => $("keys").togglePopover(),
  ArrowRight: () => move(1), ArrowLeft: () => move(-1),
};

addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select");
  if (typing && event.key === "Escape") event.target.blur();
  const own = typing || event.ctrlKey || event.metaKey || event.altKey; // not ours to take
  if (own || !Object.hasOwn(KEYS, event.key)) return;
  if (event.key !== "Escape") event.preventDefault(); // which closes the words on keys too
  KEYS[event.key]();
});

// A page that `dfpo report --live` serves loads itself anew, with what was set on it.

function reload() {
  const fields = [...document.querySelectorAll("input[id], select[id]")];
  const set = fields.map(({ id, value, checked = false }) => [id, { value, checked }]);
  const chosen = view.chosen && nameOf(view.chosen);
  sessionStorage.setItem("view", JSON.stringify({ set, chosen }));
  location.reload();
}

function restore() {
  const { set, chosen } = JSON.parse(sessionStorage.getItem("view")) ?? { set: [] };
  for (const [id, values] of set) Object.assign($(id), values);
  view.chosen = answers.find((answer) => nameOf(answer) === chosen);
}

startFilters();
if (data.live) {
  restore();
  setInterval(reload, 1000 * data.live);
}
drawCurves();
drawList();
$("summary").addEventListener("input", drawCurves);
$("curve-controls").addEventListener("input", drawCurves);
$("zoom-all").addEventListener("click", () => zoomTo("", ""));
$("charts").addEventListener("dblclick", () => zoomTo("", ""));
$("filters").addEventListener("input", drawList);
redrawWith(drawCurves);
