// The map of training samples. What is drawn around, or is in view, becomes the selection.

import { get, send } from "./api.js";
import { $, count, h, s, text } from "./dom.js";
import { places } from "./gallery.js";
import { chosenPlaces, select } from "./selection.js";
import { go } from "./state.js";

const NAMED = ["#3778bf", "#e08214", "#2f9e62", "#c43c66", "#8a5cc2", "#8c6239", "#d46fb0", "#7f8c1f", "#16a3b0", "#5b6770"];
const RAMP = ["#414487", "#2a788e", "#22a884", "#7ad151", "#d8c613"];
const REST = "#9aa3ac";
const MOST = 10000;
let points, hues, root, frame, path = null;
const view = { x: 0, y: 0, scale: 0, least: 1 };

// As the pixels of a canvas hold it: alpha, blue, green, red.
const packed = (hex) => (0xff000000 | (parseInt(hex.slice(5, 7), 16) << 16) | (parseInt(hex.slice(3, 5), 16) << 8) | parseInt(hex.slice(1, 3), 16)) >>> 0;
const canvas = () => root.querySelector("canvas");
const at = (place) => [(points.x[place] - view.x) * view.scale, (points.y[place] - view.y) * view.scale];
const within = (inside) => points.x.map((_, place) => place).filter((place) => inside(...at(place)));

const sides = () => [canvas().clientWidth, canvas().clientHeight];

function whole() {
  const [width, height] = sides();
  const scale = 0.94 * Math.min(width / points.width, height / points.height);
  Object.assign(view, { scale, least: scale, x: (points.width - width / scale) / 2, y: (points.height - height / scale) / 2 });
}

const move = (x, y) => Object.assign(view, { x: view.x - x / view.scale, y: view.y - y / view.scale });

function zoom(factor, [x, y] = sides().map((one) => one / 2)) {
  const scale = Math.min(Math.max(view.scale * factor, view.least / 2), view.least * 500);
  move(x * (view.scale / scale - 1), y * (view.scale / scale - 1));
  view.scale = scale;
}

function draw() {
  if (!hues || !root?.isConnected || !canvas().clientWidth) return;
  if (!view.scale) whole();
  const ratio = devicePixelRatio || 1;
  const [width, height] = sides().map((one) => Math.round(one * ratio));
  Object.assign(canvas(), { width, height });
  const context = canvas().getContext("2d");
  const shown = context.createImageData(width, height);
  const pixels = new Uint32Array(shown.data.buffer);
  const size = Math.round(ratio * Math.min(9, (points.x.length > 2e4 ? 1.6 : 5) * (view.scale / view.least) ** 0.35));
  for (let place = 0; place < points.x.length; place += 1) {
    const [left, top] = [Math.round((points.x[place] - view.x) * view.scale * ratio), Math.round((points.y[place] - view.y) * view.scale * ratio)];
    if (left < 0 || top < 0 || left + size > width || top + size > height) continue;
    for (let row = top * width + left; row < (top + size) * width + left; row += width) pixels.fill(hues[place], row, row + size);
  }
  context.putImageData(shown, 0, 0);
  context.scale(ratio, ratio);
  context.lineWidth = 2;
  const [towards, against] = places();
  for (const [some, colour, half] of [[chosenPlaces(), "--ink", 4], [towards, "--plus", 7], [against, "--minus", 7]]) {
    context.strokeStyle = getComputedStyle(root).getPropertyValue(colour);
    for (const [x, y] of some.map(at)) context.strokeRect(x - half, y - half, 2 * half, 2 * half);
  }
  context.strokeStyle = getComputedStyle(root).color;
  if (path) context.stroke(new Path2D(`M${path.map((one) => one.join(" ")).join("L")}`));
}

export function redraw() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(draw);
}

async function take(some) {
  const fits = some.length <= MOST;
  $("map-status").textContent = fits ? `${count(some.length)} selected.` : `${count(some.length)} samples are there; at most ${count(MOST)} can be selected at once.`;
  if (some.length && fits) select((await (await send("map/samples", { places: some })).json()).found, true);
}

function inView() {
  const [width, height] = sides();
  take(within((x, y) => x >= 0 && y >= 0 && x <= width && y <= height));
}

const around = (line) => within((x, y) => line.reduce((odd, [ax, ay], place) => {
  const [bx, by] = line[(place + 1) % line.length];
  return (ay > y) !== (by > y) && x < ((bx - ax) * (y - ay)) / (by - ay) + ax ? !odd : odd;
}, false));

function nearest(x, y) {
  const apart = (place) => Math.hypot(at(place)[0] - x, at(place)[1] - y);
  return within((px, py) => Math.hypot(px - x, py - y) < 12).sort((one, other) => apart(one) - apart(other)).slice(0, 1);
}

const KEYS = { "+": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: whole, Enter: inView, ArrowLeft: () => move(60, 0),
  ArrowRight: () => move(-60, 0), ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60) };
const does = (key) => () => (KEYS[key](), redraw());

function built() {
  const where = (event) => [event.offsetX, event.offsetY];
  let last = null;
  const plane = h("canvas", {
    tabindex: "0", role: "img", "aria-label": `map of ${count(points.x.length)} training samples: arrows move, plus and minus zoom, 0 shows all, Enter selects what is in view`,
    onpointerdown: (event) => {
      plane.setPointerCapture(event.pointerId);
      last = where(event);
      path = event.shiftKey || $("map-moves").checked ? null : [last];
    },
    onpointermove: (event) => {
      if (!last) return;
      const now = where(event);
      path ? path.push(now) : move(now[0] - last[0], now[1] - last[1]);
      last = now;
      redraw();
    },
    onpointerup: (event) => {
      const line = path;
      last = path = null;
      if (line) take(line.length > 3 ? around(line) : nearest(...where(event)));
      redraw();
    },
    onwheel: (event) => {
      if (document.activeElement !== plane && !event.ctrlKey) return; // the page scrolls
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), where(event));
      redraw();
    },
    onkeydown: (event) => KEYS[event.key] && (event.preventDefault(), does(event.key)()),
  });
  new ResizeObserver(redraw).observe(plane);
  addEventListener("selected", redraw);
  const colour = h("select", { id: "colour", onchange: ({ target }) => go({ colour: target.value }, { replace: true }) }, points.colours.map((name) => h("option", { value: name }, text(name))));
  return h("div", {}, h("div", { class: "row" }, h("label", {}, "colour by ", colour),
    [["+", "Zoom in"], ["-", "Zoom out"], ["0", "Show all"], ["Enter", "Select what is in view"]].map(([key, name]) => h("button", { onclick: does(key) }, name)),
    h("label", {}, h("input", { type: "checkbox", id: "map-moves" }), "dragging moves"), h("span", { id: "map-status", role: "status", class: "soft" })),
    h("div", { id: "plane" }, plane), h("ul", { class: "legend" }),
    h("p", { class: "soft" }, `${points.about} Samples that lie close together teach alike. Draw around some to select them; click one to select it. Frames: blue proponents and orange opponents of this answer, dark the selection.`));
}

export async function show(state) {
  points ??= await get("map");
  root ??= built();
  const by = points.colours.includes(state.colour) ? state.colour : points.colours.includes("label") ? "label" : "norm";
  root.querySelector("select").value = by;
  const { names, values, ordered } = await get("map/colours", new URLSearchParams({ by }));
  const tone = (place) => (ordered ? RAMP : NAMED)[place] ?? REST;
  hues = Uint32Array.from(values, (place) => packed(tone(place)));
  const rest = values.includes(names.length) ? ["others"] : [];
  root.querySelector(".legend").replaceChildren(...[...names, ...rest].map((name, place) => h("li", {}, s("svg", { viewBox: "0 0 8 8", "aria-hidden": "true" }, s("rect", { width: 8, height: 8, fill: tone(place) })), text(name))));
  redraw();
  return root;
}
