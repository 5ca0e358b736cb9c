// Elements from text alone: nothing that comes from a store is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((one) => one !== null && one !== undefined));
  return element;
}

export const h = (tag, properties = {}, ...children) =>
  filled(document.createElement(tag), properties, children);

export const s = (tag, properties = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), properties, children);

export const $ = (id) => document.getElementById(id);

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "unknown";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(digits - 1);
  return String(Number(value.toPrecision(digits)));
}

export const count = (value) => value.toLocaleString("en");

// Unprintable and direction-changing characters are shown by their codes.
export const text = (value) =>
  String(value).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);

export async function copy(value, button) {
  // A browser gives no clipboard to other machines' pages without TLS.
  const done = await navigator.clipboard?.writeText(value).then(() => true, () => false);
  const before = button.textContent;
  button.textContent = done ? "Copied" : "Not allowed here";
  setTimeout(() => (button.textContent = before), 1200);
}

export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
