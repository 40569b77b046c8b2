// Makes elements of a tree of strings and {tag, attributes, children}: text nodes and attributes alone, never markup.

/** A new element with a class and, if given, a text. */
export function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A button of a bar of actions. */
export function makeButton(label, className, press) {
  const button = make("button", className, label);
  button.type = "button";
  button.addEventListener("click", press);
  return button;
}

// The source of which a block was made, so that a block that has not changed is not looked at again.
const sources = new WeakMap();

/** Shows a tree in an element. What is there already stays and is only added to, so that nothing flickers and a selection survives. */
export function show(parent, nodes) {
  nodes.forEach((node, index) => {
    const there = parent.childNodes[index];
    if (there && node.source !== undefined && sources.get(there) === node.source) return;
    const made = patch(parent, there, node);
    if (node.source !== undefined) sources.set(made, node.source);
  });
  while (parent.childNodes.length > nodes.length) parent.lastChild.remove();
}

/** Makes one child of an element what a node says; returns it. */
function patch(parent, there, node) {
  if (typeof node === "string") return patchText(parent, there, node);
  let element = there;
  if (there?.nodeType !== Node.ELEMENT_NODE || there.localName !== node.tag) {
    element = document.createElement(node.tag);
    place(parent, there, element);
  }
  for (const name of element.getAttributeNames()) if (!(name in node.attributes)) element.removeAttribute(name);
  for (const [name, value] of Object.entries(node.attributes)) {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
  sources.delete(element);
  show(element, node.children);
  return element;
}

function patchText(parent, there, text) {
  if (there?.nodeType !== Node.TEXT_NODE) {
    const made = document.createTextNode(text);
    place(parent, there, made);
    return made;
  }
  if (text.startsWith(there.data)) {
    if (text.length > there.data.length) there.appendData(text.slice(there.data.length));
  } else there.data = text;
  return there;
}

function place(parent, there, made) {
  if (there) there.replaceWith(made);
  else parent.append(made);
}
