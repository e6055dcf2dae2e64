// What pages are made of. In the same script follows the page of runs (curves.js, answers.js,
// report.js) or that of a study (study.js). Texts of prompts, answers, metrics and settings are
// anybody's: they become text nodes and nothing else, and a page's policy runs no other script.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const RUN_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8a8a8a"];

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

// Of curves over steps.

function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((x) => {
    if (x === null) return null;
    sum = weight * sum + (1 - weight) * x;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function axes() {
  const style = getComputedStyle(document.documentElement);
  const axis = { stroke: style.getPropertyValue("--ink"),
    grid: { stroke: style.getPropertyValue("--line"), width: 1 } };
  return [axis, { ...axis, size: 62 }];
}
