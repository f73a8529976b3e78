/* Lines over time as inline SVG, with the same figures as a table beneath. */
import {make, number, clock, table} from "./show.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 400, HEIGHT = 150, LEFT = 44, BOTTOM = 18, TOP = 8, RIGHT = 6, POINTS = 180;

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/* The next of 1, 2, 5 times a power of ten at or above value. */
function round_up(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map(step => step * power).find(step => step >= value * (1 - 1e-9));
}

/* Means over equal parts of time: [[t, value or null for each series]]. A part without samples is left out. */
export function thin(samples, from, to, names) {
  const parts = new Map();
  for (const sample of samples) {
    if (sample.t < from || sample.t > to) continue;
    const part = Math.floor((sample.t - from) / (to - from) * POINTS);
    if (!parts.has(part)) parts.set(part, {t: 0, count: 0, sums: names.map(() => 0), counts: names.map(() => 0)});
    const sum = parts.get(part);
    sum.t += sample.t;
    sum.count++;
    names.forEach((name, i) => {
      if (!Number.isFinite(sample[name])) return;
      sum.sums[i] += sample[name];
      sum.counts[i]++;
    });
  }
  return [...parts.values()].map(p => [p.t / p.count, ...p.sums.map((s, i) => p.counts[i] ? s / p.counts[i] : null)]);
}

function path_of(points, i, x, y, gap_ms) {
  let path = "", last = null;
  for (const point of points) {
    if (point[i + 1] === null) { last = null; continue; }
    path += `${last !== null && point[0] - last <= gap_ms ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[i + 1]).toFixed(1)}h.01`;
    last = point[0];
  }
  return path;
}

/* series: [{name, text}]. max: the axis ends there, else where the values do. */
export function line_chart(title, unit, samples, series, from, to, max) {
  const points = thin(samples, from, to, series.map(s => s.name));
  const values = points.flatMap(p => p.slice(1)).filter(v => v !== null);
  const top = max ?? round_up(Math.max(...values, 0) * 1.05);
  const x = t => LEFT + (t - from) / (to - from) * (WIDTH - LEFT - RIGHT);
  const y = v => HEIGHT - BOTTOM - Math.min(v / top, 1) * (HEIGHT - BOTTOM - TOP);
  const last = points.length ? points[points.length - 1] : null;
  const said = series.map((s, i) => `${s.text} ${last && last[i + 1] !== null ? `${number(last[i + 1])} ${unit}` : "not known"}`).join(", ");
  const svg = draw("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. Latest: ${said}.`});
  for (const share of [0, 0.5, 1]) {
    svg.append(draw("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(share * top), y2: y(share * top)}));
    svg.append(draw("text", {x: LEFT - 6, y: y(share * top) + 4, "text-anchor": "end"}, number(share * top)));
  }
  for (const [t, anchor] of [[from, "start"], [(from + to) / 2, "middle"], [to, "end"]])
    svg.append(draw("text", {x: x(t), y: HEIGHT - 4, "text-anchor": anchor}, clock(t)));
  const gap_ms = Math.max((to - from) / POINTS * 2.5, 70000);
  series.forEach((s, i) => {
    svg.append(draw("path", {class: `line s${i}`, d: path_of(points, i, x, y, gap_ms)}));
  });
  if (!values.length) svg.append(draw("text", {x: WIDTH / 2, y: HEIGHT / 2 - 8, "text-anchor": "middle"}, "nothing told yet"));
  const legend = make("p", {class: "legend"});
  series.forEach((s, i) => {
    const key = draw("svg", {viewBox: "0 0 22 8", "aria-hidden": "true"});
    key.append(draw("path", {class: `line s${i}`, d: "M0 4H22"}));
    legend.append(make("span", {}, key, s.text));
  });
  const step = Math.max(1, Math.ceil(points.length / 30));
  const rows = points.filter((_, i) => (points.length - 1 - i) % step === 0).reverse()
    .map(p => [new Date(p[0]).toLocaleTimeString("en-GB"), ...p.slice(1).map(v => number(v))]);
  return make("figure", {class: "chart", style: null}, make("h3", {}, `${title}, ${unit}`), svg, legend,
    make("details", {}, make("summary", {}, `${title} as a table`),
      table(`${title}, ${unit}`, [{text: "Time"}, ...series.map(s => ({text: s.text, number: true}))], rows)));
}
