// Elements, made and changed without markup in strings.

/** An element with attributes, listeners (`onclick`) and children. */
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else set(node, key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An attribute; one that is null or false is taken away. */
export function set(node, key, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(key);
  else if (node.getAttribute(key) !== String(value)) node.setAttribute(key, value === true ? '' : value);
}

/** Text, changed only where it differs, so that selections and screen readers are left alone. */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** Makes the children of a node the parts for these items, in their order; a part is made once for each key. */
export function list(parent, items, keyOf, make, update) {
  parent.parts ??= new Map();
  const old = parent.parts;
  const now = new Map();
  let at = null;
  for (const item of items) {
    const key = keyOf(item);
    const node = old.get(key) ?? make(item);
    now.set(key, node);
    update(node, item);
    const place = at ? at.nextSibling : parent.firstChild;
    if (node !== place) parent.insertBefore(node, place);
    at = node;
  }
  for (const [key, node] of old) if (!now.has(key)) node.remove();
  parent.parts = now;
}
