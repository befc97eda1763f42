"""A data set as large as COCO's is read, checked and ready to be trained on: seconds and memory of each stage.

    python benchmarks/coco_sized.py [--images 118287] [--annotations 860001] [--folder DIR] [--output coco_sized]

The folder is generated: as many images, objects and outlines (segmentations, which the file is mostly made of) as train2017 and
val2017 have, and image files that are there but empty, since nothing decodes them before the first batch. A process of its
own goes through what `msdetr train coco/ms-detr-pp-300` does before that; its processor time and the peak of its resident
memory are counted. Writes results/OUTPUT.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

VAL = (5_000, 36_781)  # images and objects of val2017
CATEGORIES = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # as COCO numbers its 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--folder", help="where the data set is made, and left")
    parser.add_argument("--output", default="coco_sized")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # this script, called by itself: FOLDER
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.folder or temporary)
        for split, sizes in (("train2017", (options.images, options.annotations)), ("val2017", VAL)):
            generate(root, split, *sizes)
        file = root / "annotations" / "instances_train2017.json"
        megabytes = round(file.stat().st_size / 1e6)
        run = subprocess.run(
            [sys.executable, __file__, "--measure", str(root)], stdout=subprocess.PIPE, text=True, check=True
        )
    result = {"annotation file in MB": megabytes, "stages": json.loads(run.stdout.splitlines()[-1])}
    del options.measure, options.folder
    print(json.dumps(result, indent=1))
    machine.save(options.output, __doc__, "cpu", options, result)


def generate(root: Path, split: str, images: int, annotations: int) -> None:
    """A split in COCO's layout, with empty image files; nothing where it is there already."""
    file, folder, draw = root / "annotations" / f"instances_{split}.json", root / split, random.Random(0)
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    ids = sorted(draw.sample(range(1, 600_000), images))
    for i in ids:
        (folder / f"{i:012}.jpg").touch()
    outlines = [  # of 24 corners, as is usual there; a few serve all objects
        [round(draw.random() * 400, 2) for _ in range(2 * corners)] for corners in range(8, 41)
    ]
    described = [
        {"license": 1, "file_name": f"{i:012}.jpg", "height": 480, "width": 640, "id": i,
         "coco_url": f"http://images.example.org/{split}/{i:012}.jpg", "date_captured": "2013-11-14 16:28:13"}
        for i in ids
    ]  # fmt: skip
    with file.open("w") as out:
        out.write(f'{{"info": {{}}, "licenses": [], "images": {json.dumps(described)}, "annotations": [')
        for number in range(annotations):
            x, y, w, h = (round(draw.random() * side, 2) for side in (400, 300, 230, 170))
            entry = {
                "segmentation": [outlines[number % len(outlines)]],
                "area": round((w + 1) * (h + 1) * 0.6, 4),
                "iscrowd": 0,
                "image_id": ids[draw.randrange(images)],
                "bbox": [x, y, w + 1, h + 1],
                "category_id": CATEGORIES[number % len(CATEGORIES)],
                "id": 900_000 + number,
            }
            out.write((", " if number else "") + json.dumps(entry))
        names = [{"supercategory": "thing", "id": i, "name": f"thing {i}"} for i in CATEGORIES]
        out.write(f'], "categories": {json.dumps(names)}}}')


def measured(root: str) -> dict[str, dict[str, float]]:
    """What each stage takes: processor time in seconds, and the peak of resident memory up to its end in MiB."""
    stages, began = {}, 0.0

    def ended(name: str) -> None:
        nonlocal began
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak, now = (round(int(status[key].split()[0]) / 1024) for key in ("VmHWM", "VmRSS"))
        stages[name] = {"seconds": round(time.process_time() - began, 2), "peak MiB": peak, "MiB at its end": now}
        began = time.process_time()

    from msdetr import recipes
    from msdetr.data import build_datasets
    from msdetr.engine.distributed import World
    from msdetr.engine.start import train_loader
    from msdetr.engine.trainer import Trainer
    from msdetr.methods import build_criterion, build_detector

    ended("imports")
    config = recipes.get("coco/ms-detr-pp-300").override({"data.root": root, "model.pretrained": "none"})
    train_set, _ = build_datasets(config)
    ended("reading and checking both splits")
    steps = len(train_set) // config.train.batch_size
    trainer = Trainer(build_detector(config), build_criterion(config), config.train, 12 * steps, steps, World())
    ended("detector and optimiser")
    next(iter(train_loader(train_set, config, trainer).batch_sampler))
    ended("the first batch is chosen")
    return stages


if __name__ == "__main__":
    main()
