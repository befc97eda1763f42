// One-to-many matching in the page: Section C and Algorithm 1 of the paper, the rule of the released code, and merging.
// Equal to msdetr.matching to the last bit: every operation is rounded to 32 bits, as it is there.
//
// Shapes: T objects, Q queries, K layers; a table is a flat array [T × Q] of one layer.

import { ranking } from "./numbers.js";
import { permutations } from "./random.js";

const f = Math.fround;

/** What became of a pair, in few words; in the order of msdetr.matching.STATUSES. */
export const STATUS = {
  matched: "matched",
  merged: "merged",
  below: "≤ τ",
  lost: "other object",
  beyond: "beyond k",
  unvoted: "beyond votes",
  taken: "other object",
  costlier: "costs more",
};

/** Corners (x0, y0, x1, y1) of the i-th box (cx, cy, w, h) of an array; a negative size counts as 0. */
export function corners(boxes, i) {
  const width = Math.max(boxes[4 * i + 2], 0) / 2;
  const height = Math.max(boxes[4 * i + 3], 0) / 2;
  const [x, y] = [boxes[4 * i], boxes[4 * i + 1]];
  return [f(x - width), f(y - height), f(x + width), f(y + height)];
}

const area = ([x0, y0, x1, y1]) => f(Math.max(f(x1 - x0), 0) * Math.max(f(y1 - y0), 0));

/** Intersection and union of two boxes given by their corners. */
function overlap(a, b) {
  const width = Math.max(f(Math.min(a[2], b[2]) - Math.max(a[0], b[0])), 0);
  const height = Math.max(f(Math.min(a[3], b[3]) - Math.max(a[1], b[1])), 0);
  const intersection = f(width * height);
  return [intersection, f(f(area(a) + area(b)) - intersection)];
}

/** IoU of two boxes given by their corners; 0 for two empty ones. */
export function iou(a, b) {
  const [intersection, union] = overlap(a, b);
  return union <= 0 ? 0 : f(intersection / union);
}

/** Generalized IoU (Rezatofighi et al., 2019) of two boxes given by their corners. */
export function giou(a, b) {
  const [intersection, union] = overlap(a, b);
  const width = Math.max(f(Math.max(a[2], b[2]) - Math.min(a[0], b[0])), 0);
  const height = Math.max(f(Math.max(a[3], b[3]) - Math.min(a[1], b[1])), 0);
  const hull = f(width * height);
  return (union <= 0 ? 0 : intersection / union) - (hull <= 0 ? 0 : (hull - union) / hull);
}

/**
 * What a branch says of every pair in a layer: {probability, iou}, tables, kept for the next time.
 * branch: {queries, boxes [K × Q × 4], scores [K × Q × S], columns: label → column of scores}, of one image.
 */
export function pairs(branch, objects, layer) {
  branch.kept ??= [];
  branch.kept[layer] ??= pairTables(branch, objects, layer);
  return branch.kept[layer];
}

function pairTables(branch, objects, layer) {
  const { queries } = branch;
  const probability = new Float32Array(objects.count * queries);
  const shared = new Float32Array(objects.count * queries);
  const predicted = Array.from({ length: queries }, (_, q) => corners(branch.boxes, layer * queries + q));
  const width = branch.columns.size;
  for (let t = 0; t < objects.count; t++) {
    const column = branch.columns.get(objects.labels[t]);
    const box = corners(objects.boxes, t);
    for (let q = 0; q < queries; q++) {
      probability[t * queries + q] = branch.scores[(layer * queries + q) * width + column];
      shared[t * queries + q] = iou(predicted[q], box);
    }
  }
  return { probability, iou: shared };
}

/** α · probability + (1 − α) · IoU, a table. */
export function scores(seen, alpha) {
  const [a, b] = [f(alpha), f(1 - alpha)];
  return seen.probability.map((p, i) => f(f(a * p) + f(b * seen.iou[i])));
}

/** The object that each query scores highest with, the first of several; −1 where there are no objects. */
function favorites(table, count, queries) {
  const best = new Int32Array(queries).fill(count ? 0 : -1);
  for (let t = 1; t < count; t++)
    for (let q = 0; q < queries; q++)
      if (table[t * queries + q] > table[best[q] * queries + q]) best[q] = t;
  return best;
}

/** Rank of every pair among the queries that compete for its object, counted from 1. */
function places(table, count, queries, competes) {
  const place = new Int32Array(count * queries);
  for (let t = 0; t < count; t++) {
    let before = 0;
    for (const q of ranking(table.subarray(t * queries, (t + 1) * queries))) {
      place[t * queries + q] = 1 + before;
      if (competes(t, q)) before++;
    }
  }
  return place;
}

/** For every object the number of queries that vote for it, under the released rule; a random share where they are many. */
function votes(table, count, queries, settings, limit, permutation) {
  const favorite = favorites(table, count, queries);
  const isBest = new Uint8Array(queries);
  for (let t = 0; t < count && queries; t++) {
    const row = table.subarray(t * queries, (t + 1) * queries);
    isBest[row.indexOf(row.reduce((a, b) => Math.max(a, b)))] = 1;
  }
  const threshold = f(settings.threshold);
  const positive = [];
  for (let q = 0; q < queries && count; q++)
    if (table[favorite[q] * queries + q] >= threshold || isBest[q]) positive.push(q);
  const kept =
    positive.length > limit ? permutation(positive.length).slice(0, limit).map((i) => positive[i]) : positive;
  const number = new Int32Array(count);
  for (const q of kept) number[favorite[q]]++;
  return number;
}

/**
 * One-to-many matching of one layer of an image. settings: {rule, threshold, k, alpha, merge}. oneToOne: the layer's pairs
 * [object, query] of the other branch, which merging adds. Returns tables: seen (see pairs), score, status ("matched", "merged",
 * or the first thing in the way), place and rival (the object that a query goes to instead, −1), and votes per object.
 */
export function match(branch, objects, layer, settings, oneToOne = []) {
  const { queries } = branch;
  const { count } = objects;
  const k = Math.min(settings.k, Math.max(queries, 1));
  const seen = pairs(branch, objects, layer);
  const score = scores(seen, settings.alpha);
  const exclusive = settings.rule === "exclusive";
  const favorite = exclusive ? favorites(score, count, queries) : null;
  const competes = (t, q) => !exclusive || favorite[q] === t;
  const place = places(score, count, queries, competes);
  const given = settings.rule === "released" ? releasedVotes(branch, objects, layer, settings) : null;
  const threshold = f(settings.threshold);
  const rival = new Int32Array(count * queries).fill(-1);
  const status = Array.from(score, (value, i) => {
    const [t, q] = [Math.floor(i / queries), i % queries];
    if (!competes(t, q)) rival[i] = favorite[q];
    if (given) return place[i] > k ? "beyond" : place[i] > given[t] ? "unvoted" : "matched";
    if (!(value > threshold)) return "below";
    if (!competes(t, q)) return "lost";
    return place[i] > k ? "beyond" : "matched";
  });
  const found = { layer, queries, settings: { ...settings, k }, seen, score, status, place, rival };
  found.votes = given ? given.map((n) => Math.min(n, k)) : new Int32Array(count).fill(k);
  if (settings.merge) merge(found, count, oneToOne);
  return found;
}

/** Votes of a layer; those before it draw their random numbers first, as in the package. */
function releasedVotes(branch, objects, layer, settings) {
  const permutation = permutations(0);
  let given;
  for (let i = 0; i <= layer; i++) {
    const table = scores(pairs(branch, objects, i), settings.alpha);
    const limit = branch.limit ?? Math.floor(branch.queries * 0.25);
    given = votes(table, objects.count, branch.queries, settings, limit, permutation);
  }
  return given;
}

/** Adds one-to-one pairs in place. Unless the rule is literal a query serves one object: of several one-to-many pairs the one
 * with the highest score stays, and a one-to-one pair gives way to it. */
function merge(found, count, oneToOne) {
  const { queries, status, score, rival } = found;
  if (found.settings.rule === "literal") {
    for (const [t, q] of oneToOne) if (status[t * queries + q] !== "matched") status[t * queries + q] = "merged";
    return;
  }
  for (let q = 0; q < queries; q++) {
    const mine = [];
    for (let t = 0; t < count; t++) if (status[t * queries + q] === "matched") mine.push(t);
    const stays = mine.reduce((a, b) => (a < 0 || score[b * queries + q] >= score[a * queries + q] ? b : a), -1);
    for (const t of mine.filter((t) => t !== stays)) {
      status[t * queries + q] = "lost";
      rival[t * queries + q] = stays;
    }
    const added = stays < 0 ? oneToOne.filter(([, other]) => other === q) : [];
    if (added.length) status[added.at(-1)[0] * queries + q] = "merged";
  }
}

/** Whether a status means that the query serves the object. */
export const serves = (status) => status === "matched" || status === "merged";

/** Where a pair of a layer is in a table [K × T × Q]. */
export const pairAt = (branch, objects, layer, target, query) => (layer * objects.count + target) * branch.queries + query;

/** Weighted terms of the Hungarian cost of a pair: {class, l1, giou, total}. weights: [class, L1, GIoU]. */
export function cost(branch, objects, layer, target, query, probability, weights) {
  const at = layer * branch.queries + query;
  const own = branch.classCosts?.[pairAt(branch, objects, layer, target, query)];
  let distance = 0;
  for (let i = 0; i < 4; i++) distance += Math.abs(branch.boxes[4 * at + i] - objects.boxes[4 * target + i]);
  const terms = {
    class: own ?? weights[0] * focalCost(probability),
    l1: weights[1] * distance,
    giou: -weights[2] * giou(corners(branch.boxes, at), corners(objects.boxes, target)),
  };
  return { ...terms, total: terms.class + terms.l1 + terms.giou };
}

/** The class cost of Deformable DETR: focal loss of a positive minus that of a negative. */
function focalCost(p) {
  const positive = -0.25 * (1 - p) ** 2 * Math.log(p + 1e-8);
  const negative = -0.75 * p ** 2 * Math.log(1 - p + 1e-8);
  return positive - negative;
}
