// What is on the screen as part of the page's address, so that a link leads to it.

import { MODES, RULES } from "./controls.js";

/** The address (what follows #) of a state. */
export function addressOf(state) {
  const parts = new URLSearchParams();
  if (state.screen === "image") parts.set("image", state.image);
  for (const key of ["object", "cause", "label", "size"]) if (state[key] !== null) parts.set(key, state[key]);
  if (state.query) parts.set("query", state.query.query);
  if (state.run) parts.set("run", state.run);
  if (state.screen === "image") {
    parts.set("show", state.mode);
    parts.set("layer", state.layer + 1);
  }
  if (state.step !== "end") parts.set("step", state.step);
  for (const [key, value] of Object.entries(state.changes)) parts.set(key, value);
  return parts.toString();
}

/** Changes of the state that an address asks for; what does not exist is left out. */
export function fromAddress(address, content) {
  const parts = new URLSearchParams(address);
  const changes = {};
  const whole = (key, below) => {
    const value = Number(parts.get(key) ?? NaN);
    return Number.isInteger(value) && value >= 0 && value < below ? value : null;
  };
  const image = whole("image", content.images.length);
  const state = { run: whole("run", content.runs.length) ?? 0 };
  if (image !== null) Object.assign(state, { image, screen: "image" });
  const shown = content.images[image ?? 0];
  state.object = whole("object", shown.labels.length);
  const layer = whole("layer", 65);
  if (layer) state.layer = layer - 1;
  const frame = shown.views[state.run]?.frame;
  const query = frame ? whole("query", frame.one_to_one.queries) : null;
  state.query = query === null ? null : { run: state.run, query };
  if (MODES.some(([mode]) => mode === parts.get("show"))) state.mode = parts.get("show");
  const step = whole("step", 1e9);
  if (step !== null) state.step = step;
  state.label = whole("label", content.classes.length);
  const causes = content.runs[state.run].budget?.causes ?? [];
  state.cause = causes.some((cause) => cause.id === parts.get("cause")) ? parts.get("cause") : null;
  state.size = ["small", "medium", "large"].includes(parts.get("size")) ? parts.get("size") : null;
  for (const key of ["threshold", "alpha"]) {
    const value = Number(parts.get(key) ?? NaN);
    if (value >= 0 && value <= 1) changes[key] = value;
  }
  const k = whole("k", 1001);
  if (k) changes.k = k;
  if (RULES.some(([rule]) => rule === parts.get("rule"))) changes.rule = parts.get("rule");
  if (["true", "false"].includes(parts.get("merge"))) changes.merge = parts.get("merge") === "true";
  return { ...state, changes };
}
