// Training samples that are chosen, to take them away.

import { send } from "./api.js";
import { $, copy, count, h, save, text } from "./dom.js";
import { altOf, picture } from "./picture.js";

const chosen = new Map();
const FORMS = [["ids", "ids", "ids.txt"], ["csv", "CSV", "samples.csv"], ["parquet", "Parquet", "samples.parquet"], ["dataset", "dataset folder", "samples.zip"]];

const LISTED = 200;

// The numbers of what is chosen, where the map draws it.
export const chosenPlaces = () => [...chosen.values()].map((one) => one.place);

export const isSelected = (id) => chosen.has(id);

export function select(samples, on) {
  for (const one of samples) on ? chosen.set(one.id, one) : chosen.delete(one.id);
  for (const box of document.querySelectorAll("[data-select]")) box.checked = chosen.has(box.dataset.select);
  show();
}

const asked = (path) => send(path, { ids: [...chosen.keys()] });

async function tried(work) {
  $("problem").replaceChildren();
  await work().catch((error) => $("problem").replaceChildren(text(error.message)));
}

function show() {
  const place = $("selection");
  place.hidden = chosen.size === 0;
  const command = h("pre", { id: "command", hidden: true, tabindex: "0", "aria-label": "command" });
  const copied = h("button", { hidden: true, onclick: () => copy(command.textContent, copied) }, "Copy");
  const list = h("details", { id: "chosen", open: $("chosen")?.open }, h("summary", {}, "Look at them"),
    h("ul", { class: "picks" }, [...chosen.values()].slice(0, LISTED).map((one) => h("li", {}, picture("sample", one.id, 56, altOf(one), { sample: one.id, why: null, k: null })))),
    chosen.size > LISTED ? h("p", { class: "soft" }, `and ${count(chosen.size - LISTED)} more`) : null);
  place.replaceChildren(
    h("b", {}, `${count(chosen.size)} selected`),
    ...FORMS.map(([form, name, file]) => h("button", {
      "data-form": form,
      onclick: () => tried(async () => save(await (await asked(`take/${form}`)).blob(), file)),
    }, name)),
    h("button", {
      id: "remove",
      onclick: () => tried(async () => {
        command.textContent = (await (await asked("delete-command")).json()).command;
        command.hidden = copied.hidden = false;
      }),
    }, "Remove these …"),
    h("button", { class: "clear", onclick: () => select([...chosen.values()], false) }, "Clear"), command, copied, list);
  dispatchEvent(new Event("selected"));
}
