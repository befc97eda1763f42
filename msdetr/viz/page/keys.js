// The keyboard.

import { MODES, RULES } from "./controls.js";
import { h } from "./dom.js";
import { chosenImages } from "./gallery.js";
import { settingsOf, stepsOf } from "./scene.js";

const KEYS = [
  ["← →", "image before, image after"],
  ["↑ ↓", "object before, object after"],
  ["[ ]", "layer before, layer after"],
  ["1 2 3 4", "output, one-to-one, one-to-many, both"],
  ["t T", "τ down, up"],
  ["k K", "k down, up"],
  ["a A", "α down, up"],
  ["r", "next rule"],
  ["g", "merge one-to-one pairs, or not"],
  ["s S", "score of detections down, up"],
  ["0", "settings as in training"],
  [", .", "training step before, after"],
  ["f", "play the training"],
  ["j", "candidates by score, by cost"],
  ["b", "the other run"],
  ["+ − =", "zoom in, out, whole image"],
  ["d", "dark, light"],
  ["p", "larger, for a projector"],
  ["Esc", "let go: query, object, then back to all images"],
  ["?", "these keys"],
];

/** What each key does, as key → function, for listenToKeys. depth(): layers of what is shown. */
export function shortcuts(content, actions, depth) {
  const { get, set, change, zoom } = actions;
  const within = (value, least, most) => Math.min(Math.max(value, least), most);
  const rounded = (value) => Number(value.toFixed(4));
  const next = (list, value, by) => list[within(list.indexOf(value) + by, 0, list.length - 1)];
  const settings = () => settingsOf(content, get().run, get());
  const turn = (name, by, least, most) => () => change({ [name]: rounded(within(settings()[name] + by, least, most)) });
  const leastBy = (by) => () => set({ least: rounded(within(get().least + by, 0.02, 0.99)) });
  const imageBy = (by) => () => {
    const chosen = chosenImages(content, get()).map((entry) => entry.index);
    if (chosen.length) set({ image: next(chosen, get().image, by), object: null, query: null });
  };
  const layerBy = (by) => () => set({ layer: within(Math.min(get().layer, depth() - 1) + by, 0, depth() - 1) });
  const stepBy = (by) => () => set({ step: next(stepsOf(content, get().image), get().step, by), playing: false });
  const objectBy = (by) => () => {
    const { object, image } = get();
    const count = content.images[image].labels.length;
    if (count) set({ object: object === null ? (by > 0 ? 0 : count - 1) : (object + by + count) % count, query: null });
  };
  const rules = RULES.map(([rule]) => rule);
  const ofImage = {
    ArrowLeft: imageBy(-1), ArrowRight: imageBy(1), ArrowUp: objectBy(-1), ArrowDown: objectBy(1), "[": layerBy(-1), "]": layerBy(1),
    t: turn("threshold", -0.02, 0, 1), T: turn("threshold", 0.02, 0, 1), k: turn("k", -1, 1, 1000), K: turn("k", 1, 1, 1000),
    a: turn("alpha", -0.05, 0, 1), A: turn("alpha", 0.05, 0, 1), s: leastBy(-0.02), S: leastBy(0.02), 0: () => set({ changes: {} }),
    r: () => change({ rule: rules[(rules.indexOf(settings().rule) + 1) % rules.length] }),
    g: () => change({ merge: !settings().merge }),
    ",": stepBy(-1), ".": stepBy(1), f: actions.play, j: () => set({ judge: get().judge === "many" ? "one" : "many" }),
    "+": () => zoom({ times: 1.25 }), "-": () => zoom({ times: 0.8 }), "=": () => zoom({ reset: true }),
    ...Object.fromEntries(MODES.map(([mode], i) => [i + 1, () => set({ mode })])),
  }; // prettier-ignore
  const onImage = Object.entries(ofImage).map(([key, action]) => [key, () => get().screen === "image" && action()]);
  return {
    ...Object.fromEntries(onImage),
    d: actions.theme,
    p: actions.larger,
    b: () => content.runs.length > 1 && set({ run: (get().run + 1) % content.runs.length, query: null }),
    "?": actions.help,
    Escape: () => {
      const { query, object, screen } = get();
      if (query) set({ query: null });
      else if (object !== null) set({ object: null });
      else if (screen === "image" && content.images.length > 1) set({ screen: "overview" });
      else set({ cause: null, label: null, size: null });
    },
  };
}

/** Listens to keys on an element; handlers: key → function. Keys that a focused control needs are left to it, and not to the
 * notebook around the page, which has commands of its own for them; an open dialog has all of them. */
export function listenToKeys(element, handlers) {
  const onkeydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    if (target.closest?.("dialog")) return;
    const typing = target.matches?.("input[type=search], select, textarea");
    const sliding = target.matches?.("input[type=range]") && /^(Arrow|Home|End|Page)/.test(event.key);
    if ((typing && event.key !== "Escape") || sliding) return event.stopPropagation();
    const handler = handlers[event.key];
    if (!handler) return;
    event.preventDefault();
    event.stopPropagation();
    handler();
  };
  element.addEventListener("keydown", onkeydown);
  return () => element.removeEventListener("keydown", onkeydown);
}

/** The list of keys, as a dialog. */
export function keyHelp() {
  const dialog = h(
    "dialog",
    { class: "help", "aria-label": "keys" },
    h("h2", {}, "Keys"),
    h("dl", {}, KEYS.map(([keys, text]) => [h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, text)])),
    h("button", { type: "button", onclick: () => dialog.close() }, "close"),
  );
  return dialog;
}
