"""Benchmarks' label files: reading them, and the meaning of their values."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from numbers import Integral
from typing import cast

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image, ImageFile

from ..utils.errors import named
from ..utils.files import open_path
from ..utils.images import raw_mode, turn_upright
from .dataset_files import subsample

_STRETCHED = {"L;2": 3, "L;2R": 3, "L;4": 15, "L;4R": 15}  # gray of few bits, which PIL stretches to 0..255
_NUM_VALUES = 1 << 16  # of a label file


def read_label(path: str) -> np.ndarray:
    """Read the values of a label file as they are stored, upright as its EXIF says, integers [H, W].

    The file has one value a pixel: palette or gray, of 1 to 32 bits, such as PNG or TIFF.

    Raises:
        OSError: the file cannot be read, or has other pixels; names it.
    """
    try:
        with open_path(path) as file, Image.open(file) as image:
            _check_is_label(image)
            largest, full = _gray_scale(image)
            label = np.array(turn_upright(image))
    except Exception as error:  # PIL raises many types
        raise OSError(f"Label {path} could not be read: {error}") from None

    if label.dtype == bool:
        label = label.astype(np.uint8)
    if largest != full:
        label = (label.astype(np.float64) * largest / full).round().astype(label.dtype)
    return label


def _check_is_label(image: Image.Image) -> None:
    expected = "expected one value a pixel (palette or gray PNG)"
    bands = len(image.getbands())
    if bands > 1:
        raise ValueError(f"it has {bands} channels; {expected}")
    if image.mode == "F":
        raise ValueError(f"its pixels are floats; {expected}")
    if image.format in ("JPEG", "MPO"):
        raise ValueError(f"it is a JPEG, which does not keep values; {expected}")
    if "I" in raw_mode(image).partition(";")[2]:
        raise ValueError("its gray is inverted (0 is white), and nothing says which values are meant: 0 must be black")


def _gray_scale(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Return the largest value that a file's pixels can have, and PIL's value for it."""
    codec, *_, arguments = cast(tuple, image.tile[0])
    if codec.startswith("ppm"):
        return arguments[1], 65535 if image.mode == "I" else 255
    return _STRETCHED.get(raw_mode(image), 255), 255


def parse_rule(rule: dict[str, str | int], ignore_label: int) -> dict[int, int]:
    """Parse a label rule of a data file: value in the file -> class index or `ignore_label`.

    Values and classes may be ranges, which include their ends: {"0": "ignore", "1..20": "0..19", "30..34": 20}.
    """

    label_map = {}
    for values_text, target in rule.items():
        values = parse_range(values_text)
        target = ignore_label if target == "ignore" else target
        classes = [target] * len(values) if isinstance(target, int) else parse_range(target)
        label_map.update(zip(values, classes, strict=True))
    return label_map


def parse_range(text: str) -> range:
    """Parse a value or a range of them, which includes its ends: "3", "1..20"."""
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)


class LabelMapper:
    """Turns the values of label files into class indices, and refuses values without a meaning."""

    def __init__(
        self,
        num_classes: int,
        label_map: dict[int, int] | None,
        ignore_label: int,
        read_values: Callable[[str], np.ndarray] = read_label,
    ):
        """Build the table of all values.

        Args:
            label_map: value in the file -> class index or `ignore_label`; None: values are class indices.
            ignore_label: value of ignored pixels; must be no class index.
            read_values: reads the values of a label, integers [H, W], by its `sem_seg_file_name`.

        Raises:
            ValueError: the rule has a value that no file can have, names a missing class, or ignores one.
        """
        rule = {k: k for k in range(num_classes)} if label_map is None else dict(label_map)
        rule.setdefault(ignore_label, ignore_label)
        impossible = [value for value in rule if not (isinstance(value, Integral) and 0 <= value < _NUM_VALUES)]
        if impossible:
            raise ValueError(
                f"The label rule has the value {impossible[0]!r}; expected integers in 0..{_NUM_VALUES - 1}."
            )
        wrong = [target for target in rule.values() if target != ignore_label and not 0 <= target < num_classes]
        if wrong:
            raise ValueError(f"The label rule names class {wrong[0]}; there are {num_classes} classes, from 0.")
        if ignore_label < num_classes:
            raise ValueError(f"The ignored label {ignore_label} is also the index of one of {num_classes} classes.")

        # 65536 entries serve every 8 and 16-bit file without a check of its largest value; int32 is fast to look up.
        self.num_classes = num_classes
        self._read_values = read_values
        self._is_beyond_8_bits = any(value > 255 for value, target in rule.items() if target != ignore_label)
        self._table = np.full(_NUM_VALUES, -1, np.int32)
        for value, target in rule.items():
            self._table[value] = num_classes if target == ignore_label else target

    @classmethod
    def of(cls, dataset_name: str) -> "LabelMapper":
        """Build the mapper of a registered dataset from its metadata.

        These are `stuff_classes`, and optionally `label_map`, `ignore_label` and `read_label`, see register_rows.

        Raises:
            ValueError: see __init__; names the dataset.
        """
        metadata = MetadataCatalog.get(dataset_name)
        with named(f"Dataset '{dataset_name}'"):
            ignore_label, read_values = metadata.get("ignore_label", 255), metadata.get("read_label", read_label)
            return cls(len(metadata.stuff_classes), metadata.get("label_map"), ignore_label, read_values)

    def describe_masks(self, paths: Sequence[str]) -> str:
        """Return what is wrong if label files have only the values 0 and 255, and 255 is ignored; "" for others.

        Some of the files are read; broken ones are skipped.
        """
        values = set()
        for path in subsample(paths, 20):
            with suppress(OSError):
                values.update(np.unique(self._read_values(path)).tolist())
        if values != {0, 255} or self.num_classes < 2 or self._table[255] != self.num_classes:
            return ""
        return (
            "The labels hold the values 0 and 255 alone, as masks do, but 255 is ignored: write 1 in place of 255, or "
            "register the dataset with label_map={0: 0, 255: 1}."
        )

    def read(self, path: str) -> np.ndarray:
        """Read a label file as class indices int32 [H, W], `num_classes` where ignored.

        Raises:
            OSError, ValueError: see read_label and __call__.
        """
        return self(self._read_values(path), path)

    def __call__(self, label: np.ndarray, path: str) -> np.ndarray:
        """Map the values of a label file, integers [H, W], to class indices int32 [H, W], `num_classes` where ignored.

        Raises:
            ValueError: a value stands for no class, or the file has too few bits for the classes; names the file.
        """
        if self._is_beyond_8_bits and label.dtype.itemsize == 1:
            raise ValueError(
                f"Label {path} has 8 bits a pixel, too few for the {self.num_classes} classes of this dataset. "
                "Prepare the dataset anew: 16 bits are expected."
            )
        if label.dtype.itemsize > 2 and not 0 <= label.min(initial=0) <= label.max(initial=0) < len(self._table):
            raise ValueError(f"Label {path} has values beyond 16 bits: {label.min()} to {label.max()}.")
        mapped = self._table[label]
        if mapped.min(initial=0) < 0:
            value = np.unique(label[mapped < 0])[0]
            raise ValueError(f"Label {path} has the value {value}, which stands for no class of this dataset.")
        return mapped
