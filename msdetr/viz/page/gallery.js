// The images of the page, worst first, to look through, filter and open.

import { DETECTIONS, OUTCOMES } from "./colors.js";
import { h, show, svg } from "./dom.js";
import { number } from "./numbers.js";
import { failuresOf } from "./objects.js";
import { outcomesOf } from "./outcomes.js";
import { boxOf, imageOf, pixels } from "./picture.js";

/** Images that pass the filters: [{index, failures, lost}], most lost AP first; without a budget in the order of the page. */
export function chosenImages(content, state) {
  const { run } = state;
  const budget = content.runs[run].budget;
  const filtered = state.cause !== null || state.label !== null || state.size !== null;
  const entries = content.images.map((image, index) => {
    const failures = failuresOf(content, run, image.id, state);
    const lost = filtered ? failures.reduce((sum, failure) => sum + failure.lost_ap, 0) : (budget?.images.find((own) => own.image_id === image.id)?.lost_ap ?? null);
    return { index, failures, lost };
  });
  const named = (index) => content.images[index].name.toLowerCase().includes(state.search.toLowerCase());
  const kept = entries.filter(({ index, failures }) => named(index) && (!filtered || failures.length));
  return budget ? kept.sort((a, b) => (b.lost ?? 0) - (a.lost ?? 0) || a.index - b.index) : kept;
}

/** The cards of the overview. Returns {element, update(state)}. */
export function gallery(content, actions) {
  const search = h("input", { type: "search", placeholder: "file name", "aria-label": "file name", oninput: (event) => actions.set({ search: event.target.value }) });
  const causes = new Map(content.runs.flatMap((run) => run.budget?.causes ?? []).map((cause) => [cause.id, cause.name]));
  const hasBudget = content.runs.some((run) => run.budget);
  const menu = (label, key, options) => {
    const select = h("select", { "aria-label": label, "data-name": key, onchange: (event) => actions.filter({ [key]: event.target.value === "" ? null : options[event.target.value][0] }) }, h("option", { value: "" }, `any ${label}`), options.map(([, text], i) => h("option", { value: i }, text)));
    return { select, set: (value) => (select.value = value === null ? "" : options.findIndex(([own]) => own === value)) };
  };
  const menus = hasBudget
    ? {
        cause: menu("cause", "cause", [...causes]),
        label: menu("class", "label", content.classes.map((name, i) => [i, name])),
        size: menu("size", "size", ["small", "medium", "large"].map((name) => [name, name])),
      }
    : {};
  const count = h("span", { class: "note", role: "status" });
  const cards = h("div", { class: "cards" });
  const heading = h("h2", {}, hasBudget ? "Images, worst first" : "Images");
  const element = h("section", { class: "gallery", "aria-label": "gallery" }, h("div", { class: "filters" }, heading, Object.values(menus).map((own) => own.select), search, count), cards);
  let drawn = "";

  function update(state) {
    if (search.value !== state.search) search.value = state.search;
    for (const [key, own] of Object.entries(menus)) own.set(state[key]);
    const chosen = chosenImages(content, state);
    count.textContent = `${chosen.length} of the ${content.images.length} images on this page${content.about.images > content.images.length ? `, of ${content.about.images} in all` : ""}`;
    const asked = JSON.stringify([chosen.map((entry) => entry.index), state.run, state.cause, state.label, state.size, hasBudget ? 0 : state.least]);
    if (asked === drawn) return;
    drawn = asked;
    show(cards, chosen.map((entry) => card(entry, state)));
  }

  function card({ index, failures, lost }, state) {
    const image = content.images[index];
    const first = failures[0];
    return h(
      "button",
      { type: "button", class: "card", "data-image": index, onclick: () => actions.set({ screen: "image", image: index, object: null, query: null }) },
      thumbnail(image, index, failures, state),
      h("b", {}, image.name),
      lost === null ? null : h("span", { class: "lost" }, `−${number(lost, 2)} AP`),
      image.views.some((view) => view?.film.length) ? h("span", { class: "badge" }, "▶ with its training") : null,
      first ? h("span", { class: "sentence" }, `${causes.get(first.cause)}: ${first.sentence}`) : hasBudget ? h("span", { class: "sentence" }, "nothing was lost here") : h("span", { class: "sentence" }, summary(index, state)),
    );
  }

  function summary(index, state) {
    const frame = content.images[index].views[state.run] ? content.frameIn(index, state.run, -1) : null;
    if (!frame) return "";
    const { outcomes } = outcomesOf(frame, content.objectsIn(index), state.least);
    return ["found", "doubled", "missed"].map((word) => `${outcomes.filter((own) => own === word).length} ${word}`).join(", ");
  }

  function thumbnail(image, index, failures, state) {
    const drawing = svg("svg", { viewBox: `0 0 ${image.width} ${image.height}`, class: "thumbnail", "aria-hidden": "true" }, imageOf(image));
    for (const failure of failures.slice(0, 8)) {
      const [x0, y0, x1, y1] = failure.box;
      const look = failure.kind === "false" ? DETECTIONS.background : failure.kind === "low" ? OUTCOMES.doubled : OUTCOMES.missed;
      drawing.append(boxOf({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 }, look.color, { width: 2, dash: look.dash }));
    }
    if (!hasBudget && content.images[index].views[state.run]) {
      const objects = content.objectsIn(index);
      const { outcomes } = outcomesOf(content.frameIn(index, state.run, -1), objects, state.least);
      outcomes.forEach((own, target) => drawing.append(boxOf(pixels(objects.boxes, target, image), OUTCOMES[own].color, { width: 2, dash: OUTCOMES[own].dash })));
    }
    return drawing;
  }

  return { element, update };
}

/** The strip of small pictures beside the open image. Returns {element, update(state)}. */
export function filmstrip(content, actions) {
  const element = h("nav", { class: "filmstrip", "aria-label": "images" });
  let drawn = "";
  function update(state) {
    const order = chosenImages(content, state).map((entry) => entry.index);
    if (order.join() !== drawn) {
      drawn = order.join();
      show(element, order.map((index) => h("button", { type: "button", "data-image": index, title: content.images[index].name, onclick: () => actions.set({ image: index, object: null, query: null }) }, small(content.images[index]))));
    }
    for (const button of element.children) button.setAttribute("aria-current", String(Number(button.dataset.image) === state.image));
    const current = element.querySelector('[aria-current="true"]');
    if (current && current.offsetTop !== undefined) element.scrollTop = current.offsetTop - element.clientHeight / 2;
  }
  const small = (image) => (image.picture ? h("img", { src: image.picture, alt: image.name }) : image.name);
  return { element, update };
}
