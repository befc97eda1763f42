"""Data: folders in COCO's, YOLO's or Pascal VOC's layout, the generated ``shapes`` set, augmentation, and loaders in a
reproducible order."""

from ..errors import AnnotationError, ImageError
from . import shapes
from .annotations import Annotations, DataWarning, Report
from .coco import Categories, CocoDetection, Sample, collate
from .images import ImageLike, Remark, image_files, read_image, to_pixels
from .loader import EpochSampler, build_dataset, build_datasets, build_eval_loader, build_train_loader
from .overview import DataReport, SplitReport, Suspicion, check
from .transforms import IMAGE_MEAN, IMAGE_STD, eval_transform, normalized, train_transform
from .validate import read_annotations

__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "AnnotationError",
    "Annotations",
    "Categories",
    "CocoDetection",
    "DataReport",
    "DataWarning",
    "EpochSampler",
    "ImageError",
    "ImageLike",
    "Remark",
    "Report",
    "Sample",
    "SplitReport",
    "Suspicion",
    "build_dataset",
    "build_datasets",
    "build_eval_loader",
    "build_train_loader",
    "check",
    "collate",
    "eval_transform",
    "image_files",
    "normalized",
    "read_annotations",
    "read_image",
    "shapes",
    "to_pixels",
    "train_transform",
]
