// Training samples that are chosen, to take them away.

import { post } from "./api.js";
import { $, copy, count, h, save, text } from "./dom.js";

const chosen = new Map();
const FORMS = [["ids", "ids", "ids.txt"], ["csv", "CSV", "samples.csv"], ["parquet", "Parquet", "samples.parquet"], ["dataset", "dataset folder", "samples.zip"]];

export const isSelected = (id) => chosen.has(id);

export function select(samples, on) {
  for (const one of samples) on ? chosen.set(one.id, one) : chosen.delete(one.id);
  for (const box of document.querySelectorAll("[data-select]")) box.checked = chosen.has(box.dataset.select);
  show();
}

const body = () => JSON.stringify({ ids: [...chosen.keys()] });

async function tried(work) {
  try {
    await work();
    $("problem").replaceChildren();
  } catch (error) {
    $("problem").replaceChildren(text(error.message));
  }
}

function show() {
  const place = $("selection");
  place.hidden = chosen.size === 0;
  const command = h("pre", { id: "command", hidden: true, tabindex: "0", "aria-label": "command" });
  const copied = h("button", { hidden: true, onclick: () => copy(command.textContent, copied) }, "Copy");
  place.replaceChildren(
    h("b", {}, `${count(chosen.size)} selected`),
    ...FORMS.map(([form, name, file]) => h("button", {
      "data-form": form,
      onclick: () => tried(async () => save(await (await post(`take/${form}`, body(), "application/json")).blob(), file)),
    }, name)),
    h("button", {
      id: "remove",
      onclick: () => tried(async () => {
        command.textContent = (await (await post("delete-command", body(), "application/json")).json()).command;
        command.hidden = copied.hidden = false;
      }),
    }, "Remove these …"),
    h("button", { onclick: () => select([...chosen.values()], false) }, "Clear"), command, copied);
}
