"""Answers to the exercises of notebook 04, two to each. Look here last: every harder exercise has a hint."""

import torch
import torch.nn.functional as F
import torchvision

from msdetr import boxes as box_ops


# 4.1
def generalized_iou(a, b):
    def area(x0, y0, x1, y1):
        return max(x1 - x0, 0) * max(y1 - y0, 0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    around = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union - (around - union) / around


def another_generalized_iou(a, b):
    return torchvision.ops.generalized_box_iou(torch.tensor([a]), torch.tensor([b])).item()


# 4.2
def stable_focal(logits, positive):
    p = logits.sigmoid()
    as_positive = 0.25 * (1 - p) ** 2 * F.softplus(-logits)
    as_negative = 0.75 * p**2 * F.softplus(logits)
    return torch.where(positive, as_positive, as_negative)


def another_stable_focal(logits, positive):
    """Both kinds at once: the logit of being wrong."""
    wrong = torch.where(positive, -logits, logits)
    weight = torch.where(positive, 0.25, 0.75)
    return -weight * wrong.sigmoid() ** 2 * F.logsigmoid(-wrong)


# 4.3
def pull(p, positive):
    x = torch.logit(torch.tensor(p)).requires_grad_()
    stable_focal(x, torch.tensor(positive)).backward()
    return -x.grad.item()


def another_pull(p, positive):
    """By the product rule, with dp/dx = p (1 - p)."""
    q = torch.tensor(1 - p if positive else p).double()
    slope = q**2 * (2 * (1 - q) * -torch.log(1 - q) + q)
    return float(0.25 * slope if positive else -0.75 * slope)


# 4.4
def class_targets(pairs, labels, num_queries, num_classes):
    table = torch.zeros(num_queries, num_classes)
    for target, query in pairs:
        table[query, labels[target]] = 1
    return table


def another_class_targets(pairs, labels, num_queries, num_classes):
    told = {(query, labels[target]) for target, query in pairs}
    return [[float((query, c) in told) for c in range(num_classes)] for query in range(num_queries)]


# 4.5
def quarrels(one_to_one, one_to_many, labels):
    single = {(query, labels[target]) for target, query in one_to_one}
    several = {(query, labels[target]) for target, query in one_to_many}
    return single ^ several


def another_quarrels(one_to_one, one_to_many, labels):
    """Entry by entry: what does each branch say?"""
    told = [[(query, labels[target]) for target, query in pairs] for pairs in (one_to_one, one_to_many)]
    return {entry for entry in told[0] + told[1] if (entry in told[0]) != (entry in told[1])}


# 4.6
def parts_of_loss(sums, objects):
    return [value / max(sum(objects), 1) for value in sums]


def another_parts_of_loss(sums, objects):
    total = sum(objects)
    return torch.tensor(sums) / total if total else sums


# 4.7
def loss_of_branch(logits, boxes, pairs, labels, objects, weights):
    loss = weights["class"] * stable_focal(logits, class_targets(pairs, labels, *logits.shape) > 0).sum()
    for target, query in pairs:
        mine, true = boxes[query], objects[target]
        overlap = box_ops.giou(box_ops.cxcywh_to_xyxy(mine), box_ops.cxcywh_to_xyxy(true))
        loss = loss + weights["l1"] * (mine - true).abs().sum() + weights["giou"] * (1 - overlap)
    return loss / max(len(objects), 1)


def another_loss_of_branch(logits, boxes, pairs, labels, objects, weights):
    """All pairs at once."""
    j, i = torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2).T
    positive = torch.zeros(logits.shape, dtype=torch.bool)
    positive[i, labels[j]] = True
    overlap = box_ops.giou(box_ops.cxcywh_to_xyxy(boxes[i]), box_ops.cxcywh_to_xyxy(objects[j]))
    terms = {"class": another_stable_focal(logits, positive), "l1": (boxes[i] - objects[j]).abs(), "giou": 1 - overlap}
    return sum(weights[name] * term.sum() for name, term in terms.items()) / max(len(objects), 1)


# 4.8
def mixed_loss(one_to_one, one_to_many, labels, objects):
    weights = {"class": 1, "l1": 5, "giou": 2}
    single = loss_of_branch(*one_to_one, labels, objects, weights)
    return single + loss_of_branch(*one_to_many, labels, objects, {**weights, "class": 2})


def another_mixed_loss(one_to_one, one_to_many, labels, objects):
    total = 0.0
    for class_weight, branch in enumerate((one_to_one, one_to_many), 1):
        total += loss_of_branch(*branch, labels, objects, {"class": class_weight, "l1": 5, "giou": 2})
    return total


# 4.9
def cosine(one, other):
    product = sum(float((a * b).sum()) for a, b in zip(one, other) if a is not None and b is not None)
    lengths = [sum(float((g * g).sum()) for g in found if g is not None) ** 0.5 for found in (one, other)]
    return product / (lengths[0] * lengths[1]) if all(lengths) else None


def another_cosine(one, other):
    vectors = [[], []]
    for a, b in zip(one, other):
        if a is not None or b is not None:
            like = b if a is None else a
            for vector, gradient in zip(vectors, (a, b)):
                vector.append(torch.zeros_like(like).flatten() if gradient is None else gradient.flatten())
    if not vectors[0]:
        return None
    first, second = map(torch.cat, vectors)
    if not first.any() or not second.any():
        return None
    return (first * second).sum() / (first.norm() * second.norm())
