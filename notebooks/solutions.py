"""Solutions of notebook 10, in plain PyTorch. Look here last: every exercise has a hint that comes first."""

import torch
import torchvision


# 1
def class_of(category_ids):
    return {category_id: index for index, category_id in enumerate(sorted(category_ids))}


# 2
def prepare(pixels):
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (pixels.float() / 255 - mean) / std


# 3
def best_pairs(probability, count):
    num_classes = probability.shape[1]
    scores, pairs = probability.flatten().topk(count)
    return scores, pairs // num_classes, pairs % num_classes


# 4
def sampling_locations(reference, offsets, shapes):
    sizes = torch.tensor([(width, height) for height, width in shapes])
    return reference + offsets / sizes[:, None]


# 5
def overlap(predicted, true):
    center_to_corners = {"in_fmt": "cxcywh", "out_fmt": "xyxy"}
    predicted = torchvision.ops.box_convert(predicted, **center_to_corners)
    true = torchvision.ops.box_convert(true, **center_to_corners)
    return torchvision.ops.box_iou(predicted, true)


# 6
def positives(score, k, threshold):
    value, query = score.topk(k)
    object_, rank = (value > threshold).nonzero(as_tuple=True)
    return list(zip(object_.tolist(), query[object_, rank].tolist(), strict=True))


# 7
def box_loss(predicted, true, num_objects):
    return (predicted - true).abs().sum() / num_objects


# 8
def refine(reference, deltas, shift):
    boxes, anchor = [], reference
    for delta in deltas:
        boxes.append(shift(anchor, delta))
        anchor = shift(reference, delta)  # carries the gradient of this layer to the next one's loss
        reference = anchor.detach()
    return boxes
