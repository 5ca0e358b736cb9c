// Charts as SVG, each with its figures as text beside or within.

import { count, h, number, s, text } from "./dom.js";

export function heatMap(cells) {
  // Rows are checkpoints, columns timesteps of the query; the sample's own timesteps are summed.
  const [rows, columns] = [0, 1].map((at) => [...new Set(cells.map((cell) => cell[at]))].sort((a, b) => a - b));
  const sums = new Map();
  for (const [checkpoint, step, , value] of cells) sums.set(`${checkpoint} ${step}`, (sums.get(`${checkpoint} ${step}`) ?? 0) + value);
  const most = Math.max(...[...sums.values()].map(Math.abs)) || 1;
  const power = most < 0.1 || most >= 1e4 ? 3 * Math.floor(Math.log10(most) / 3) : 0;
  const table = h("table", { class: "heat" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "checkpoint"), columns.map((step) => h("th", { scope: "col" }, `t ${step}`)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row" }, String(row)), columns.map((step) => {
      const value = sums.get(`${row} ${step}`) ?? 0;
      const cell = h("td", { class: value < 0 ? "minus" : "plus" }, (value / 10 ** power).toFixed(most / 10 ** power < 10 ? 2 : 1));
      cell.style.setProperty("--share", `${Math.round((100 * Math.abs(value)) / most)}%`);
      return cell;
    })))));
  return h("div", {}, h("p", { class: "soft" }, `Parts of the score${power ? `, in units of 1e${power}` : ""}: blue pushes towards, orange against.`),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "parts of the score by checkpoint and timestep" }, table));
}

export function totals(groups) {
  const low = Math.min(0, ...groups.map((one) => one.total - (one.margin ?? 0)));
  const high = Math.max(0, ...groups.map((one) => one.total + (one.margin ?? 0)));
  const at = (value) => (100 * (value - low)) / (high - low || 1);
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "totals" }, h("table", {},
    h("thead", {}, h("tr", {}, ["group", "samples", "total and 95% interval", ""].map((one) => h("th", { scope: "col" }, one)))),
    h("tbody", {}, groups.map((one) => h("tr", {},
      h("th", { scope: "row" }, text(one.group)), h("td", {}, count(one.samples)), h("td", {}, `${number(one.total)} ± ${number(one.margin, 2)}`),
      h("td", { class: "wide" }, s("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
        s("rect", { x: Math.min(at(0), at(one.total)), width: Math.abs(at(one.total) - at(0)), y: 1, height: 6, class: one.total < 0 ? "minus" : "plus" }),
        s("line", { x1: at(one.total - (one.margin ?? 0)), x2: at(one.total + (one.margin ?? 0)), y1: 4, y2: 4, class: "error" }))))))));
}

export function scatter({ found, all }, names = ["timestep", "norm"]) {
  const [width, height, left, base] = [640, 260, 56, 226];
  const every = [...all, ...found];
  const last = Math.max(1, ...every.map(([step]) => step));
  const norms = every.map(([, norm]) => norm).filter((norm) => norm > 0);
  const [low, high] = [Math.log10(Math.min(...norms)), Math.log10(Math.max(...norms))];
  const x = (step) => left + ((width - left - 8) * step) / last;
  const y = (norm) => base - ((base - 10) * (Math.log10(Math.max(norm, 10 ** low)) - low)) / (high - low || 1);
  const dots = (points, name, radius) => points.map(([step, norm]) => s("circle", { cx: x(step), cy: y(norm), r: radius, class: name }));
  const middle = (points) => number(points.map(([, norm]) => norm).sort((a, b) => a - b)[points.length >> 1]);
  const caption = `Median norm of the proponents' rows ${middle(found)}, of all ${middle(all)}.`;
  return h("figure", { class: "chart" },
    s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `norm against timestep. ${caption}` },
      s("line", { x1: left, x2: width - 8, y1: base, y2: base, class: "axis" }), s("line", { x1: left, x2: left, y1: 10, y2: base, class: "axis" }),
      s("text", { x: left, y: base + 16 }, "0"), s("text", { x: width - 8, y: base + 16, "text-anchor": "end" }, `${names[0]} ${last}`),
      s("text", { x: left - 4, y: 16, "text-anchor": "end" }, number(10 ** high, 2)), s("text", { x: left - 4, y: base, "text-anchor": "end" }, number(10 ** low, 2)),
      s("text", { x: left + 6, y: 16 }, `${names[1]}, logarithmic`), dots(all, "other", 2), dots(found, "mine", 3.5)),
    h("figcaption", { class: "soft" }, `Filled dots are rows of the proponents, pale ones of all samples. ${caption}`));
}

export function histogram({ counts, last }, { low, high }, chosen) {
  // Dragged over to choose a range; the number fields beside it do the same by keyboard.
  const most = Math.max(...counts, 1);
  const step = (last + 1) / counts.length;
  const inside = (at) => (at + 1) * step > low && at * step <= high;
  const svg = s("svg", { viewBox: `0 0 ${counts.length} 20`, preserveAspectRatio: "none", class: "histogram", "aria-hidden": "true" },
    counts.map((value, at) => s("rect", { x: at + 0.1, width: 0.8, y: 20 - Math.max(0.5, (19 * value) / most), height: 20, class: inside(at) ? "in" : "out" })));
  const where = (event) => {
    const box = svg.getBoundingClientRect();
    return Math.round(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * last);
  };
  let from = null;
  svg.addEventListener("pointerdown", (event) => {
    from = where(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const to = where(event);
    if (Math.abs(to - from) < step / 2) chosen(0, last);
    else chosen(Math.min(from, to), Math.max(from, to));
    from = null;
  });
  return svg;
}
