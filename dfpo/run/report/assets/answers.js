// The browser of kept answers, and what the critic predicts along one.

const LISTED = 400; // answers in the list at once
const COLUMNS = [...document.querySelectorAll("[data-column]")]; // fields that filter by one
const view = { shown: [], chosen: null, held: null, token: 0 };
const answers = data.runs.flatMap((run, i) =>
  run.answers.map((answer) => ({ ...answer, run: run.name, i })));
const nameOf = (answer) => `${answer.run}, step ${answer.step}, answer ${answer.sample}`;
const verdictOf = (answer) => make("span", { "data-noise": answer.noise }, answer.words);

function startFilters() {
  for (const field of COLUMNS) {
    const values = [...new Set(answers.map((answer) => answer[field.dataset.column]))];
    // Numbers in their order; the difference of words is none, which leaves them as they come.
    fill(field, "all", values.sort((a, b) => a - b));
  }
}

function matches(answer) {
  const words = $("f-search").value.toLowerCase();
  return `${answer.prompt}\n${answer.answer}`.toLowerCase().includes(words)
    && COLUMNS.every(({ value, dataset }) => !value || value === `=${answer[dataset.column]}`);
}

function drawList() {
  view.shown = answers.filter(matches);
  $("list").replaceChildren(...view.shown.slice(0, LISTED).map((answer) => make("li", {},
    make("button", { type: "button", click: () => choose(answer) },
      swatch(answer.i), `step ${answer.step}, ${answer.domain}, `, verdictOf(answer),
      make("span", { class: "snippet" }, answer.answer || "(empty)")))));
  const cut = view.shown.length > LISTED ? `, the first ${LISTED} listed` : "";
  const count = `${view.shown.length} of ${answers.length} answers${cut}${data.notes.answers}`;
  $("answers-note").textContent = answers.length ? count : "No answers were kept.";
  choose(view.shown.includes(view.chosen) ? view.chosen : view.shown[0]);
}

function choose(answer) {
  if (answer !== view.chosen) view.token = 0;
  view.chosen = answer;
  $("list").querySelectorAll("button").forEach((button, i) =>
    button.setAttribute("aria-current", view.shown[i] === answer));
  drawPanels();
}

function step(by) {
  const place = view.shown.indexOf(view.chosen) + by;
  if (!view.shown[place]) return;
  choose(view.shown[place]);
  $("list").children[place]?.scrollIntoView({ block: "nearest" });
}

function hold(answer) {
  view.held = answer;
  drawPanels();
}

function drawPanels() {
  const [paint] = $("paint").selectedOptions, [low, high] = data.bounds[paint.value] ?? [];
  $("answers").dataset.paint = paint.value;
  $("scale").hidden = !paint.value;
  $("scale").replaceChildren(`${number(low)} `, make("i"), ` ${number(high)}; `,
    `${paint.text}: ${paint.title}`);
  view.panels = [...new Set([view.held, view.chosen])].filter(Boolean).map(panelOf);
  $("panels").replaceChildren(...view.panels.map((panel) => panel.node));
  move(0);
}

function move(by) {
  const last = Math.max(...view.panels.map(({ answer }) => answer.tokens.length - 1));
  view.token = Math.max(0, Math.min(view.token + by, last)); // of the longer answer
  view.panels.forEach((panel) => pointAt(panel, view.token));
}

// One answer.

function panelOf(answer) {
  const node = $("panel").content.firstElementChild.cloneNode(true);
  const part = (selector) => node.querySelector(selector), held = answer === view.held;
  const panel = { node, part, answer, rows: quantilesOf(answer) };
  part(".name").append(swatch(answer.i), nameOf(answer));
  part(".hold").textContent = held ? "let go" : "hold beside";
  part(".hold").addEventListener("click", () => hold(held ? null : answer));
  part(".verdict").append(`${answer.domain}: `, verdictOf(answer),
    answer.truncated ? ", cut off at the longest answer" : "");
  for (const key of ["prompt", "answer", "expected"]) part(`.${key}`).textContent = answer[key];
  part(".cut").hidden = !answer.cut;
  part(".predicted").hidden = !answer.values.length;
  part(".tokens").append(...tokensOf(panel));
  offerTwins(panel);
  drawFan(panel);
  return panel;
}

function tokensOf(panel) {
  const { answer } = panel, name = $("paint").value, [low, high] = data.bounds[name] ?? [];
  return answer.tokens.map((text, i) => {
    const at = () => { view.token = i; pointAt(panel, i); };
    const token = make("span", { class: "token", pointerenter: at, click: at },
      text.replaceAll("\n", "↵") || "·");
    const share = ((answer[name]?.[i] ?? NaN) - low) / (high - low || 1);
    if (Number.isFinite(share)) token.style.setProperty("--share", share);
    return token;
  });
}

function offerTwins({ answer, part }) {
  const twins = answers.filter((other) => other !== answer && other.prompt === answer.prompt);
  const select = part(".twins select"), names = twins.map((a) => `${nameOf(a)}: ${a.words}`);
  fill(select, `${twins.length} more on this prompt`, names);
  part(".twins").hidden = !twins.length;
  select.addEventListener("change", () => {
    view.held = answer;
    choose(twins[select.selectedIndex - 1] ?? answer);
  });
}

function pointAt({ answer, rows, part }, token) {
  const i = Math.min(token, answer.tokens.length - 1), row = rows[i];
  if (i < 0) return;
  [...part(".tokens").children].forEach((node, n) => node.classList.toggle("chosen", n === i));
  const text = answer.tokens[i].slice(0, 60), said = [];
  const signed = (x) => (x > 0 ? "+" : "") + number(x);
  if (row.length) {
    drawDots({ answer, part }, row);
    shift(part(".here"), placeOf(answer, i));
    said.push(`value ${number(answer.values[i])} ± ${number(answer.spreads[i])}`,
      `5 to 95 % ${number(percentile(row, 0.05))} to ${number(percentile(row, 0.95))}`,
      `the token moves it by ${signed(answer.changes[i])}`);
  }
  said.push(`advantage ${signed(answer.advantages[i])}`);
  part(".words").textContent = `token ${i + 1} of ${rows.length} “${text}”: ${said.join(", ")}`;
}

// Drawings of one answer: 550 wide from 40 on, between the ends that its quantiles are packed in.

function quantilesOf({ packed: { bytes, low, high, width }, tokens }) {
  // 16-bit integers, the last of which is missing.
  const whole = new Uint16Array(Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0)).buffer);
  const all = Array.from(whole, (n) => (n === 65535 ? NaN : low + (n / 65534) * (high - low)));
  return tokens.map((_, i) => all.slice(i * width, (i + 1) * width));
}

function percentile(row, level) {
  const place = Math.max(0, Math.min(row.length - 1, level * row.length - 0.5));
  const i = Math.floor(place);
  return row[i] + (place - i) * ((row[i + 1] ?? row[i]) - row[i]);
}

function shareOf({ packed: { low, high } }, value) {
  return (value - low) / (high - low || 1);
}

function placeOf(answer, i) {
  return 40 + ((i + 0.5) / answer.tokens.length) * 550;
}

function shift(line, x) {
  line.toggleAttribute("hidden", !Number.isFinite(x));
  line.setAttribute("transform", `translate(${x || 0})`);
}

function drawFan({ answer, rows, part }) {
  const points = (values) =>
    values.map((v, i) => `${placeOf(answer, i)},${100 - 90 * shareOf(answer, v) || 0}`);
  const level = (share) => points(rows.map((row) => percentile(row, share)));
  const draw = (name, some) => part(`.fan ${name}`).setAttribute("points", some.join(" "));
  draw(".outer", [...level(0.05), ...level(0.95).reverse()]);
  draw(".inner", [...level(0.25), ...level(0.75).reverse()]);
  draw(".mean", points(answer.values));
  for (const drawing of [".fan", ".dots"]) {
    part(`${drawing} .low`).textContent = number(answer.packed.low);
    part(`${drawing} .high`).textContent = number(answer.packed.high);
  }
}

function drawDots({ answer, part }, row) {
  const heights = {}, bins = 40;
  part(".dots g").replaceChildren(...row.filter(Number.isFinite).map((value) => {
    const bin = Math.round(shareOf(answer, value) * bins);
    heights[bin] = (heights[bin] ?? 0) + 1;
    const cx = 40 + (bin / bins) * 550, cy = 132 - 8 * heights[bin];
    return make("circle", { class: "dot", r: 4, cx, cy });
  }));
  const mark = (name, value) => {
    // Noise may have sent the told reward anywhere.
    const share = value === null ? NaN : Math.max(0, Math.min(1, shareOf(answer, value)));
    shift(part(`.dots ${name}`), 40 + share * 550);
  };
  mark(".mean", row.reduce((a, b) => a + b, 0) / row.length);
  mark(".clean", answer.clean);
  mark(".told", answer.told === answer.clean ? null : answer.told);
}
