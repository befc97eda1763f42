// The page: its state, and the parts that show it. `mount` puts it into an element; `render` is what anywidget calls.

import { addressOf, fromAddress } from "./address.js";
import { budget } from "./budget.js";
import { candidates } from "./candidates.js";
import { controls, MODES, RULES } from "./controls.js";
import { h, show } from "./dom.js";
import { chosenImages, filmstrip, gallery } from "./gallery.js";
import { keyHelp, listenToKeys } from "./keys.js";
import { number } from "./numbers.js";
import { failureSection, objectList } from "./objects.js";
import { path } from "./path.js";
import { picture } from "./picture.js";
import { readContent, sceneOf, settingsOf, stepsOf } from "./scene.js";
import { wins } from "./wins.js";

const WHOLE = { scale: 1, x: 0.5, y: 0.5 };

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
  const actions = { set, get: () => state, select, hover, zoom, open, filter, play, change };

  // ---- the parts
  const parts = {
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
  const back = h("button", { type: "button", class: "back", title: "all images (Esc)", onclick: () => set({ screen: "overview" }) }, "‹ all images");
  const title = h("h1", { hidden: content.runs.length > 1 }, first.title);
  const where = h("span", { class: "where" });
  const runs = content.runs.length > 1 ? content.runs.map((run, i) => h("button", { type: "button", "data-run": i, title: "the run whose objects, candidates and failures are listed (b)", onclick: () => set({ run: i, query: null }) }, run.title)) : [];
  const tools = [
    ["A+", "larger, for a projector (p)", larger],
    ["◐", "dark or light (d)", theme],
    ["?", "keys (?)", () => parts.help.showModal()],
  ].map(([text, about, onclick]) => h("button", { type: "button", class: "tool", title: about, "aria-label": about, onclick }, text));
  const header = h("header", {}, back, title, runs.length ? h("div", { class: "choice", role: "group", "aria-label": "run" }, runs) : null, where, h("div", { class: "tools" }, tools));
  const overview = h("main", { class: "overview" }, wins(content, actions), parts.budgets.map((own) => own.element), parts.gallery.element);
  const inspector = h("aside", { class: "inspector" }, parts.objects.element, parts.candidates.element, parts.failures.element);
  const viewer = h("main", { class: "viewer" }, content.images.length > 1 ? parts.filmstrip.element : null, h("div", { class: "stage" }, parts.controls.element, h("div", { class: "pictures" }, parts.pictures.map((own) => own.element)), parts.path.element), inspector);
  const footer = h("footer", {}, content.about.text.map((line) => h("p", {}, line)));
  const page = h("div", { class: content.runs.length > 1 ? "msdetr two" : "msdetr", tabindex: -1 }, header, overview, viewer, footer, parts.help);
  root.append(page);

  // ---- changes
  let scenes = [];
  let timer = null;
  let writing = null;

  function set(changes) {
    const image = changes.image !== undefined && changes.image !== state.image;
    state = { ...state, ...(image ? { zoom: WHOLE } : {}), ...changes };
    update();
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
    back.hidden = state.screen !== "image" || content.images.length === 1;
    runs.forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.run)));
    if (state.screen === "overview") {
      show(where, content.about.data);
      parts.budgets.forEach((own, run) => {
        own.element.hidden = run !== state.run || !content.runs[run].budget;
        own.update(state);
      });
      return parts.gallery.update(state);
    }
    show(where, content.images[state.image].name);
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

  function play() {
    clearInterval(timer);
    const steps = stepsOf(content, state.image);
    if (state.playing || steps.length < 2) return set({ playing: false });
    set({ playing: true, step: state.step === steps.at(-1) ? steps[0] : state.step });
    timer = setInterval(() => {
      const next = stepsOf(content, state.image)[stepsOf(content, state.image).indexOf(state.step) + 1];
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
    const sizes = [1, 1.2, 1.45];
    set({ scale: sizes[(sizes.indexOf(state.scale) + 1) % sizes.length] });
  }

  // ---- keyboard
  const next = (list, value, by) => list[Math.min(Math.max(list.indexOf(value) + by, 0), list.length - 1)];
  const turn = (name, by, least, most) => () => {
    const value = settingsOf(content, state.run, state)[name] + by;
    change({ [name]: Number(Math.min(Math.max(value, least), most).toFixed(4)) });
  };
  const go = (by) => () => set({ image: next(chosenImages(content, state).map((entry) => entry.index), state.image, by), object: null, query: null });
  const objectBy = (by) => () => {
    const count = content.images[state.image].labels.length;
    if (count) set({ object: state.object === null ? (by > 0 ? 0 : count - 1) : (state.object + by + count) % count, query: null });
  };
  const depth = () => scenes[state.run]?.frame.one.layers ?? 1;
  const layerBy = (by) => () => set({ layer: Math.min(Math.max(Math.min(state.layer, depth() - 1) + by, 0), depth() - 1) });
  const stepBy = (by) => () => set({ step: next(stepsOf(content, state.image), state.step, by), playing: false });
  const leastBy = (by) => () => set({ least: Number(Math.min(Math.max(state.least + by, 0.02), 0.99).toFixed(4)) });
  const inViewer = (action) => () => state.screen === "image" && action();
  const viewerKeys = {
    ArrowLeft: go(-1), ArrowRight: go(1), ArrowUp: objectBy(-1), ArrowDown: objectBy(1), "[": layerBy(-1), "]": layerBy(1),
    t: turn("threshold", -0.02, 0, 1), T: turn("threshold", 0.02, 0, 1), k: turn("k", -1, 1, 1000), K: turn("k", 1, 1, 1000),
    a: turn("alpha", -0.05, 0, 1), A: turn("alpha", 0.05, 0, 1), s: leastBy(-0.02), S: leastBy(0.02), 0: () => set({ changes: {} }),
    r: () => change({ rule: next([...RULES, RULES[0]].map(([rule]) => rule), settingsOf(content, state.run, state).rule, 1) }),
    g: () => change({ merge: !settingsOf(content, state.run, state).merge }),
    ",": stepBy(-1), ".": stepBy(1), f: play, j: () => set({ judge: state.judge === "many" ? "one" : "many" }),
    "+": () => zoom({ times: 1.25 }), "-": () => zoom({ times: 0.8 }), "=": () => zoom({ reset: true }),
    ...Object.fromEntries(MODES.map(([mode], i) => [i + 1, () => set({ mode })])),
  }; // prettier-ignore
  const stopKeys = listenToKeys(embedded ? page : document, {
    ...Object.fromEntries(Object.entries(viewerKeys).map(([key, action]) => [key, inViewer(action)])),
    d: theme,
    p: larger,
    b: () => content.runs.length > 1 && set({ run: (state.run + 1) % content.runs.length, query: null }),
    "?": () => parts.help.showModal(),
    Escape: () => {
      if (state.query) set({ query: null });
      else if (state.object !== null) set({ object: null });
      else if (state.screen === "image" && content.images.length > 1) set({ screen: "overview" });
      else set({ cause: null, label: null, size: null });
    },
  });

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
