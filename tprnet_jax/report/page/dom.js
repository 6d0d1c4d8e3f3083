const byId = (id) => document.getElementById(id);

/** An HTML element; attributes that are functions listen to the event of their name. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** As `element`, of SVG. */
function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A value as tables show it; null is what is not defined. */
function shown(value, column) {
  if (value == null) return "–";
  return typeof value === "number" ? value.toFixed(column.digits) : value;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
}

function swatch(name) {
  return element("span", { class: "swatch", style: `background: var(--${name})` });
}
