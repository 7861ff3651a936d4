"""What a predictor found, as pictures and files."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from . import drawing
from .data.benchmarks import distinct_colors
from .evaluation.zero_shot import save_palette_png
from .files import replacing
from .predictor import Segmentation


def colors_of(found: Segmentation) -> list[drawing.Color]:
    """RGB of each class, light ones where there are few; black for the background."""
    count = len(found.classes) - found.background
    light = (255 * np.array(matplotlib.colormaps["tab10"].colors)).astype(int).tolist()
    colors = list(map(tuple, light[:count])) if count <= len(light) else distinct_colors(count + 1)[1:]
    return [(0, 0, 0)] * found.background + colors


def draw_overlay(found: Segmentation, shares: bool = True) -> np.ndarray:
    """The image with its classes in colour and a legend, RGB uint8 [H', W', 3]; a background is left as it is.

    Args:
        shares: see drawing.draw_overlay.
    """
    plain = [0] if found.background else []
    return drawing.draw_overlay(found.image, found.labels, found.classes, colors_of(found), plain, shares)


def draw_heat_map(found: Segmentation, name: str) -> np.ndarray:
    """The score of a class at each pixel over the darkened image, blue (0) to red (1), RGB uint8 [H, W, 3]."""
    scores = found.scores[found.index(name)].numpy().clip(0, 1)
    colored = matplotlib.colormaps["turbo"](scores)[..., :3] * 255
    return (0.4 * found.image + 0.6 * colored).round().astype(np.uint8)


def save(found: Segmentation, folder: Path, name: str, heat_maps: bool = False) -> list[Path]:
    """Writes NAME.png (overlay), NAME_labels.png (palette), NAME.json (classes and their areas), and heat maps.

    Returns:
        the files' paths.
    """
    pictures = {f"{name}.png": draw_overlay(found)}
    for i, word in enumerate(found.classes if heat_maps else ()):
        safe = "".join(letter if letter.isalnum() else "_" for letter in word)
        pictures[f"{name}_{i}_{safe}.png"] = drawing.enlarge(draw_heat_map(found, word))
    for file, picture in pictures.items():
        with replacing(folder / file) as unfinished:
            Image.fromarray(picture).save(unfinished, "PNG")
    save_palette_png(found.labels, colors_of(found), folder / f"{name}_labels.png")
    areas = {word: round(area, 6) for word, area in found.areas().items()}
    height, width = found.labels.shape
    with replacing(folder / f"{name}.json") as unfinished:
        unfinished.write_text(json.dumps({"height": height, "width": width, "areas": areas}, indent=1))
    return [folder / file for file in (*pictures, f"{name}_labels.png", f"{name}.json")]
