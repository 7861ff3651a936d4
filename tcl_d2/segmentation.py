"""What the predictor returns: an image's labels and scores, with their pictures and files."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .utils import visualizer
from .utils.files import replacing
from .utils.visualizer import Color
from .utils.words import NO_CLASS

if TYPE_CHECKING:  # a deployed model's scores are made without torch
    from detectron2.structures import Instances
    from torch import Tensor

    from .utils.connected_components import ComponentSettings

_MAX_NAME_BYTES = 100  # of an image's name, and of a word, in a file name; a file name may have 255


@dataclass
class Segmentation:
    """An image, segmented into classes.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        classes: K class words; the background comes first, if there is one.
        labels: class of each pixel, index into `classes`, int64 [H, W].
        background: whether the first class is the background.
        scores: score of each class at each pixel, [K, H, W], on the CPU; fp32 in 0..1 or uint8 in 0..255; None where
            labels alone were asked for.
        negative: whether the last class is what negative words took: pixels of no class, see TCLPredictor.
        label_scores: score of each pixel's class, fp32 [H, W]; None where it was not asked for.
        components: what counts as an object; None for the defaults.
    """

    image: np.ndarray
    classes: list[str]
    labels: np.ndarray
    background: bool = False
    scores: "Tensor | np.ndarray | None" = None
    negative: bool = False
    label_scores: np.ndarray | None = None
    components: "ComponentSettings | None" = None

    # ------------------------------------------------------------------------------------------------- values

    def areas(self) -> dict[str, float]:
        """Return the share of the image that each class takes, in 0..1."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return {name: float(count) / self.labels.size for name, count in zip(self.classes, counts)}

    def index(self, name: str) -> int:
        """Return the index of a class; KeyError for a word that is no class."""
        if name not in self.classes:
            raise KeyError(f"'{name}' is no class of this segmentation: {', '.join(self.classes)}")
        return self.classes.index(name)

    def mask(self, name: str) -> np.ndarray:
        """Return the pixels of a class, bool [H, W]; KeyError for a word that is no class."""
        return self.labels == self.index(name)

    def class_scores(self, name: str) -> np.ndarray:
        """Return the scores of a class [H, W]; KeyError for a word that is no class, ValueError without scores."""
        if self.scores is None:
            raise ValueError("This segmentation has labels alone: ask the predictor for scores (labels_only=False).")
        return np.asarray(self.scores[self.index(name)])

    def things(self) -> list[str]:
        """Return the classes that objects may be of: all but the background, and what is of no class."""
        plain = self.plain_classes()
        return [name for index, name in enumerate(self.classes) if index not in plain and name != NO_CLASS]

    def instances(self, **settings: int) -> "Instances":
        """Find objects: the connected components of each class's mask.

        Args:
            settings: `min_area`, `connectivity` or `max_objects` in place of those of `components`, see
                ComponentSettings.

        Returns:
            instances in Detectron2's format, the best score first, see make_instances; their classes are indices of
            `things()`, and their scores the mean scores of their pixels, in 0..1.

        Raises:
            ValueError: the segmentation has labels alone, or a number is out of its range.
        """
        from .utils.connected_components import ComponentSettings, connected_components
        from .utils.instances import make_instances

        components = (self.components or ComponentSettings())._replace(**settings)
        components.check()
        indices = {self.index(name): index for index, name in enumerate(self.things())}
        objects = connected_components(self.labels, self._label_scores(), indices, components)
        return make_instances(objects, self.labels.shape, indices)

    def _label_scores(self) -> np.ndarray:
        """Return the score of each pixel's class, floats [H, W] in 0..1."""
        if self.label_scores is not None:
            return self.label_scores
        if self.scores is None:
            raise ValueError(
                "This segmentation has labels alone: ask the predictor for scores (labels_only=False), or for those of "
                "the labels (label_scores=True)."
            )
        scores = np.take_along_axis(np.asarray(self.scores), self.labels[None], 0)[0]
        return scores / np.float32(255) if scores.dtype == np.uint8 else scores

    def area_changes(self, former: "Segmentation") -> dict[str, tuple[float, float]]:
        """Return the share of the image of each class in a former segmentation and in this one, in 0..1.

        Classes that are in one of them alone have 0 in the other; those of the former one come first.

        Args:
            former: of the same image, by other words or settings.
        """
        before, now = former.areas(), self.areas()
        return {name: (before.get(name, 0.0), now.get(name, 0.0)) for name in {**before, **now}}

    def region(self, x: int, y: int) -> np.ndarray:
        """Return the region of a class that a pixel lies in, bool [H, W].

        It is the connected part (pixels side by side) of the class's mask; on the background, and where negative words
        won, the single pixel.

        Args:
            x: column of the pixel.
            y: row of the pixel.

        Raises:
            ValueError: the point lies outside the image.
        """
        from .utils.regions import connected_mask, point_mask  # scipy, which a deployed model does without

        point = point_mask(x, y, self.labels.shape)
        label = int(self.labels[y, x])
        return point if label in self.plain_classes() else connected_mask(self.labels == label, x, y)

    def describe_areas(self, count: int = 4) -> str:
        """Return the classes with the largest areas, such as "brick 61 %, grass 39 %"."""
        largest = sorted(self.areas().items(), key=lambda item: -item[1])[:count]
        return ", ".join(f"{word} {100 * area:.0f} %" for word, area in largest if area > 0)

    # ------------------------------------------------------------------------------------------------- pictures

    def colors(self) -> list[Color]:
        """Return an RGB color of each class, black for the background and for what negative words took."""
        if self.negative:
            return [*visualizer.class_colors(len(self.classes) - 1, self.background), (0, 0, 0)]
        return visualizer.class_colors(len(self.classes), self.background)

    def plain_classes(self) -> list[int]:
        """Return the indices of what is no class, and is left as it is in pictures."""
        indices = [0] if self.background else []
        if self.negative:
            indices.append(len(self.classes) - 1)
        return indices

    def draw_overlay(self, shares: bool = True) -> np.ndarray:
        """Draw the image with its classes in color and a legend; `plain_classes` are left as they are.

        Args:
            shares: whether the legend has only the classes that occur, each with its share of the image.

        Returns:
            the picture, RGB uint8 [H', W', 3].
        """
        plain = self.plain_classes()
        return visualizer.draw_overlay(self.image, self.labels, self.classes, self.colors(), plain, shares)

    def draw_classes(self) -> np.ndarray:
        """Draw the picture of `draw_overlay` without its legend, RGB uint8 [H', W', 3]."""
        return visualizer.draw_classes(self.image, self.labels, self.colors(), self.plain_classes())

    def draw_heat_map(self, name: str) -> np.ndarray:
        """Draw the scores of a class over the darkened image, from blue (0) to red (1), RGB uint8 [H, W, 3].

        Raises:
            KeyError: the word is no class.
            ValueError: the segmentation has no scores.
        """
        return visualizer.draw_heat_map(self.image, self.class_scores(name))

    def draw_boxes(self, instances: "Instances | None" = None) -> np.ndarray:
        """Draw the image with the boxes of objects, with words and scores, by Detectron2's Visualizer.

        Args:
            instances: the objects; None for those of `instances`.

        Returns:
            the picture, RGB uint8 [H', W', 3].

        Raises:
            RuntimeError: OpenCV is not installed.
            ValueError: the segmentation has labels alone.
        """
        from .utils.instances import draw_boxes

        instances = self.instances() if instances is None else instances
        return draw_boxes(self.image, instances, self.things(), self.colors()[int(self.background) :])

    # ------------------------------------------------------------------------------------------------- files

    def save(
        self, folder: str | Path, name: str, heat_maps: bool = False, overlay: bool = True, boxes: bool = False
    ) -> list[Path]:
        """Write NAME.png (overlay), NAME_labels.png (palette), heat maps, boxes, and, last, NAME.json (areas).

        Args:
            folder: is made where it is missing.
            name: how the names of the files begin.
            heat_maps: whether to write NAME_K_CLASS.png for each class.
            overlay: whether to write the overlay, which takes longer than all else.
            boxes: whether to write NAME_boxes.png, and the objects as COCO has results, NAME_boxes.json.

        Returns:
            the paths of the files, in the order of `result_paths`.

        Raises:
            RuntimeError: boxes without OpenCV.
            ValueError: heat maps or boxes of a segmentation without scores.
        """
        # Boxes and heat maps first: without scores, no file is written
        paths = result_paths(folder, name, self.classes if heat_maps else (), boxes)
        overlay_path, labels_path, areas_path, *other_paths = paths
        if heat_maps:
            self.class_scores(self.classes[0])
        if boxes:
            self._save_boxes(name, *other_paths[:2])
        heat_map_paths = other_paths[2:] if boxes else other_paths
        for word, path in zip(self.classes, heat_map_paths):
            visualizer.save_picture(visualizer.enlarge(self.draw_heat_map(word)), path)

        # Write overlay and labels
        if overlay:
            visualizer.save_picture(self.draw_overlay(), overlay_path)
        visualizer.save_palette_png(self.labels, self.colors(), labels_path)

        # Write the areas
        height, width = self.labels.shape
        areas = {word: round(area, 6) for word, area in self.areas().items()}
        with replacing(areas_path) as unfinished:
            unfinished.write_text(json.dumps({"height": height, "width": width, "areas": areas}, indent=1))
        return paths if overlay else paths[1:]

    def _save_boxes(self, name: str, picture_path: Path, results_path: Path) -> None:
        from .utils.instances import coco_results

        instances = self.instances()
        visualizer.save_picture(self.draw_boxes(instances), picture_path)
        with replacing(results_path) as unfinished:
            unfinished.write_text(json.dumps(coco_results(instances, name, self.things()), indent=1))


def shorten(text: str) -> str:
    """Cut an image's name or a word, so that it has room in a file name."""
    return text.encode("utf-8", "replace")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")


def result_paths(folder: str | Path, name: str, heat_maps: Sequence[str] = (), boxes: bool = False) -> list[Path]:
    """Return the paths of an image's results.

    Args:
        folder: the folder of the results.
        name: how the names of the files begin.
        heat_maps: class words that heat maps are drawn of.
        boxes: whether boxes are drawn.

    Returns:
        the paths of the overlay, the labels, the areas, of the picture and the results of boxes, and of each heat map.
    """
    file_names = [f"{name}.png", f"{name}_labels.png", f"{name}.json"]
    if boxes:
        file_names += [f"{name}_boxes.png", f"{name}_boxes.json"]
    for index, word in enumerate(heat_maps):
        letters = "".join(letter if letter.isalnum() else "_" for letter in word)
        file_names.append(f"{name}_{index}_{os.fsdecode(shorten(letters).encode())}.png")  # UTF-8 in every locale
    return [Path(folder) / file_name for file_name in file_names]
