// The page: its state, and the parts that show it. `mount` puts it into an element; `render` is what anywidget calls.

import { addressOf, fromAddress } from "./address.js";
import { budget } from "./budget.js";
import { candidates } from "./candidates.js";
import { controls } from "./controls.js";
import { h } from "./dom.js";
import { chosenImages, filmstrip, gallery } from "./gallery.js";
import { header } from "./header.js";
import { keyHelp, listenToKeys, shortcuts } from "./keys.js";
import { failureSection, objectList } from "./objects.js";
import { path } from "./path.js";
import { picture } from "./picture.js";
import { readContent, sceneOf, stepsOf } from "./scene.js";
import { wins } from "./wins.js";

const WHOLE = { scale: 1, x: 0.5, y: 0.5 };
const SIZES = [1, 1.2, 1.45]; // of the text

/**
 * Shows the content of a page in an element. options: embedded, in a notebook; onchange(state), called after every change.
 * Returns {set(changes), get(), destroy()}.
 */
export function mount(root, raw, { embedded = false, onchange = null } = {}) {
  const content = Object.assign(readContent(raw), { embedded });
  const first = content.runs[0];
  let state = {
    screen: embedded || content.images.length === 1 ? "image" : "overview",
    image: chosenImages(content, { run: 0, cause: null, label: null, size: null, search: "" })[0]?.index ?? 0,
    run: 0,
    layer: first.layers - 1,
    step: "end",
    changes: {},
    mode: "both",
    judge: "many",
    least: first.least,
    object: null,
    query: null,
    zoom: WHOLE,
    cause: null,
    label: null,
    size: null,
    search: "",
    grouping: "all",
    playing: false,
    theme: null,
    scale: 1,
  };
  const actions = { set, get: () => state, select, hover, zoom, open, filter, play, change, theme, larger, help };

  // ---- the parts
  const parts = {
    header: header(content, actions),
    budgets: content.runs.map((_, run) => budget(content, run, actions)),
    gallery: gallery(content, actions),
    filmstrip: filmstrip(content, actions),
    controls: controls(content, actions),
    pictures: content.runs.map((_, run) => picture(content, run, actions)),
    objects: objectList(content, actions),
    candidates: candidates(content, actions),
    failures: failureSection(content, actions),
    path: path(content, actions),
    help: keyHelp(),
  };
  const overview = h("main", { class: "overview" }, wins(content, actions), parts.budgets.map((own) => own.element), parts.gallery.element);
  const inspector = h("aside", { class: "inspector" }, parts.objects.element, parts.candidates.element, parts.failures.element);
  const viewer = h("main", { class: "viewer" }, content.images.length > 1 ? parts.filmstrip.element : null, h("div", { class: "stage" }, parts.controls.element, h("div", { class: "pictures" }, parts.pictures.map((own) => own.element)), parts.path.element), inspector);
  const footer = h("footer", {}, content.about.text.map((line) => h("p", {}, line)));
  const page = h("div", { class: content.runs.length > 1 ? "msdetr two" : "msdetr", tabindex: -1 }, parts.header.element, overview, viewer, footer, parts.help);
  root.append(page);

  // ---- changes
  let scenes = [];
  let timer = null;
  let writing = null;

  function set(changes) {
    const image = changes.image !== undefined && changes.image !== state.image;
    state = { ...state, ...(image ? { zoom: WHOLE } : {}), ...changes };
    const leaves = page.dataset.screen && page.dataset.screen !== state.screen;
    update();
    if (leaves) page.querySelector(state.screen === "image" ? ".back" : `.card[data-image="${state.image}"]`)?.focus();
    if (["screen", "image", "query", "scale"].some((key) => key in changes)) fit();
    clearTimeout(writing);
    if (!embedded) writing = setTimeout(remember, 200);
    onchange?.(state);
  }

  function update() {
    page.dataset.theme = state.theme ?? "";
    page.dataset.screen = state.screen;
    page.style.setProperty("--scale", state.scale);
    overview.hidden = state.screen !== "overview";
    viewer.hidden = state.screen !== "image";
    parts.header.update(state);
    if (state.screen === "overview") {
      parts.budgets.forEach((own, run) => {
        own.element.hidden = run !== state.run || !content.runs[run].budget;
        own.update(state);
      });
      return parts.gallery.update(state);
    }
    scenes = content.runs.map((_, run) => sceneOf(content, run, state));
    parts.controls.update(state);
    parts.filmstrip.update(state);
    parts.pictures.forEach((own, run) => own.update(scenes[run], state));
    for (const name of ["objects", "candidates", "failures", "path"]) parts[name].update(scenes[state.run], state);
  }

  /** Makes the pictures as high as the window leaves room for, with the path below them. */
  function fit() {
    const top = parts.pictures[0].element.getBoundingClientRect().top - page.getBoundingClientRect().top;
    const below = parts.path.element.offsetHeight;
    page.style.setProperty("--above", `${Math.round(top + 62 * state.scale + Math.min(below, 0.35 * innerHeight))}px`);
  }

  /** Changes settings of one-to-many matching. */
  function change(changes) {
    set({ changes: { ...state.changes, ...changes } });
  }

  /** Chooses an object, a query, or neither. keep: the object stays chosen. */
  function select({ run = state.run, object = null, query = null, keep = false } = {}) {
    if (query !== null) return set({ run, query: { run, query }, object: keep || state.object !== null ? state.object : object });
    set({ run, object, query: null });
  }

  function hover(marked) {
    for (const own of parts.pictures) own.mark(marked);
    for (const name of ["objects", "candidates"]) parts[name].mark(marked);
  }

  function zoom({ reset, times = 1, at, screen, move }) {
    if (reset) return set({ zoom: WHOLE });
    const scale = Math.min(Math.max(state.zoom.scale * times, 1), 30);
    let { x, y } = state.zoom;
    if (at) [x, y] = [at[0] + (0.5 - screen[0]) / scale, at[1] + (0.5 - screen[1]) / scale];
    if (move) [x, y] = [x + move[0], y + move[1]];
    const inside = (value) => Math.min(Math.max(value, 0.5 / scale), 1 - 0.5 / scale);
    set({ zoom: { scale, x: inside(x), y: inside(y) } });
  }

  /** Opens the image of a failure, with what it is about chosen. */
  function open(failure, run) {
    const image = content.images.findIndex((own) => own.id === failure.image_id);
    if (image < 0) return;
    const mode = failure.kind === "missed" ? "both" : "output";
    set({ screen: "image", image, run, mode, object: failure.object, query: failure.query === null ? null : { run, query: failure.query } });
  }

  function filter(changes, run = state.run) {
    set({ run, ...changes });
    if (Object.values(changes).some((value) => value !== null)) parts.gallery.element.scrollIntoView?.({ block: "nearest" });
  }

  /** Plays the recorded training, or stops it. */
  function play() {
    clearInterval(timer);
    const steps = stepsOf(content, state.image);
    if (state.playing || steps.length < 2) return set({ playing: false });
    set({ playing: true, step: state.step === steps.at(-1) ? steps[0] : state.step });
    timer = setInterval(() => {
      const now = stepsOf(content, state.image); // of another image, perhaps
      const next = now[now.indexOf(state.step) + 1];
      if (!state.playing || next === undefined || !page.isConnected) {
        clearInterval(timer);
        if (state.playing) set({ playing: false });
      } else set({ step: next });
    }, 350);
  }

  function theme() {
    const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    set({ theme: dark ? "light" : "dark" });
  }

  function larger() {
    set({ scale: SIZES[(SIZES.indexOf(state.scale) + 1) % SIZES.length] });
  }

  function help() {
    parts.help.showModal();
  }

  const depth = () => scenes[state.run]?.frame.one.layers ?? 1;
  const stopKeys = listenToKeys(embedded ? page : document, shortcuts(content, actions, depth));

  // ---- the address
  function remember() {
    try {
      history.replaceState(null, "", `#${addressOf(state)}`);
    } catch {
      // a browser that forbids it, or too many changes at once: the address is a convenience
    }
  }
  const follow = () => set(fromAddress(location.hash.slice(1), content));
  addEventListener("resize", fit);
  if (!embedded) {
    addEventListener("hashchange", follow);
    follow();
  } else set({ image: state.image });

  return {
    set,
    get: () => state,
    scenes: () => scenes,
    destroy() {
      clearInterval(timer);
      clearTimeout(writing);
      stopKeys();
      removeEventListener("hashchange", follow);
      removeEventListener("resize", fit);
      page.remove();
    },
  };
}

/** What anywidget calls: the page in a notebook's output. The model's `chosen` has what is on the screen, both ways. */
function render({ model, el }) {
  let own = false;
  const plainly = (state) => ({ image: state.image, layer: state.layer, step: state.step, object: state.object, query: state.query?.query ?? null, mode: state.mode, ...state.changes });
  const page = mount(el, JSON.parse(model.get("content")), {
    embedded: true,
    onchange(state) {
      own = true;
      model.set("chosen", plainly(state));
      model.save_changes();
      own = false;
    },
  });
  const follow = () => {
    if (own) return;
    const { threshold, k, alpha, rule, merge, query, ...rest } = model.get("chosen");
    const given = Object.entries({ threshold, k, alpha, rule, merge }).filter(([, value]) => value !== undefined && value !== null);
    const run = page.get().run;
    page.set({ ...rest, changes: Object.fromEntries(given), query: query === null || query === undefined ? null : { run, query } });
  };
  model.on("change:chosen", follow);
  return () => {
    model.off("change:chosen", follow);
    page.destroy();
  };
}

export default { render };
