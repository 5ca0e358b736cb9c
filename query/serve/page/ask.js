// Who is asked: an image that is given, a stored query, a training image, one that the model draws.

import { fresh, get, post } from "./api.js";
import { $, count, h, text } from "./dom.js";
import { picture } from "./picture.js";
import { go } from "./state.js";

const PAGE = 24;
let offset = 0;

function say(words, share = null) {
  $("status").textContent = words;
  $("progress").hidden = share === null;
  if (share === null || Number.isNaN(share)) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

async function follow(one) {
  while (one.state === "waiting" || one.state === "running") {
    if (one.state === "waiting") say(`Waiting: ${one.ahead} before this one.`, NaN);
    else say(`${one.step || "preparing"}: ${one.done} of ${one.total || "?"}`, one.total ? one.done / one.total : NaN);
    await new Promise((done) => setTimeout(done, 250));
    one = await fresh(`asked/${encodeURIComponent(one.asked)}`);
  }
  if (one.state === "failed") throw new Error(one.error);
  say("");
  go({ asked: one.asked, why: null, k: null });
}

async function ask(parameters, body, type) {
  say("Sending.", NaN);
  const sent = post(`asked?${parameters}`, body, type).then((response) => response.json());
  await sent.then(follow).catch((error) => say(`It cannot be asked: ${error.message}`));
}

const given = (more) => new URLSearchParams(Object.entries({ ...more, prompt: $("prompt").value }).filter(([, value]) => value));

function give(file) {
  if (!file) return;
  ask(given({ label: $("class-label").value }), file, "application/octet-stream");
}

async function pick(more = false) {
  offset = more ? offset + PAGE : 0;
  const kind = $("kind").value;
  const found = await get("list", new URLSearchParams({ kind, find: $("find").value, offset, limit: PAGE }));
  const picks = found.found.map((one) => h("li", {}, picture(kind, one.id, 56, `${kind === "query" ? "query" : "training sample"} ${text(one.id)}${one.label === null ? "" : `, label ${text(one.label)}`}`, { [kind]: one.id, why: null, k: null })));
  if (more) $("picks").append(...picks);
  else $("picks").replaceChildren(...(picks.length ? picks : [h("li", {}, "none")]));
  $("more-picks").hidden = offset + PAGE >= found.total;
  $("more-picks").textContent = `More of ${count(found.total)}`;
}

export function prepare(about) {
  $("drop").hidden = !about.can_ask;
  $("generate").hidden = !about.can_generate;
  $("prompted").hidden = !about.prompts;
  $("class").hidden = !(about.can_ask && about.classes);
  if (!about.queries) $("kind").querySelector("[value=query]").remove();
  $("kind").addEventListener("change", () => pick());
  $("find").addEventListener("input", () => pick());
  $("more-picks").addEventListener("click", () => pick(true));
  $("file").addEventListener("change", ({ target }) => give(target.files[0]));
  $("generate").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(given({ seed: $("seed").value || "0" }));
  });
  if (about.can_ask) {
    addEventListener("paste", ({ clipboardData }) => give([...(clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"))));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      give(event.dataTransfer.files[0]);
    });
  }
  return pick();
}
