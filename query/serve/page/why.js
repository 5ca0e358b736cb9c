// Why a sample stands where it stands: one training sample beside the query.

import { get, image } from "./api.js";
import { heatMap } from "./charts.js";
import { $, copy, count, h, number, text } from "./dom.js";
import { altOf, picture } from "./picture.js";
import { asked, go, link } from "./state.js";

const part = (title, ...content) => h("section", {}, h("h3", {}, title), ...content);

const told = (found) => found.catch((error) => h("p", { class: "soft" }, error.message));

function rows(one) {
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "rows" }, h("table", {},
    h("thead", {}, h("tr", {}, ["checkpoint", "timestep", "norm", "loss"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, one.rows.flatMap((row) => row.timesteps.map((step, at) => h("tr", {},
      h("th", { scope: "row" }, String(row.checkpoint)), h("td", {}, String(step)), h("td", {}, number(row.norms[at])), h("td", {}, number(row.losses[at]))))))));
}

function influence({ self, serves }) {
  const lines = [];
  if (self) lines.push(h("p", {}, `Influence on itself ${number(self.value)}: rank ${count(self.rank)} of ${count(self.of)}, robust z ${number(self.robust_z)}. Hard, atypical and mislabelled samples stand high.`));
  if (serves) {
    const share = serves.queries ? Math.round((100 * serves.listed) / serves.queries) : 0;
    lines.push(h("p", {}, `Among the first ${serves.ranks} of ${count(serves.listed)} of ${count(serves.queries)} stored queries (${share}%); ${count(serves.more_listed)} samples are listed more often.`),
      h("h4", {}, "Whom it serves most"),
      h("ol", { class: "picks" }, serves.most.map((one) => h("li", {}, picture("query", one.id, 56, `query ${text(one.id)}`, { query: one.id, why: null, k: null }), h("span", { class: "soft" }, number(one.score))))));
  }
  return lines.length ? lines : [h("p", { class: "soft" }, "Not known for this measure without stored queries.")];
}

let turn = 0;

export async function show(state) {
  const place = $("why");
  const own = ++turn;
  if (!state.why || !state.kind) return place.open && place.close();
  const under = state.measure.find((one) => state.under === one || state.under?.startsWith(`${one}@`)) ?? state.measure[0];
  const close = h("button", { id: "close", onclick: () => place.close() }, "Close");
  const title = h("h2", { id: "why-title" }, `Why ${text(state.why)}?`);
  place.replaceChildren(h("div", { class: "row" }, title, close), h("p", { role: "status" }, "Computing."));
  if (!place.open) place.showModal();
  const parameters = asked(state, under, { of: state.why });
  const [parts, sample] = await Promise.all([
    told(get("breakdown", parameters).then(({ cells, name }) => h("div", {}, h("p", { class: "soft" }, `Under ${name}: each checkpoint and timestep of the query, summed over the sample's own.`), heatMap(cells)))),
    told(get("sample", parameters)),
  ]);
  if (own !== turn) return;
  if (sample instanceof HTMLElement) return place.replaceChildren(h("div", { class: "row" }, title, close), sample);
  const name = h("button", { onclick: () => copy(state.why, name) }, "Copy the id");
  const facts = Object.entries({ id: sample.id, ...sample.columns, "equal in the store": sample.copies });
  place.replaceChildren(
    h("div", { class: "row" }, title, close),
    h("div", { class: "beside" },
      h("div", {}, picture("sample", state.why, 256, altOf(sample)),
        h("p", { class: "row" }, h("a", { href: link({ sample: state.why, why: null, k: null }), "data-walk": true, class: "button" }, "Ask about this"),
          h("a", { href: image("sample", state.why, 0), target: "_blank", rel: "noopener" }, "Open the original"), name)),
      h("dl", {}, facts.flatMap(([key, value]) => [h("dt", {}, text(key)), h("dd", {}, value === null ? "none" : text(value))]))),
    part("Where the score comes from", parts),
    part("How influential it is", ...influence(sample)),
    part("Its rows", rows(sample)));
  close.focus();
}

export function prepare() {
  $("why").addEventListener("close", () => go({ why: null, under: null }));
}
