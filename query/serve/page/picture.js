// Images of samples, with what a screen reader says of them.

import { image } from "./api.js";
import { h, text } from "./dom.js";
import { link } from "./state.js";

export const labelOf = (one) => one.columns.label ?? null;

export function picture(kind, id, side, alt, walk = {}) {
  // Small images are served as they are and drawn in whole pixels.
  const shown = h("img", {
    src: image(kind, id, side <= 128 ? 128 : side <= 256 ? 256 : 512), alt, width: side, height: side,
    loading: "lazy", decoding: "async",
    onload: ({ target }) => target.classList.toggle("pixels", target.naturalWidth <= 64),
    onerror: ({ target }) => target.replaceWith(h("span", { class: "no-image", role: "img", "aria-label": alt }, "no image")),
  });
  return Object.keys(walk).length ? h("a", { href: link(walk), "data-walk": true }, shown) : shown;
}

export const altOf = (one) => `training sample ${text(one.id)}${labelOf(one) === null ? "" : `, label ${text(labelOf(one))}`}`;
