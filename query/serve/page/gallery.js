// The answers: a column per measure, a list per side, a card per training sample.

import { get } from "./api.js";
import { $, count, h, number, s, text } from "./dom.js";
import { altOf, labelOf, picture } from "./picture.js";
import { isSelected, select } from "./selection.js";
import { asked, go, link } from "./state.js";

// One scale per column, so that bars can be compared.
function scale(answer) {
  const all = answer.sides.flatMap((side) => side.found);
  const low = Math.min(0, ...all.map((one) => one.score - (one.margin ?? 0)));
  const high = Math.max(0, ...all.map((one) => one.score + (one.margin ?? 0)));
  return (value) => (100 * (value - low)) / (high - low || 1);
}

function bar(one, at) {
  const [left, right] = [one.score - (one.margin ?? 0), one.score + (one.margin ?? 0)].map(at);
  return s("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("line", { x1: at(0), x2: at(0), y1: 0, y2: 8, class: "zero" }),
    s("line", { x1: left, x2: right, y1: 4, y2: 4, class: "error" }),
    s("rect", { x: at(one.score) - 1, width: 2, y: 0, height: 8, class: "score" }));
}

function card(one, context) {
  const { answer, others, state, at, copies } = context;
  const shown = (value) => (value / 10 ** answer.scale.power).toFixed(answer.scale.decimals);
  const label = labelOf(one);
  const range = one.rank_low === one.rank_high ? `rank ${one.rank}` : `rank ${one.rank}, may be ${one.rank_low} to ${one.rank_high}`;
  const shared = others.flatMap((other) => {
    const place = other.sides.flatMap((side) => side.found.map((it) => [side, it])).find(([, it]) => it.id === one.id);
    return place ? [`${place[0].side} ${place[1].rank} of ${other.name}`] : [];
  });
  const box = h("input", { type: "checkbox", "aria-label": `select ${text(one.id)}`, onchange: ({ target }) => select([one], target.checked) });
  box.checked = isSelected(one.id);
  box.dataset.select = one.id;
  return h("li", { class: shared.length ? "card shared" : "card", "data-id": one.id },
    picture("sample", one.id, Number(state.size), altOf(one), { sample: one.id, why: null, k: null }),
    h("div", { class: "figures" },
      h("span", { class: "rank", title: range }, String(one.rank)),
      h("span", { class: "value", title: "score and half its 95% interval" }, shown(one.score), one.margin ? h("span", { class: "soft" }, ` ± ${shown(one.margin)}`) : null)),
    bar(one, at),
    h("div", { class: "soft" }, one.z === null ? "z unknown" : `z ${number(one.z)}`, label === null ? "" : [" · label ", h("b", {}, text(label))]),
    h("div", { class: "id", title: text(one.id) }, text(one.id)),
    shared.length ? h("div", { class: "badge" }, `also ${shared.join(", ")}`) : null,
    copies.length ? h("details", { class: "copies" }, h("summary", {}, `${copies.length} more like it`),
      ...copies.map((it) => h("div", {}, h("a", { href: link({ sample: it.id, why: null }), "data-walk": true }, text(it.id)), ` rank ${it.rank}`))) : null,
    one.copies > 1 + copies.length ? h("div", { class: "soft" }, `${one.copies} equal in the store`) : null,
    h("div", { class: "tools" }, h("label", {}, box, "take"),
      h("button", { class: "why", "aria-label": `why ${text(one.id)}`, onclick: () => go({ why: one.id, under: answer.measure }) }, "Why?")));
}

const ORDERS = {
  rank: (one, other) => one.rank - other.rank,
  score: (one, other) => other.score - one.score,
  label: (one, other) => String(labelOf(one)).localeCompare(String(labelOf(other)), "en", { numeric: true }) || one.rank - other.rank,
  id: (one, other) => one.id.localeCompare(other.id, "en", { numeric: true }),
};

// Copies go to the first of them.
const collapsed = (found) => found.filter((one) => one.copy_of === null)
  .map((one) => ({ one, copies: found.filter((it) => it.copy_of === one.rank) }));

function list(side, context) {
  const { state } = context;
  const found = collapsed(side.found);
  found.sort((one, other) => ORDERS[state.sort](one.one, other.one));
  const cards = found.map(({ one, copies }) => card(one, { ...context, copies }));
  const total = side.found.length;
  if (state.sort === "rank" && side.sure !== null && side.sure < total) {
    const from = found.findIndex(({ one }) => one.rank > side.sure);
    if (from > 0) cards.splice(from, 0, h("li", { class: "unsure" }, "order within the error"));
  }
  return h("section", { class: "side" }, h("h4", {}, side.heading), h("p", { class: "soft sure" }, side.sure_text), h("ol", { class: "cards" }, cards));
}

function column(answer, answers, state) {
  const context = { answer, state, at: scale(answer), others: answers.filter((other) => other && other !== answer) };
  const left = answer.searched > answer.sides[0].found.length && Number(state.k) < 500;
  return h("article", { class: "measure", "aria-label": answer.name },
    h("h3", {}, answer.name, h("span", { class: "soft" }, answer.scale.text ? ` scores ${answer.scale.text}` : "")), h("p", { class: "about" }, answer.about), answer.how ? h("p", { class: "warning" }, answer.how) : null,
    answer.sides.map((side) => list(side, context)),
    left ? h("button", { class: "more", onclick: () => go({ k: String(Math.min(500, 2 * Number(state.k))) }) }, "Load more") : null);
}

let turn = 0, answers = [];

// The numbers of the samples that are shown, by side.
export const places = () => ["proponent", "opponent"].map((name) => answers.flatMap((answer) => answer?.sides.filter((side) => side.side === name).flatMap((side) => side.found.map((one) => one.place)) ?? []));

export async function showAnswers(state) {
  const own = ++turn;
  const place = $("galleries");
  place.style.setProperty("--side", `${state.size}px`);
  $("bar").hidden = $("panels").hidden = !state.kind;
  if (!state.kind) answers = [];
  if (!state.kind) return place.replaceChildren(h("p", { class: "hint" }, "Choose a query, or give an image, to see which training images pushed the model towards it, and which against."));
  place.setAttribute("aria-busy", "true");
  place.style.minHeight = `${place.offsetHeight}px`;
  const found = await Promise.allSettled(state.measure.map((measure) => get("answer", asked(state, measure, { near: state.near }))));
  const now = found.map((one) => (one.status === "fulfilled" ? one.value : null));
  if (own !== turn) return;
  answers = now;
  place.replaceChildren(...found.map((one, at) => one.status === "fulfilled"
    ? column(one.value, answers, state)
    : h("article", { class: "measure" }, h("h3", {}, state.measure[at]), h("p", { class: "warning", role: "alert" }, one.reason.message))));
  place.style.minHeight = "";
  place.setAttribute("aria-busy", "false");
  const first = answers.find(Boolean);
  if (first) showAsked(state, first);
  const report = asked(state, state.measure[0], { near: state.near });
  for (const measure of state.measure) report.append("measures", measure);
  $("report").href = `/api/report?${report}`;
  document.title = first ? `${text(first.query.id)} · gradstore` : "gradstore";
  return count(answers.length);
}

function showAsked(state, { query }) {
  const kinds = { query: "stored query", sample: "training sample, asked with its own stored rows", asked: "image asked here" };
  const label = query.label === null ? "" : `, label ${text(query.label)}`;
  $("asked").hidden = false;
  $("asked-image").replaceChildren(picture(state.kind, state.name, 160, `${state.kind === "sample" ? "training sample" : "query"} ${text(query.id)}${label}`));
  $("asked").querySelector("figcaption").replaceChildren(h("b", {}, text(query.id)), h("br"), `${kinds[state.kind]}${label}`);
}
