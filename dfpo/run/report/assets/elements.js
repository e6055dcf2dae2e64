// What pages are made of. In the same script follows the page of runs (curves.js, answers.js,
// report.js) or that of a study (study.js). Texts of prompts, answers, metrics and settings are
// anybody's: they become text nodes and nothing else, and a page's policy runs no other script.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const COLOURS = 7; // --c0 to --c6 of the style; past them lines are dashed

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "line", "circle", "text"].includes(tag);
  const space = `http://www.w3.org/${svg ? "2000/svg" : "1999/xhtml"}`;
  const node = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function fill(select, all, values) {
  // Other values begin with a sign of equality, so that an empty one is not "all".
  const options = values.map((value) => new Option(value, `=${value}`));
  select.replaceChildren(new Option(all, ""), ...options);
}

function number(x, digits = 3) {
  if (!Number.isFinite(x)) return "–";
  return Number.isInteger(x) ? String(x) : String(Number(x.toPrecision(digits)));
}

// Of runs and arms, by their number.

function styleOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

function colourOf(i) {
  return styleOf(`--c${i % COLOURS}`);
}

function swatch(i) {
  return make("span", { class: `swatch c${i % COLOURS} ${i < COLOURS ? "" : "dashed"}` });
}

// Curves over steps.

function lineOf(i, label) {
  const dash = i < COLOURS ? [] : [6, 4], value = (_, x) => number(x, 4);
  return { label, stroke: colourOf(i), dash, width: 2, spanGaps: true, value };
}

function plot({ drag, ...options }, rows) {
  const axis = { stroke: styleOf("--ink"), grid: { stroke: styleOf("--line"), width: 1 } };
  const place = make("div", { class: "chart" });
  $("charts").append(place);
  return new uPlot({
    width: place.clientWidth, axes: [axis, { ...axis, size: 62 }],
    cursor: { sync: { key: "steps", setSeries: false }, drag: { x: true, y: false, ...drag } },
    ...options,
  }, rows, place);
}

function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((x) => {
    if (x === null) return null;
    sum = weight * sum + (1 - weight) * x;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function redrawWith(draw) {
  // A canvas follows neither the colour scheme nor the width.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => {
    // A phone's bars come and go and change the height alone.
    if (innerWidth !== width) draw();
    width = innerWidth;
  });
}
