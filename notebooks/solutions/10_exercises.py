"""Answers to the exercises of notebook 10, two to each, in plain PyTorch. Look here last: every exercise has a hint."""

import torch
import torchvision


# 10.1
def class_of(category_ids):
    return {category_id: index for index, category_id in enumerate(sorted(category_ids))}


def another_class_of(category_ids):
    """The number of smaller ids."""
    return {one: sum(other < one for other in category_ids) for one in category_ids}


# 10.2
def prepare(pixels):
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (pixels.float() / 255 - mean) / std


def another_prepare(pixels):
    shares = pixels.float() / 255
    return torchvision.transforms.functional.normalize(shares, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# 10.3
def best_pairs(probability, count):
    num_classes = probability.shape[1]
    scores, pairs = probability.flatten().topk(count)
    return scores, pairs // num_classes, pairs % num_classes


def another_best_pairs(probability, count):
    entries = [(float(p), query, label) for query, row in enumerate(probability) for label, p in enumerate(row)]
    return tuple(zip(*sorted(entries, reverse=True)[:count]))


# 10.4
def sampling_locations(reference, offsets, shapes):
    sizes = torch.tensor([(width, height) for height, width in shapes])
    return reference + offsets / sizes[:, None]


def another_sampling_locations(reference, offsets, shapes):
    levels = zip(offsets, shapes)
    return torch.stack([reference + points / torch.tensor(shape[::-1]) for points, shape in levels])


# 10.5
def overlap(predicted, true):
    center_to_corners = {"in_fmt": "cxcywh", "out_fmt": "xyxy"}
    predicted = torchvision.ops.box_convert(predicted, **center_to_corners)
    true = torchvision.ops.box_convert(true, **center_to_corners)
    return torchvision.ops.box_iou(predicted, true)


def another_overlap(predicted, true):
    (ax, ay, aw, ah), (bx, by, bw, bh) = predicted[:, None].unbind(-1), true[None].unbind(-1)
    width = torch.minimum(ax + aw / 2, bx + bw / 2) - torch.maximum(ax - aw / 2, bx - bw / 2)
    height = torch.minimum(ay + ah / 2, by + bh / 2) - torch.maximum(ay - ah / 2, by - bh / 2)
    shared = width.clamp(min=0) * height.clamp(min=0)
    return shared / (aw * ah + bw * bh - shared)


# 10.6
def positives(score, k, threshold):
    value, query = score.topk(k)
    object_, rank = (value > threshold).nonzero(as_tuple=True)
    return list(zip(object_.tolist(), query[object_, rank].tolist()))


def another_positives(score, k, threshold):
    pairs = []
    for target, row in enumerate(score.tolist()):
        ranked = sorted(range(len(row)), key=lambda query: -row[query])
        pairs += [(target, query) for query in ranked[:k] if row[query] > threshold]
    return pairs


# 10.7
def box_loss(predicted, true, num_objects):
    return (predicted - true).abs().sum() / num_objects


def another_box_loss(predicted, true, num_objects):
    return torch.nn.functional.l1_loss(predicted, true, reduction="sum") / num_objects


# 10.8
def refine(reference, deltas, shift):
    boxes, anchor = [], reference
    for delta in deltas:
        boxes.append(shift(anchor, delta))
        anchor = shift(reference, delta)  # carries the gradient of this layer to the next one's loss
        reference = anchor.detach()
    return boxes


def another_refine(reference, deltas, shift):
    """First where every layer starts, without gradients; then its box, from the box of the layer before."""
    starts = [reference]
    for delta in deltas:
        starts.append(shift(starts[-1], delta).detach())
    boxes = [shift(reference, deltas[0])]
    for before, one, delta in zip(starts, deltas, deltas[1:]):
        boxes.append(shift(shift(before, one), delta))
    return boxes
