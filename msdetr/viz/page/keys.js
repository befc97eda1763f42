// The keyboard.

import { h } from "./dom.js";

export const KEYS = [
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

/** Listens to keys on an element; handlers: key → function. Keys that a focused control needs are left to it, and not to the
 * notebook around the page, which has commands of its own for them. */
export function listenToKeys(element, handlers) {
  const onkeydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
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
