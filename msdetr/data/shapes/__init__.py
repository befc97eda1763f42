"""The embedded data set: simple shapes on cluttered backgrounds, in COCO format, made on the spot from a seed.

Eight classes that only their outline tells apart, 1 to 6 objects in a 128 x 128 image, 16 to 80 pixels long, a little turned,
squeezed, textured, partly hidden by each other and by the border, over gradients, mottle, scribbles and odd blobs that
belong to no class. As in COCO, an annotation describes what is *visible*: box and area.

The same seed gives the same pixels and the same JSON on every machine. For that nothing but integers is used: random
numbers are the raw stream of PCG64 (which NumPy guarantees, unlike that of ``Generator.integers``), coordinates are in
units of 1/64 pixel, and polygons are filled by an exact scan-line rule. Image i of a split depends on (seed, split, i)
alone, so a larger set begins with the smaller one.
"""

from .folder import VERSION, generate
from .raster import IMAGE_SIZE
from .scene import CLASS_NAMES, SPLITS, render

__all__ = ["CLASS_NAMES", "IMAGE_SIZE", "SPLITS", "VERSION", "generate", "render"]
