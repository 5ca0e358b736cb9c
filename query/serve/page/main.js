// The page follows its link: each part shows the state that the link says.

import { get } from "./api.js";
import * as ask from "./ask.js";
import { scatter, totals } from "./charts.js";
import * as choose from "./choose.js";
import { $, count, h, text } from "./dom.js";
import { showAnswers } from "./gallery.js";
import * as map from "./map.js";
import { asked, go, read } from "./state.js";
import * as why from "./why.js";

const PANELS = {
  totals: async (state) => totals((await get("totals", asked(state, state.measure[0], { by: $("by").value }))).groups),
  map: map.show,
  norms: async (state) => scatter(await get("norms", asked(state, state.measure[0]))),
};

async function showPanel(name, state) {
  const place = $(name);
  place.open = state.open.includes(name);
  const content = place.querySelector(".content");
  if (!place.open || (!state.kind && name !== "map")) return;
  content.setAttribute("aria-busy", "true");
  const found = await PANELS[name](state).catch((error) => h("p", { class: "soft" }, error.message));
  if (content.firstChild !== found) content.replaceChildren(found);
  content.setAttribute("aria-busy", "false");
}

async function show() {
  const state = read();
  choose.show(state);
  await Promise.all([showAnswers(state), why.show(state), ...Object.keys(PANELS).map((name) => showPanel(name, state))]);
  map.redraw();
  document.body.dataset.shown = location.search;
}

const tell = (error) => $("problem").replaceChildren(text(error.message));

function walk(event) {
  const place = event.target.closest("a[data-walk]");
  if (!place || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  history.pushState(null, "", place.getAttribute("href"));
  dispatchEvent(new Event("moved"));
  scrollTo({ top: 0 });
}

async function start() {
  const about = await get("about");
  $("store").textContent = `${text(about.name)}: ${count(about.samples)} training samples, ${about.checkpoints.length} checkpoints, ${count(about.parameters)} parameters${about.metric === "none" ? "" : `, metric ${about.metric}`}`;
  $("warnings").replaceChildren(...about.warnings.map((one) => h("p", { class: "warning" }, one)));
  $("provenance").textContent = `${about.sides} ${about.errors} ${about.provenance}`;
  await choose.prepare(about);
  why.prepare();
  if (!Object.keys(about.columns).length) $("totals").hidden = true;
  $("by").addEventListener("change", () => showPanel("totals", read()));
  for (const name of Object.keys(PANELS))
    $(name).addEventListener("toggle", () => {
      const open = read().open.filter((one) => one !== name);
      if ($(name).open !== read().open.includes(name)) go({ open: $(name).open ? [...open, name] : open }, { replace: true });
    });
  document.addEventListener("click", walk);
  // On a phone the answers come before the choices.
  if (matchMedia("(max-width: 60rem)").matches && read().kind) $("choices").open = $("picker").open = false;
  const moved = () => show().catch(tell);
  addEventListener("popstate", moved);
  addEventListener("moved", moved);
  await Promise.all([ask.prepare(about), show()]);
}

start().catch(tell);
