// What is on the screen, computed: an image as a run sees it at one step, in one layer, under some matching settings.

import { match, pairAt, pairs, serves, STATUS } from "./matching.js";
import { unpack } from "./numbers.js";
import { branchOf, objectsOf, pairsOf } from "./predictions.js";

/** The content of a page with what is decoded kept: run names, images, and scene(run, state). */
export function readContent(content) {
  const objects = new Map();
  const frames = new Map();
  const failures = content.runs.map((run) => byImage(run.budget?.failures ?? []));
  const kept = (map, key, make) => map.get(key) ?? map.set(key, make()).get(key);
  const objectsIn = (image) => kept(objects, image, () => objectsOf(content.images[image]));
  const frameIn = (image, run, index) =>
    kept(frames, `${image} ${run} ${index}`, () => readFrame(framesOf(content, image, run).at(index)));
  const failuresIn = (run, id) => failures[run].get(id) ?? [];
  const className = (label) => content.classes[label] ?? `class ${label}`;
  const objectName = (image, target) => `object ${target} (${className(content.images[image].labels[target])})`;
  return { ...content, objectsIn, frameIn, failuresIn, className, objectName };
}

/** Failures of each image: id → list, in their order. */
function byImage(failures) {
  const found = new Map();
  for (const failure of failures) {
    if (!found.has(failure.image_id)) found.set(failure.image_id, []);
    found.get(failure.image_id).push(failure);
  }
  return found;
}

/** Frames of an image in a run: those of its recorded training, then the one of the checkpoint. */
export function framesOf(content, image, run) {
  const view = content.images[image].views[run];
  return view ? [...(view.film ?? []), view.frame].filter(Boolean) : [];
}

/** Steps of the frames of an image in any run, ascending, and "end" where there is a frame of the checkpoint. */
export function stepsOf(content, image) {
  const all = content.runs.flatMap((_, run) => framesOf(content, image, run).map((frame) => frame.step ?? "end"));
  const order = (step) => (step === "end" ? Infinity : step);
  return [...new Set(all)].sort((a, b) => order(a) - order(b));
}

function readFrame(content) {
  const one = branchOf(content.one_to_one);
  const many = content.one_to_many ? branchOf(content.one_to_many) : one;
  const { sampling, detections } = content;
  return {
    one,
    many,
    oneToOne: pairsOf(content),
    topLabels: unpack(content.top.labels),
    topScores: unpack(content.top.scores),
    references: referencesOf(unpack(content.references), one),
    detections: Array.from(unpack(detections.scores), (score, i) => ({ query: detections.queries[i], label: detections.labels[i], score })),
    sampling: sampling && { ...sampling, places: unpack(sampling.places), weights: unpack(sampling.weights) },
  };
}

/** References of all layers; where only those of the first travel, the others are the boxes of the layer before. */
function referencesOf(given, branch) {
  if (!given || given.length === branch.boxes.length) return given;
  const all = new Float32Array(branch.boxes.length);
  all.set(given);
  all.set(branch.boxes.subarray(0, all.length - given.length), given.length);
  return all;
}

/** Place of the frame that is closest to a step ("end": the last one). */
function frameAt(content, image, run, step) {
  const frames = framesOf(content, image, run);
  if (step === "end") return frames.length - 1;
  const distance = frames.map((frame) => Math.abs((frame.step ?? Infinity) - step));
  return distance.indexOf(Math.min(...distance));
}

/** Settings of one-to-many matching: those of the run's training, with what was changed on the page. */
export const settingsOf = (content, run, state) => ({ ...content.runs[run].rules, ...state.changes });

/**
 * An image as a run sees it, or null where it does not. state: {image, step, layer, changes}. Returns frame, objects, layer,
 * settings; found, the one-to-many matching (see match); one, the one-to-one branch: seen (see pairs), serving: object →
 * queries, served: query → object; and many: serving and served the same way.
 */
export function sceneOf(content, run, state) {
  const frames = framesOf(content, state.image, run);
  if (!frames.length) return null;
  const at = frameAt(content, state.image, run, state.step);
  const frame = content.frameIn(state.image, run, at);
  const objects = content.objectsIn(state.image);
  const layer = Math.min(state.layer, frame.one.layers - 1, frame.many.layers - 1);
  const settings = settingsOf(content, run, state);
  const found = match(frame.many, objects, layer, settings, frame.oneToOne[layer]);
  const { queries } = frame.many;
  const manyPairs = [];
  found.status.forEach((status, i) => serves(status) && manyPairs.push([Math.floor(i / queries), i % queries]));
  manyPairs.sort(([t, q], [u, r]) => t - u || found.place[t * queries + q] - found.place[u * queries + r]);
  return {
    run,
    image: state.image,
    frame,
    objects,
    layer,
    settings,
    found,
    step: frames[at].step ?? "end",
    one: { seen: pairs(frame.one, objects, layer), ...both(frame.oneToOne[layer], objects.count) },
    many: both(manyPairs, objects.count),
  };
}

/** Pairs [object, query] both ways: serving[object] → queries, served: Map query → objects. */
function both(list, count) {
  const serving = Array.from({ length: count }, () => []);
  const served = new Map();
  for (const [target, query] of list) {
    serving[target].push(query);
    served.set(query, [...(served.get(query) ?? []), target]);
  }
  return { serving, served };
}

/** What became of a pair in one-to-one matching. */
export function oneToOneStatus(scene, target, query) {
  const { one } = scene.frame;
  if (one.fates) return Object.keys(STATUS)[one.fates[pairAt(one, scene.objects, scene.layer, target, query)]];
  if (scene.one.serving[target].includes(query)) return "matched";
  return scene.one.served.has(query) ? "taken" : "costlier";
}
