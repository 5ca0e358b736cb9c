// The map of the training samples: near ones have similar influence.

import { get } from "./api.js";
import { h } from "./dom.js";

export function prepare() {}

export async function shown() {
  const found = await get("map");
  return h("p", {}, String(found.points.length));
}
