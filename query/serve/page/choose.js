// The choices: measures, timesteps, checkpoints, filters.

import { get } from "./api.js";
import { histogram } from "./charts.js";
import { $, count, h, number, text } from "./dom.js";
import { go, read } from "./state.js";

const base = (measure) => measure.split(":")[0];

function measureChoice(one) {
  const box = h("input", { type: "checkbox", value: one.name, onchange: changed });
  const field = one.number && h("input", {
    type: "number", min: one.number[0], max: one.number[1], step: one.number[2], value: one.number[3],
    "aria-label": `number of ${one.title}`, onchange: changed,
  });
  return h("div", { class: "choice", title: one.about }, h("label", {}, box, one.title), field);
}

function changed() {
  const found = [...$("measures").querySelectorAll("input[type=checkbox]:checked")].map((box) => {
    const field = box.closest(".choice").querySelector("input[type=number]");
    return field ? `${box.value}:${field.value}` : box.value;
  });
  if (found.length) go({ measure: found.slice(0, 3) });
  else show(read());
}

let about, steps;

export async function prepare(found) {
  about = found;
  $("measures").append(...about.measures.map(measureChoice));
  $("checkpoints").append(...about.checkpoints.map((one) => h("label", { class: "choice" },
    h("input", { type: "checkbox", value: one.number, onchange: checkpointsChanged }),
    `${one.number}${one.epoch === null ? "" : `, epoch ${one.epoch}`}, η ${number(one.eta, 2)}`)));
  const columns = Object.keys(about.columns);
  $("filters").hidden = !columns.length && !about.samples;
  $("filter").hidden = !columns.length;
  for (const place of ["column", "by"]) $(place).append(...columns.map((name) => h("option", { value: name }, text(name))));
  $("column").addEventListener("change", values);
  values();
  $("filter").addEventListener("submit", (event) => {
    event.preventDefault();
    const one = `${$("column").value}=${$("value").value}`;
    const now = read().where;
    if ($("value").value && !now.includes(one)) go({ where: [...now, one], k: null });
    $("value").value = "";
  });
  $("use-ids").addEventListener("click", () => go({ ids: $("ids").value.split("\n").filter(Boolean), k: null }));
  for (const name of ["low", "high"]) $(name).addEventListener("change", () => range(Number($("low").value), Number($("high").value)));
  for (const name of ["size", "sort", "near"]) $(name).addEventListener("change", ({ target }) => go({ [name]: target.value }, { replace: true }));
  $("size").addEventListener("input", ({ target }) => $("galleries").style.setProperty("--side", `${target.value}px`));
  $("near").addEventListener("input", nearness);
  steps = await get("timesteps");
}

function values() {
  const known = about.columns[$("column").value] ?? [];
  $("values").replaceChildren(...known.map(([value, times]) => h("option", { value, label: `${text(value)} (${count(times)})` })));
}

const nearness = () => ($("near-out").textContent = Number($("near").value) ? ` ${$("near").value}% of the range of grey` : " equal ones only");

function checkpointsChanged() {
  const boxes = [...$("checkpoints").querySelectorAll("input")];
  const found = boxes.filter((box) => box.checked).map((box) => box.value);
  if (found.length) go({ checkpoints: found.length === boxes.length ? [] : found });
  else show(read());
}

function range(low, high) {
  const whole = low <= 0 && high >= steps.last;
  go({ low: whole ? null : String(Math.max(0, low)), high: whole ? null : String(Math.max(low, high)) });
}

export function show(state) {
  for (const box of $("measures").querySelectorAll("input[type=checkbox]")) {
    const own = state.measure.find((measure) => base(measure) === box.value);
    const rows = about.measures.find((one) => one.name === box.value).rows;
    box.checked = own !== undefined;
    box.disabled = !box.checked && (state.measure.length >= 3 || (!rows && (state.low !== undefined || state.high !== undefined)));
    const field = box.closest(".choice").querySelector("input[type=number]");
    if (field && own?.includes(":")) field.value = own.split(":")[1];
  }
  for (const box of $("checkpoints").querySelectorAll("input")) box.checked = !state.checkpoints.length || state.checkpoints.includes(box.value);
  const now = { low: Number(state.low ?? 0), high: Number(state.high ?? steps.last) };
  $("low").value = now.low;
  $("high").value = now.high;
  $("low").max = $("high").max = steps.last;
  $("brush").replaceChildren(histogram(steps, now, range));
  const chip = (shown, changes) => h("li", {}, h("button", { "aria-label": `remove filter ${shown}`, onclick: () => go(changes) }, `${shown} ×`));
  $("chips").replaceChildren(
    ...state.where.map((one) => chip(text(one), { where: state.where.filter((other) => other !== one) })),
    ...(state.ids.length ? [chip(`${count(state.ids.length)} ids`, { ids: [] })] : []));
  for (const name of ["size", "sort", "near"]) $(name).value = state[name];
  nearness();
}
