// Creates elements. Text becomes a text node, so that it is never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** A table. Each row is a list of texts or elements. The first cell of a row is its header. */
export function table(caption, heads, rows) {
  const cell = (content, i) => el(i === 0 ? "th" : "td", i === 0 ? { scope: "row" } : {}, content);
  return el(
    "table", {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => (head ? el("th", { scope: "col" }, head) : el("td"))))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell)))),
  );
}

/** A wide table scrolls in a box of its own, which the keyboard can reach. */
export function scrollable(label, content) {
  return el("div", { class: "scroll", role: "group", "aria-label": label, tabindex: "0" }, content);
}

let ids = 0;

/** A labelled form field. */
export function field(label, control, hint) {
  control.id ||= `field-${++ids}`;
  const help = hint && el("small", { id: `${control.id}-hint` }, hint);
  if (help) control.setAttribute("aria-describedby", help.id);
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control, help);
}

/** A message about a failure. */
export function alertBox(text) {
  return el("p", { class: "notice bad", role: "alert" }, text);
}
