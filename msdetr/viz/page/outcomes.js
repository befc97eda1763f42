// The detector's answer on an image: which objects its detections find, miss or double, as COCO's evaluation counts at one IoU.

import { corners, iou } from "./matching.js";

/**
 * Assigns the detections of a frame that score at least least, best first: each takes the object of its class with the highest
 * IoU, at least 0.5, that is not taken yet; one left over that overlaps a taken object is its duplicate, else background.
 * Returns detections with {target, kind: "found" | "duplicate" | "background", iou}, and outcomes: object → "found", "doubled"
 * or "missed".
 */
export function outcomesOf(frame, objects, least, threshold = 0.5) {
  const layer = frame.one.layers - 1;
  const taken = new Set();
  const boxes = Array.from({ length: objects.count }, (_, t) => corners(objects.boxes, t));
  const detections = frame.detections
    .filter((detection) => detection.score >= least)
    .map((detection) => {
      const box = corners(frame.one.boxes, layer * frame.one.queries + detection.query);
      const near = boxes
        .map((other, target) => ({ target, iou: iou(box, other) }))
        .filter((pair) => objects.labels[pair.target] === detection.label && pair.iou >= threshold)
        .sort((a, b) => b.iou - a.iou || a.target - b.target);
      const free = near.find((pair) => !taken.has(pair.target));
      if (free) taken.add(free.target);
      const kind = free ? "found" : near.length ? "duplicate" : "background";
      return { ...detection, kind, target: -1, iou: 0, ...(free ?? near[0]) };
    });
  const outcomes = boxes.map((_, target) => {
    if (!taken.has(target)) return "missed";
    return detections.some((d) => d.kind === "duplicate" && d.target === target) ? "doubled" : "found";
  });
  return { detections, outcomes };
}
