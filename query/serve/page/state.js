// What the page shows is what its link says; every change is a new link.

const LISTS = ["measure", "checkpoints", "where", "ids", "open"];
const WHO = ["query", "sample", "asked"];
const DEFAULTS = { k: "20", size: "96", sort: "rank", near: "0", colour: "" };
const OF_ANSWER = [...WHO, "k", "low", "high", "checkpoints", "where", "ids"];

export function read(search = location.search) {
  const given = new URLSearchParams(search);
  const state = { ...DEFAULTS };
  for (const [name, value] of given) if (!LISTS.includes(name)) state[name] = value;
  for (const name of LISTS) state[name] = given.getAll(name);
  if (!state.measure.length) state.measure = ["tracin", "retrac"];
  state.measure = state.measure.slice(0, 3);
  state.kind = WHO.find((name) => state[name] !== undefined);
  state.name = state[state.kind];
  return state;
}

function written(state) {
  const out = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name === "kind" || name === "name" || value === DEFAULTS[name]) continue;
    for (const one of Array.isArray(value) ? value : [value])
      if (one !== undefined && one !== null && one !== "") out.append(name, one);
  }
  return out;
}

export function link(changes) {
  const state = { ...read(), ...changes };
  if (WHO.some((name) => changes[name] !== undefined))
    for (const name of WHO) state[name] = changes[name];
  return `/?${written(state)}`;
}

export function go(changes, { replace = false } = {}) {
  const next = link(changes);
  if (next === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", next);
  dispatchEvent(new Event("moved"));
}

// The part of a state that an answer depends on, as the API takes it.
export function asked(state, measure, more = {}) {
  const out = new URLSearchParams({ measure, ...more });
  for (const name of OF_ANSWER) {
    const value = state[name];
    for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined) out.append(name, one);
  }
  return out;
}
