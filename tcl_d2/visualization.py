"""A predictor's segmentations, as pictures and files."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from .data.benchmarks import distinct_colors
from .evaluation.zero_shot import save_palette_png
from .predictor import Segmentation
from .utils import visualizer
from .utils.files import replacing

_NAME_BYTES = 100  # of an image's name, and of a word, in the name of a file, which may have 255
_HEAT_ALPHA = 0.6  # of the scores' colours over the image


def colors_of(segmentation: Segmentation) -> list[visualizer.Color]:
    """Return RGB of each class, light ones where there are few; black for the background."""
    count = len(segmentation.classes) - int(segmentation.background)
    light = (255 * np.array(matplotlib.colormaps["tab10"].colors)).astype(int).tolist()
    colors = list(map(tuple, light[:count])) if count <= len(light) else distinct_colors(count + 1)[1:]
    return [(0, 0, 0), *colors] if segmentation.background else colors


def draw_overlay(segmentation: Segmentation, shares: bool = True) -> np.ndarray:
    """Draw the image with its classes in colour and a legend, RGB uint8 [H', W', 3]; a background is left as it is.

    Args:
        shares: see visualizer.draw_overlay.
    """
    plain = [0] if segmentation.background else []
    colors = colors_of(segmentation)
    return visualizer.draw_overlay(segmentation.image, segmentation.labels, segmentation.classes, colors, plain, shares)


def draw_heat_map(segmentation: Segmentation, name: str) -> np.ndarray:
    """Draw the score of a class over the darkened image, blue (0) to red (1), RGB uint8 [H, W, 3].

    Raises:
        KeyError: the word is no class. ValueError: the segmentation has no scores.
    """
    # A colour map takes fp32 in 0..1 and uint8 in 0..255 alike.
    colored = matplotlib.colormaps["turbo"](segmentation.class_scores(name), bytes=True)[..., :3]
    return visualizer.blend(segmentation.image, colored, _HEAT_ALPHA)


def shorten(text: str) -> str:
    """Cut an image's name or a word to what has room in the name of a file."""
    return text.encode("utf-8", "replace")[:_NAME_BYTES].decode("utf-8", "ignore")


def result_paths(folder: Path, name: str, heat_maps: Sequence[str] = ()) -> list[Path]:
    """Return the paths of an image's results: overlay, labels, areas, then the heat maps of these words."""
    words = ["".join(letter if letter.isalnum() else "_" for letter in word) for word in heat_maps]
    maps = [f"{name}_{i}_{shorten(word)}.png" for i, word in enumerate(words)]
    return [folder / file for file in (f"{name}.png", f"{name}_labels.png", f"{name}.json", *maps)]


def save(segmentation: Segmentation, folder: Path, name: str, heat_maps: bool = False) -> list[Path]:
    """Write NAME.png (overlay), NAME_labels.png (palette), NAME.json (classes and their areas), and heat maps.

    Returns:
        the files' paths.
    """
    paths = result_paths(folder, name, segmentation.classes if heat_maps else ())
    overlay, labels, areas, *maps = paths

    for word, path in zip(segmentation.classes, maps):
        _save_picture(visualizer.enlarge(draw_heat_map(segmentation, word)), path)
    _save_picture(draw_overlay(segmentation), overlay)
    save_palette_png(segmentation.labels, colors_of(segmentation), labels)

    height, width = segmentation.labels.shape
    shares = {word: round(area, 6) for word, area in segmentation.areas().items()}
    with replacing(areas) as unfinished:
        unfinished.write_text(json.dumps({"height": height, "width": width, "areas": shares}, indent=1))
    return paths


def _save_picture(picture: np.ndarray, path: Path) -> None:
    with replacing(path) as unfinished:
        Image.fromarray(picture).save(unfinished, "PNG")
