"""Label files of benchmarks: reading them, and what their values stand for."""

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from ..utils.downloads import PathManager


def read_label(path: str) -> np.ndarray:
    """Read the values of a label file (palette, gray or 16-bit PNG, or TIFF), [H, W].

    Raises:
        OSError: the file cannot be read, or has several values a pixel; names it.
    """
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            label = np.array(image)
    except Exception as error:  # PIL raises many types
        raise OSError(f"Label {path} could not be read: {error}") from None
    if label.ndim != 2:
        raise OSError(f"Label {path} has {label.shape[2]} channels; expected one value a pixel (palette or gray PNG).")
    return label


def parse_rule(rule: dict[str, str | int], ignore_label: int) -> dict[int, int]:
    """Parse a label rule as it is written in data files.

    Args:
        rule: values in the file -> "ignore", a class index, or a range of them. Ranges include their ends and stand
            for as many classes, or all for one: {"0": "ignore", "1..20": "0..19", "30..34": 20}.
        ignore_label: what "ignore" becomes.

    Returns:
        value in the file -> class index or `ignore_label`.
    """

    def parse_range(text: str) -> range:
        first, _, last = text.partition("..")
        return range(int(first), int(last or first) + 1)

    label_map = {}
    for values_text, target in rule.items():
        values = parse_range(values_text)
        if target == "ignore":
            classes = [ignore_label] * len(values)
        elif isinstance(target, int):
            classes = [target] * len(values)
        else:
            classes = parse_range(target)
        label_map.update(zip(values, classes, strict=True))
    return label_map


class LabelMapper:
    """Turns the values of label files into class indices, and refuses values that have no meaning."""

    def __init__(self, num_classes: int, label_map: dict[int, int] | None, ignore_label: int):
        """Build the table of all values.

        Args:
            num_classes: number of classes.
            label_map: value in the file -> class index or `ignore_label`; None: values are class indices.
            ignore_label: value of the pixels that count nowhere; must be no class index.

        Raises:
            ValueError: the rule names a class that there is not, or ignores one.
        """
        rule = {k: k for k in range(num_classes)} if label_map is None else dict(label_map)
        rule.setdefault(ignore_label, ignore_label)
        wrong = [target for target in rule.values() if target != ignore_label and not 0 <= target < num_classes]
        if wrong:
            raise ValueError(f"The label rule names class {wrong[0]}; there are {num_classes} classes, from 0.")
        if ignore_label < num_classes:
            raise ValueError(f"The ignored label {ignore_label} is also the index of one of {num_classes} classes.")

        # 65536 entries serve every 8 and 16-bit file without a check of its largest value; int32 is fast to look up.
        self.num_classes = num_classes
        self._is_beyond_8_bits = any(value > 255 for value, target in rule.items() if target != ignore_label)
        self._table = np.full(1 << 16, -1, np.int32)
        for value, target in rule.items():
            self._table[value] = num_classes if target == ignore_label else target

    @classmethod
    def of(cls, dataset_name: str) -> "LabelMapper":
        """Build the mapper of a registered dataset: of its `stuff_classes`, `ignore_label` and optional `label_map`."""
        metadata = MetadataCatalog.get(dataset_name)
        return cls(len(metadata.stuff_classes), metadata.get("label_map"), metadata.get("ignore_label", 255))

    def read(self, path: str) -> np.ndarray:
        """Read the class indices of a label file, int32 [H, W], `num_classes` where ignored.

        Raises:
            OSError: see read_label.
            ValueError: see __call__.
        """
        return self(read_label(path), path)

    def __call__(self, label: np.ndarray, path: str) -> np.ndarray:
        """Map the values of a label file to class indices.

        Args:
            label: values, integers [H, W].
            path: name of the file, for the error.

        Returns:
            class indices int32 [H, W], `num_classes` where ignored.

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
