// The bar at the top: back to all images, the run, what is shown, and tools.

import { h, show } from "./dom.js";

/** The bar. Returns {element, update(state)}. */
export function header(content, actions) {
  const { runs, images } = content;
  const back = h("button", { type: "button", class: "back", title: "all images (Esc)", onclick: () => actions.set({ screen: "overview" }) }, "‹ all images");
  const where = h("span", { class: "where" });
  const choose = (run) => () => actions.set({ run, query: null });
  const about = "the run whose objects, candidates and failures are listed (b)";
  const buttons = runs.map((run, i) => h("button", { type: "button", "data-run": i, title: about, onclick: choose(i) }, run.title));
  const tools = [
    ["A+", "larger, for a projector (p)", actions.larger],
    ["◐", "dark or light (d)", actions.theme],
    ["?", "keys (?)", actions.help],
  ].map(([text, title, onclick]) => h("button", { type: "button", class: "tool", title, "aria-label": title, onclick }, text));
  const element = h(
    "header",
    {},
    back,
    runs.length > 1 ? h("div", { class: "choice", role: "group", "aria-label": "run" }, buttons) : h("h1", {}, runs[0].title),
    where,
    h("div", { class: "tools" }, tools),
  );

  function update(state) {
    const open = state.screen === "image";
    back.hidden = !open || images.length === 1;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.run)));
    show(where, open ? images[state.image].name : content.about.data);
  }

  return { element, update };
}
