// Why a query serves an object, or does not, in words: the sentences of msdetr.analysis.reasons.

import { cost, serves, STATUS } from "./matching.js";
import { number, plain } from "./numbers.js";
import { oneToOneStatus } from "./scene.js";

/** Of one-to-many matching. */
export function oneToManyReason(content, scene, target, query) {
  const { found, settings } = scene;
  const { queries } = found;
  const at = target * queries + query;
  const name = content.objectName(scene.image, target);
  const three = (value) => value.toFixed(3);
  const [p, overlap] = [found.seen.probability[at], found.seen.iou[at]];
  const sum = `${plain(settings.alpha)} · ${three(p)} + ${plain(1 - settings.alpha)} · ${three(overlap)} = ${three(found.score[at])}`;
  const status = found.status[at];
  if (status === "matched")
    return `Query ${query} serves ${name}: its score is ${sum}, its place ${found.place[at]} of at most ${found.settings.k}.`;
  if (status === "merged") return `Query ${query} serves ${name} because one-to-one matching paired them (merge).`;
  const words = [];
  const released = settings.rule === "released";
  if (!released && !(found.score[at] > Math.fround(settings.threshold)))
    words.push(`its score, ${sum}, is not above τ = ${plain(settings.threshold)}`);
  if (found.rival[at] >= 0) {
    const theirs = found.score[found.rival[at] * queries + query];
    const how = theirs > found.score[at] ? "higher" : "alike, and first,";
    const rival = content.objectName(scene.image, found.rival[at]);
    words.push(`it scores ${how} with ${rival} (${three(theirs)} against ${three(found.score[at])})`);
  }
  if (found.place[at] > found.settings.k)
    words.push(`it is number ${found.place[at]} among the object's candidates and k = ${found.settings.k}`);
  else if (released && status === "unvoted")
    words.push(`the object got ${found.votes[target]} votes and takes as many queries; this one is number ${found.place[at]}`);
  return `Query ${query} does not serve ${name}: ${words.join("; ")}.`;
}

/** Cost of a pair as the one-to-one branch predicts it. */
export function oneToOneCost(content, scene, target, query) {
  const probability = scene.one.seen.probability[target * scene.frame.one.queries + query];
  const { weights } = content.runs[scene.run];
  return cost(scene.frame.one, scene.objects, scene.layer, target, query, probability, weights);
}

const OBSTACLES = { below: "dropped by τ", lost: "lost to another object", beyond: "beyond k", unvoted: "beyond its votes" };

/** Of one-to-one matching: by cost, or by a rule that goes by something else. */
export function oneToOneReason(content, scene, target, query) {
  const name = content.objectName(scene.image, target);
  const status = oneToOneStatus(scene, target, query);
  const start = `Query ${query} does not serve ${name}: `;
  if (scene.frame.one.fates) return serves(status) ? `Query ${query} serves ${name}.` : `${start}${OBSTACLES[status] ?? STATUS[status]}.`;
  const own = oneToOneCost(content, scene, target, query);
  const split = (terms, sign = "") =>
    [["class", "class"], ["L1", "l1"], ["GIoU", "giou"]]
      .map(([label, key]) => `${label} ${sign && terms[key] >= 0 ? sign : ""}${number(terms[key])}`)
      .join(", ");
  if (status === "matched") return `Query ${query} serves ${name} at a cost of ${number(own.total)} (${split(own)}).`;
  if (status === "taken") return `${start}it serves ${content.objectName(scene.image, scene.one.served.get(query)[0])}.`;
  const winner = scene.one.serving[target][0];
  if (winner === undefined) return `${start}the object has no query.`;
  const theirs = oneToOneCost(content, scene, target, winner);
  const difference = Object.fromEntries(Object.keys(own).map((key) => [key, own[key] - theirs[key]]));
  return `${start}query ${winner} costs ${number(theirs.total)}, this one ${number(own.total)} (${split(difference, "+")}).`;
}
