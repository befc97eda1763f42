// What a run predicts on an image, unpacked: branches, objects, one-to-one pairs.

import { unpack } from "./numbers.js";

/** The objects of an image: {count, labels, boxes [T × 4]}. */
export function objectsOf(image) {
  return { count: image.labels.length, labels: image.labels, boxes: unpack(image.boxes) };
}

/** A branch: {layers, queries, boxes [K × Q × 4], scores [K × Q × S], columns: label → column of scores}. Of one-to-one matching
 * also classCosts [K × T × Q], null where they are the usual ones, and fates [K × T × Q], null where matching goes by cost. */
export function branchOf(content) {
  const columns = new Map(content.columns.map((label, i) => [label, i]));
  const [classCosts, fates] = [unpack(content.class_costs), unpack(content.fates)];
  return { ...content, columns, boxes: unpack(content.boxes), scores: unpack(content.scores), classCosts, fates };
}

/** One-to-one pairs [object, query] of every layer. */
export function pairsOf(frame) {
  const layers = Array.from({ length: frame.one_to_one.layers }, () => []);
  const flat = unpack(frame.pairs);
  for (let i = 0; i < flat.length; i += 3) layers[flat[i]].push([flat[i + 1], flat[i + 2]]);
  return layers;
}
