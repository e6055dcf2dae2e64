// The browser of kept answers, and what the critic predicts along one.

const CIVIDIS = [[0, 32, 76], [65, 77, 107], [124, 123, 120], [187, 173, 108], [255, 233, 69]];
const DIVERGING = [[179, 88, 6], [241, 163, 64], [240, 240, 240], [103, 169, 207], [33, 102, 172]];
const LISTED = 400; // answers in the list at once
const view = { chosen: null, held: null, token: 0, shown: [] };

const answers = data.runs.flatMap((run, i) => run.answers.map((a) => ({ ...a, run: i })));
const PAINTS = {
  value: { of: (a) => a.values, colours: CIVIDIS, doc: "predicted return before the token" },
  spread: { of: (a) => a.spreads, colours: CIVIDIS, doc: "standard deviation of that prediction" },
  change: { of: (a) => a.changes, colours: DIVERGING, doc: "how much the token moves the value" },
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
    && is("f-noise", answer.noisy ? "noisy" : "true")
    && (!words || `${answer.prompt}\n${answer.answer}`.toLowerCase().includes(words));
}

function rewardOf(answer) {
  const told = !answer.noisy ? [`reward ${number(answer.clean)}`] : [
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
  const count = `${view.shown.length} of ${answers.length} answers${cut}${view.left}`;
  $("answers-note").textContent = answers.length ? count : "No answers were kept.";
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
  if (answer.cut) node.append(make("p", { class: "note" }, `the first ${colours.length} tokens`));
  node.last = answer.tokens.length - 1;
  node.point = (i) => node.last >= 0 && pointAt(answer, parts, Math.min(i, node.last));
  node.point(view.token);
  return node;
}

function twins(answer) {
  const same = answers.filter((a) => a !== answer && a.prompt === answer.prompt);
  if (!same.length) return "";
  const select = make("select", { change: () => beside(answer, same[select.value]) });
  const nameOf = (a) => `${data.runs[a.run].name}, step ${a.step}, ${a.right ? "right" : "wrong"}, `
    + `told ${number(a.told)}`;
  fill(select, [["", `${same.length} more on this prompt`], ...same.map((a, i) => [i, nameOf(a)])]);
  return make("p", {}, make("label", {}, "beside it ", select));
}

function beside(answer, other) {
  if (!other) return;
  view.held = answer;
  choose(other);
}

function holdBeside(answer) {
  view.held = answer;
  drawPanels();
}

function pointAt(answer, parts, i) {
  [...parts.tokens.children].forEach((token, n) => token.classList.toggle("chosen", n === i));
  const row = answer.rows[i], values = [];
  if (row) {
    parts.fan.replaceChildren(...fan(answer, i));
    parts.dots.replaceChildren(...dotplot(answer, row));
    values.push(`value ${number(answer.values[i])} ± ${number(answer.spreads[i])}, `
      + `5 to 95 % ${number(percentile(row, 0.05))} to ${number(percentile(row, 0.95))}, `
      + `the token moves it by ${signed(answer.changes[i])}`);
  }
  values.push(`advantage ${signed(answer.advantages[i])}`);
  parts.words.textContent = `token ${i + 1} of ${answer.tokens.length} `
    + `“${answer.tokens[i].slice(0, 60)}”: ${values.join(", ")}`;
}

// Colours.

const spans = {}; // of each colouring, over all answers, so that colours compare

function boundsOf(name) {
  if (spans[name]) return spans[name];
  const all = answers.flatMap(PAINTS[name].of).filter(Number.isFinite).sort((a, b) => a - b);
  const at = (share) => all[Math.round(share * (all.length - 1))] ?? 0;
  const most = Math.max(Math.abs(at(0.01)), Math.abs(at(0.99)));
  spans[name] = PAINTS[name].colours === DIVERGING ? [-most, most] : [at(0.01), at(0.99)];
  return spans[name];
}

function between(colours, share) {
  const place = Math.max(0, Math.min(1, share)) * (colours.length - 1);
  const i = Math.min(colours.length - 2, Math.floor(place));
  return colours[i].map((c, k) => Math.round(c + (place - i) * (colours[i + 1][k] - c)));
}

function paintOf(answer) {
  const name = $("paint").value, [low, high] = boundsOf(name);
  return PAINTS[name].of(answer).map((x) => {
    if (!Number.isFinite(x)) return null;
    const [r, g, b] = between(PAINTS[name].colours, (x - low) / (high - low || 1));
    return [`rgb(${r} ${g} ${b})`, 0.3 * r + 0.59 * g + 0.11 * b < 115 ? "#ffffff" : "#000000"];
  });
}

function scaleOf(answer) {
  const name = $("paint").value, { colours, doc, of } = PAINTS[name], [low, high] = boundsOf(name);
  if (name === "none") return "";
  if (!of(answer).length) return make("p", { class: "note" }, `no ${name}: there is no critic`);
  const bar = make("i"), stops = colours.map((c) => `rgb(${c.join(" ")})`);
  bar.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
  return make("div", { class: "scale" }, 
    ...[number(low), bar, number(high), `${name}: ${doc}`].map((part) => make("span", {}, part)));
}

// Drawings of one answer.

function percentile(row, level) {
  const place = Math.max(0, Math.min(row.length - 1, level * row.length - 0.5));
  const i = Math.floor(place);
  return row[i] + (place - i) * ((row[i + 1] ?? row[i]) - row[i]);
}

function extent(answer) {
  // Not of the told reward, which noise may have sent anywhere.
  const { low, high } = data.runs[answer.run], { packed } = answer;
  return [Math.min(low, packed.low), Math.max(high, packed.high)];
}

function fan(answer, here) {
  const [low, high] = extent(answer), n = answer.values.length, rows = answer.rows.slice(0, n);
  const x = (i) => 40 + ((i + 0.5) / n) * 550;
  const y = (v) => 100 - ((v - low) / (high - low || 1)) * 90;
  const points = (level) => rows.map((row, i) => `${x(i)},${y(percentile(row, level)) || 0}`);
  const band = (a, b, name) => make("polygon", { class: name,
    points: [...points(a), ...points(b).reverse()].join(" ") });
  const line = answer.values.map((v, i) => `${x(i)},${y(v ?? 0)}`).join(" ");
  const words = "mean, middle half and 5 to 95 % of the return, token by token";
  const svg = make("svg", { viewBox: "0 0 600 108", role: "img", "aria-label": words },
  make("line", { class: "axis", x1: 40, x2: 590, y1: 100, y2: 100 }),
  make("text", { x: 0, y: 104 }, number(low)), make("text", { x: 0, y: 16 }, number(high)),
  band(0.05, 0.95, "outer"), band(0.25, 0.75, "inner"),
  make("polyline", { class: "mean", points: line }),
  make("line", { class: "here", x1: x(here), x2: x(here), y1: 6, y2: 100 }));
  return [svg, make("p", { class: "note" }, words)];
}

function dotplot(answer, row) {
  const [low, high] = extent(answer), bins = 40, heights = new Map();
  const x = (v) => 40 + ((v - low) / (high - low || 1)) * 550;
  const dots = row.filter(Number.isFinite).map((v) => {
    const bin = Math.round(((v - low) / (high - low || 1)) * bins), n = heights.get(bin) ?? 0;
    heights.set(bin, n + 1);
    return make("circle", { class: "dot", r: 4, cx: 40 + (bin / bins) * 550, cy: 124 - 8 * n });
  });
  const mark = (v, name) => {
    const at = x(Math.max(low, Math.min(high, v)));
    return make("line", { class: name, x1: at, x2: at, y1: 0, y2: 130 });
  };
  const mean = row.reduce((a, b) => a + b, 0) / row.length;
  const words = `each dot is 1/${row.length} of the chance; line: mean, dotted: clean reward`
    + (answer.noisy ? `, dashed: told reward, ${number(answer.told)}` : "");
  const svg = make("svg", { viewBox: "0 0 600 150", role: "img", "aria-label": words },
    make("line", { class: "axis", x1: 40, x2: 590, y1: 130, y2: 130 }),
    make("text", { x: 40, y: 147 }, number(low)),
    make("text", { x: 590, y: 147, "text-anchor": "end" }, number(high)), ...dots,
    ...(Number.isFinite(mean) ? [mark(mean, "mean")] : []), mark(answer.clean, "clean"),
    ...(answer.noisy ? [mark(answer.told, "told")] : []));
  return [svg, make("p", { class: "note" }, words)];
}

