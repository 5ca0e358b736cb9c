// Requests, of which the same is made once.

const kept = new Map();

async function answered(response) {
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({})); // what is no JSON is told by its status
  throw new Error(error ?? `the server answered ${response.status}`);
}

export function get(path, parameters = "") {
  const address = `/api/${path}?${parameters}`;
  if (!kept.has(address)) {
    const found = fetch(address).then(answered).then((response) => response.json());
    found.catch(() => kept.delete(address));
    kept.set(address, found);
    if (kept.size > 200) kept.delete(kept.keys().next().value);
  }
  return kept.get(address);
}

export const fresh = async (path) => (await answered(await fetch(`/api/${path}`))).json();

export const post = async (path, body, type) =>
  answered(await fetch(`/api/${path}`, { method: "POST", body, headers: type ? { "content-type": type } : {} }));

export const image = (kind, id, side) => `/api/image?${new URLSearchParams({ kind, id, side })}`;

export const send = (path, given) => post(path, JSON.stringify(given), "application/json");
