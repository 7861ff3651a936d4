"""Label files of benchmarks: reading them, and what their values stand for."""

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image


def read_label(path: str) -> np.ndarray:
    """The values of a label file (palette, grey or 16-bit PNG), [H, W]; OSError names a file that cannot be read."""
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            label = np.array(image)
    except Exception as error:  # PIL raises many kinds
        raise OSError(f"Label {path} could not be read: {error}") from None
    if label.ndim != 2:
        raise OSError(f"Label {path} has {label.shape[2]} channels; expected one value a pixel (palette or grey PNG).")
    return label


def parse_rule(rule: dict[str, str | int], ignore_label: int) -> dict[int, int]:
    """A label rule as it is written in data files, as {value in the file: class index or `ignore_label`}.

    {"0": "ignore", "1..20": "0..19", "30..34": 20}: ranges, ends included, stand for as many classes or all for one.
    """

    def span(text: str) -> range:
        first, _, last = text.partition("..")
        return range(int(first), int(last or first) + 1)

    table = {}
    for values, target in rule.items():
        if target == "ignore":
            target = ignore_label
        classes = [target] * len(span(values)) if isinstance(target, int) else span(target)
        table.update(zip(span(values), classes, strict=True))
    return table


class LabelMapper:
    """Turns the values of label files into class indices, and refuses values that have no meaning."""

    def __init__(self, num_classes: int, label_map: dict[int, int] | None, ignore_label: int):
        """
        Args:
            label_map: value in the file -> class index or `ignore_label`; None: values are class indices.
        """
        rule = {k: k for k in range(num_classes)} if label_map is None else dict(label_map)
        rule.setdefault(ignore_label, ignore_label)
        wrong = [value for value in rule.values() if value != ignore_label and not 0 <= value < num_classes]
        if wrong:
            raise ValueError(f"The label rule names class {wrong[0]}; there are {num_classes} classes, from 0.")
        if ignore_label < num_classes:
            raise ValueError(f"The ignored label {ignore_label} is also the index of one of {num_classes} classes.")
        self.num_classes = num_classes
        # 65536 entries serve every 8 and 16-bit file without a check of its largest value; int32 is fast to look up.
        self._table = np.full(1 << 16, -1, np.int32)
        for value, target in rule.items():
            self._table[value] = num_classes if target == ignore_label else target

    @classmethod
    def of(cls, dataset_name: str) -> "LabelMapper":
        """The rule of a registered data set: its `stuff_classes`, `ignore_label` and, where it has one, `label_map`."""
        metadata = MetadataCatalog.get(dataset_name)
        return cls(len(metadata.stuff_classes), metadata.get("label_map"), metadata.get("ignore_label", 255))

    def read(self, path: str) -> np.ndarray:
        """The class indices of a label file, int32 [H, W], `num_classes` where ignored; errors as read_label, and as
        of a call."""
        return self(read_label(path), path)

    def __call__(self, label: np.ndarray, path: str) -> np.ndarray:
        """Values [H, W] -> class indices int32, `num_classes` where ignored; ValueError names the file and a value."""
        if label.dtype.itemsize > 2 and not 0 <= label.min(initial=0) <= label.max(initial=0) < len(self._table):
            raise ValueError(f"Label {path} has values beyond 16 bits: {label.min()} to {label.max()}.")
        mapped = self._table[label]
        if mapped.min(initial=0) < 0:
            value = np.unique(label[mapped < 0])[0]
            raise ValueError(f"Label {path} has the value {value}, which stands for no class of this data set.")
        return mapped
