"""The README's picture: a photograph with what a run detects in it, and all candidates of one object.

    python benchmarks/photograph.py RUN [--image FILE] [--object N]

RUN: a finished run on photographs. The picture goes to docs/figures/photograph.jpg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import msdetr
from msdetr.boxes import cxcywh_to_xyxy, pairwise_iou
from msdetr.data import build_dataset, to_pixels
from msdetr.predictor import evaluation_config
from msdetr.structures import ImageBatch
from msdetr.viz.style import PALETTE, subplots

TARGET = Path(__file__).parent.parent / "docs" / "figures" / "photograph.jpg"


def candidates(predictor: msdetr.Predictor, dataset, index: int, box: torch.Tensor, least: float = 0.5) -> torch.Tensor:
    """Boxes [n, 4] (xyxy, pixels) of all queries of the last layer that overlap an object's box with an IoU of at least ``least``."""
    sample = dataset[index]
    with torch.inference_mode():
        found = predictor.detector(ImageBatch.from_images([sample.image])).one_to_one
    height, width = sample.size
    boxes = cxcywh_to_xyxy(found.boxes[-1, 0].float()) * torch.tensor([width, height, width, height])
    return boxes[pairwise_iou(boxes, box[None])[:, 0] >= least]


def picture(predictor: msdetr.Predictor, dataset, index: int, number: int, threshold: float) -> Figure:
    pixels = to_pixels(dataset.path(index)).permute(1, 2, 0).numpy()
    found = predictor.predict(dataset.path(index)).above(threshold)
    figure, (left, right) = subplots(2, width=10.0, height=4.05)
    for ax in (left, right):
        ax.imshow(pixels)
        ax.set_axis_off()
    for box, label in zip(found.boxes, found.labels.tolist()):
        left.add_patch(_outline(box, PALETTE[label], 2))
    handles = [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=PALETTE[label], linewidth=2)
        for label in found.labels.unique().tolist()
    ]
    left.legend(
        handles, [found.class_names[label] for label in found.labels.unique().tolist()], loc="lower left", fontsize=9
    )
    left.set_title(f"{len(found)} detections of a score of at least {threshold:g}", fontsize=11)
    box = found.boxes[number]
    near = candidates(predictor, dataset, index, box)
    for one in near:
        right.add_patch(_outline(one, PALETTE[3], 1.6, "--"))
    right.add_patch(_outline(box, PALETTE[0], 2.5))
    shown = [_outline(box, PALETTE[0], 2.5), _outline(box, PALETTE[3], 1.6, "--")]
    right.legend(shown, ["the detection", "its candidates"], loc="lower left", fontsize=9)
    right.set_title(f"One of them, and all {len(near)} queries with an IoU over 0.5", fontsize=11)
    return figure


def _outline(box: torch.Tensor, color: str, width: float, style: str = "-") -> Rectangle:
    left, top, right, bottom = box.tolist()
    look = {"fill": False, "edgecolor": color, "linewidth": width, "linestyle": style}
    return Rectangle((left, top), right - left, bottom - top, **look)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", help="the run's own by default")
    parser.add_argument("--image", help="file name of a validation image; the first by default")
    parser.add_argument("--object", type=int, default=0, help="which detection to show the candidates of, by score")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--output", type=Path, default=TARGET)
    options = parser.parse_args()
    predictor = msdetr.load(options.run, "cpu")
    dataset = build_dataset(evaluation_config(predictor.config, predictor.source, options.data), "val")
    index = next((i for i in range(len(dataset)) if dataset.path(i).name == options.image), 0)
    figure = picture(predictor, dataset, index, options.object, options.threshold)
    figure.savefig(options.output, dpi=100, pil_kwargs={"quality": 88})
    print(f"{options.output}: {dataset.path(index).name}")


if __name__ == "__main__":
    main()
