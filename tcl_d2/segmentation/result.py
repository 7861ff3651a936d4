"""A segmentation: the predictor's result, an image's labels and scores, with their pictures and files."""

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..utils.files import replacing
from ..utils.imports import import_optional
from ..words.parsing import NO_CLASS
from . import drawing
from .drawing import Color

if TYPE_CHECKING:  # a deployed model's scores are made without torch
    from detectron2.structures import Instances
    from matplotlib.axes import Axes
    from supervision import Detections
    from torch import Tensor

    from .objects import ComponentSettings

_MAX_NAME_BYTES = 100  # of an image's name, and of a word, in a file name; a file name may have 255
_SOFTWARE = "tcl_d2 segmentation"  # marks the pictures of results
_MARK = PngInfo()
_MARK.add_text("Software", _SOFTWARE)


@dataclass(repr=False)
class Segmentation:
    """An image, segmented into classes.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        classes: K class words; the background comes first, if there is one.
        labels: class of each pixel, index into `classes`, int64 [H, W].
        background: whether the first class is the background.
        scores: score of each class at each pixel, [K, H, W], on the CPU; fp32 in 0..1 or uint8 in 0..255; None if only
            labels were asked for.
        negative: whether the last class holds the pixels of negative words, which belong to no class.
        label_scores: score of each pixel's class, fp32 [H, W]; None if it was not asked for.
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

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"Segmentation({width} x {height}, {len(self.classes)} classes: {self.describe_areas()})"

    # ------------------------------------------------------------------------------------------------- values

    def areas(self) -> dict[str, float]:
        """Return each class's share of the image, in 0..1."""
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
        return self._all_scores()[self.index(name)]

    def _all_scores(self) -> np.ndarray:
        if self.scores is None:
            raise ValueError(
                "This segmentation has labels alone: ask the predictor for scores (labels_only=False), or for objects "
                "for those of the labels (label_scores=True)."
            )
        return np.asarray(self.scores)

    def things(self) -> list[str]:
        """Return the classes that objects may have: all but the background and pixels of no class."""
        plain = self.plain_classes()
        return [name for index, name in enumerate(self.classes) if index not in plain and name != NO_CLASS]

    def instances(self, **settings: int) -> "Instances":
        """Find objects, the connected components of each class's mask, as Detectron2's Instances, the best score first.

        Their classes are indices of `things()`, and their scores the mean scores of their pixels, in 0..1.

        Args:
            settings: `min_area`, `connectivity` or `max_objects` in place of those of `components`.
        """
        from .objects import ComponentSettings, connected_components, make_instances

        components = (self.components or ComponentSettings())._replace(**settings)
        components.check()
        indices = {self.index(name): index for index, name in enumerate(self.things())}
        objects = connected_components(self.labels, self._label_scores(), indices, components)
        return make_instances(objects, self.labels.shape, indices)

    def to_detections(self, **settings: int) -> "Detections":
        """Return the objects of `instances` as supervision's Detections, with their words as `class_name`.

        RuntimeError where supervision is not installed.
        """
        detections = import_optional("supervision", "Segmentation.to_detections").Detections
        objects, things = self.instances(**settings), np.array(self.things())
        indices = objects.pred_classes.numpy()
        return detections(
            xyxy=objects.pred_boxes.tensor.numpy(),
            mask=objects.pred_masks.numpy(),
            confidence=objects.scores.numpy(),
            class_id=indices,
            data={"class_name": things[indices]},
        )

    def _label_scores(self) -> np.ndarray:
        if self.label_scores is not None:
            return self.label_scores
        scores = np.take_along_axis(self._all_scores(), self.labels[None], 0)[0]
        return scores / np.float32(255) if scores.dtype == np.uint8 else scores

    def area_changes(self, former: "Segmentation") -> dict[str, tuple[float, float]]:
        """Return each class's share of the image in a former segmentation and in this one, in 0..1."""
        before, now = former.areas(), self.areas()
        return {name: (before.get(name, 0.0), now.get(name, 0.0)) for name in {**before, **now}}

    def region(self, x: int, y: int) -> np.ndarray:
        """Return the connected region of a pixel's class, bool [H, W]; only the pixel in `plain_classes`."""
        from .regions import connected_mask, point_mask  # scipy, which a deployed model does without

        point = point_mask(x, y, self.labels.shape)
        label = int(self.labels[y, x])
        return point if label in self.plain_classes() else connected_mask(self.labels == label, x, y)

    def describe_areas(self, count: int = 4) -> str:
        """Return the classes with the largest areas, such as "brick 61 %, grass 39 %"."""
        largest = sorted(self.areas().items(), key=lambda item: -item[1])[:count]
        return ", ".join(f"{word} {100 * area:.0f} %" for word, area in largest if area > 0)

    # ------------------------------------------------------------------------------------------------- pictures

    def colors(self) -> list[Color]:
        """Return an RGB color of each class, black for `plain_classes`."""
        colors = drawing.class_colors(len(self.classes) - self.negative, self.background)
        return [*colors, (0, 0, 0)] if self.negative else colors

    def plain_classes(self) -> list[int]:
        """Return the indices of the background and of negative words, whose pixels pictures leave as they are."""
        return [0] * self.background + [len(self.classes) - 1] * self.negative

    def draw_overlay(self, shares: bool = True) -> np.ndarray:
        """Draw the image with its classes in color and a legend of all, or of those that occur with their shares."""
        plain = self.plain_classes()
        return drawing.draw_overlay(self.image, self.labels, self.classes, self.colors(), plain, shares)

    def draw_classes(self) -> np.ndarray:
        """Draw the picture of `draw_overlay` without its legend."""
        return drawing.draw_classes(self.image, self.labels, self.colors(), self.plain_classes())

    def draw_heat_map(self, name: str) -> np.ndarray:
        """Draw the scores of a class over the image, from blue (0) to red (1), RGB uint8 [H, W, 3]."""
        return drawing.draw_heat_map(self.image, self.class_scores(name))

    def draw_boxes(self, instances: "Instances | None" = None) -> np.ndarray:
        """Draw the image with boxes, words and scores of objects, by default those of `instances`."""
        from .objects import draw_boxes

        instances = self.instances() if instances is None else instances
        return draw_boxes(self.image, instances, self.things(), self.colors()[int(self.background) :])

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw the overlay with matplotlib; return its axes, by default those of a new figure."""
        drawn = axes or import_optional("matplotlib.pyplot", "Segmentation.plot", "matplotlib").subplots()[1]
        drawn.imshow(self.draw_overlay())
        drawn.set_axis_off()
        return drawn

    # ------------------------------------------------------------------------------------------------- files

    def save(
        self,
        folder: str | Path,
        name: str,
        heat_maps: bool = False,
        overlay: bool = True,
        boxes: bool = False,
        state: Mapping[str, object] | None = None,
    ) -> list[Path]:
        """Write NAME.png (overlay), NAME_labels.png (palette), boxes, heat maps, and, last, NAME.json (areas).

        All files are written, or none. Return their paths, in the order of `result_paths`.

        Args:
            name: may have folders.
            heat_maps: whether to write NAME_K_CLASS.png for each class.
            overlay: whether to write the overlay, which takes longer than all else.
            boxes: whether to write NAME_boxes.png, and NAME_boxes.json, in COCO's format of results.
            state: further entries of NAME.json.

        Raises:
            RuntimeError, ValueError: boxes without OpenCV; heat maps or boxes of a segmentation without scores.
        """
        paths = result_paths(folder, name, self.classes if heat_maps else (), boxes, overlay)
        with ExitStack() as stack:
            # All are complete before the first comes to its place; the areas come last
            files = [stack.enter_context(replacing(path)) for path in reversed(paths)][::-1]
            for file, content in zip(files, self._contents(name, heat_maps, boxes, overlay)):
                if isinstance(content, str):
                    file.write_text(content)
                else:
                    content.save(file, "PNG", pnginfo=_MARK)

            sizes = {path.name: file.stat().st_size for path, file in zip(paths[:-1], files)}
            content = {**self.describe(), **(state or {}), "files": sizes}
            files[-1].write_text(json.dumps(content, indent=1))
        return paths

    def describe(self) -> dict[str, object]:
        """Return what the JSON of a result says of the image: "height", "width", and the "areas" of the classes."""
        height, width = self.labels.shape
        areas = {word: round(area, 6) for word, area in self.areas().items()}
        return {"height": height, "width": width, "areas": areas}

    def encode_labels(self) -> bytes:
        """Return the content of NAME_labels.png."""
        file = io.BytesIO()
        drawing.draw_palette(self.labels, self.colors()).save(file, "PNG", pnginfo=_MARK)
        return file.getvalue()

    def _contents(self, name: str, heat_maps: bool, boxes: bool, overlay: bool) -> Iterator[Image.Image | str]:
        """Yield the contents of the files of `result_paths`, but for the areas."""
        if overlay:
            yield Image.fromarray(self.draw_overlay())
        yield drawing.draw_palette(self.labels, self.colors())

        if boxes:
            from .objects import coco_results

            instances = self.instances()
            yield Image.fromarray(self.draw_boxes(instances))
            yield json.dumps(coco_results(instances, name, self.things()), indent=1)

        for word in self.classes if heat_maps else ():
            yield Image.fromarray(drawing.enlarge(self.draw_heat_map(word)))


def shorten(text: str) -> str:
    """Cut an image's name or a word to fit in a file name."""
    return text.encode("utf-8", "replace")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")


def result_paths(
    folder: str | Path, name: str, heat_maps: Sequence[str] = (), boxes: bool = False, overlay: bool = True
) -> list[Path]:
    """Return the paths of an image's overlay, labels, boxes (picture and results), heat maps of words, and areas."""
    endings = [".png"] * overlay + ["_labels.png"] + ["_boxes.png", "_boxes.json"] * boxes
    for index, word in enumerate(heat_maps):
        letters = "".join(letter if letter.isalnum() else "_" for letter in word)
        endings.append(f"_{index}_{os.fsdecode(shorten(letters).encode())}.png")  # UTF-8 in every locale
    return [Path(folder, f"{name}{ending}") for ending in (*endings, ".json")]


def is_result_picture(path: Path) -> bool:
    """Return whether `Segmentation.save` wrote a file."""
    if not path.is_file():  # a named pipe may have no end
        return False
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == _SOFTWARE
    except Exception:  # PIL raises many types
        return False
