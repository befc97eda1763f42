// Elements, made of names and values and never of markup: what comes from the data stays text.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, entry] of Object.entries(value)) element.style.setProperty(key, entry);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

/** An HTML element: attributes by name, "onclick" and the like as functions, style as an object; children are text or elements. */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element; see h. */
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Replaces the children of an element. What had the focus keeps it if it is there again, known by its data attributes. */
export function show(element, ...children) {
  const focused = element.getRootNode().activeElement;
  const known = element.contains(focused) ? Object.entries(focused.dataset) : [];
  element.replaceChildren(...present(children));
  const again = known.map(([key, value]) => `[data-${key}="${CSS.escape(value)}"]`).join("");
  if (again) element.querySelector(again)?.focus({ preventScroll: true });
}

/** Attributes of an element that is no button, but can be pressed: by a click, Enter or the space bar. */
export const pressable = (press) => ({
  tabindex: 0,
  onclick: press,
  onkeydown: (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    press();
  },
});

/** A row of buttons of which one is pressed: [[value, label, title]]. Returns {element, set(value)}. */
export function choice(label, options, onchange) {
  const buttons = new Map(
    options.map(([value, text, title]) => [
      value,
      h("button", { type: "button", title, "data-value": value, onclick: () => onchange(value) }, text),
    ]),
  );
  const element = h("div", { class: "choice", role: "group", "aria-label": label }, [...buttons.values()]);
  const set = (value) => buttons.forEach((button, own) => button.setAttribute("aria-pressed", String(own === value)));
  return { element, set };
}

/** A labeled slider with its value beside it. text: value → what stands there. Returns {element, input, set(value, limits)}. */
export function slider(name, { label, title, min, max, step, text = String }, oninput) {
  const output = h("output");
  const input = h("input", { type: "range", min, max, step, title, "aria-label": title, "data-name": name });
  const say = () => {
    output.textContent = text(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    say();
    oninput(Number(input.value));
  });
  const set = (value, limits = {}) => {
    for (const [key, entry] of Object.entries(limits)) if (input[key] !== String(entry)) input[key] = entry;
    if (Number(input.value) !== value) input.value = value;
    say();
  };
  return { element: h("label", { class: "slider", title }, h("span", {}, label), input, output), input, set };
}
