"""SemSegDatasetMapper: turns an image and its label into TCL's training input."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from ...config.ranges import check_values
from ...utils.errors import named
from ...utils.images import BrokenSample, read_image
from ...words.vocabulary import dataset_vocabulary
from ..labels import LabelMapper

_PADDED = 255  # both bytes of a label's pixel outside of the image: together more than any class


class SemSegDatasetMapper:
    """Reads an image and its label, augments them together, and draws the classes to compare."""

    @configurable
    def __init__(self, dataset_names: Sequence[str], *, augmentations: Sequence[T.Augmentation], num_absent: int = 8):
        """Read the datasets' metadata.

        Args:
            dataset_names: labeled datasets, whose rows have their name as `dataset_name`.
            augmentations: of image and label together; the results must be of one size.
            num_absent: classes of the dataset to draw for each image from those that it does not have.

        Raises:
            ValueError: a number out of its range, which names the config key, or metadata that do not fit together.
        """
        check_values("INPUT.SEM_SEG", NUM_ABSENT=num_absent)
        self.augmentations = T.AugmentationList(augmentations)
        self.num_absent = num_absent
        self._label_mappers = {name: LabelMapper.of(name) for name in dataset_names}
        self._words = {name: _words_by_class(name) for name in dataset_names}

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_names: Sequence[str]) -> dict:
        size = cfg.INPUT.IMAGE_TEXT.SIZE
        crop = T.FixedSizeCrop(cast(Any, (size, size)), seg_pad_value=_PADDED)
        return {
            "dataset_names": dataset_names,
            "augmentations": [*utils.build_augmentation(cfg, is_train=True), crop],
            "num_absent": cfg.INPUT.SEM_SEG.NUM_ABSENT,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Turn a labeled image into the model's training input.

        Args:
            dataset_dict: a row of a labeled dataset, with `file_name`, `sem_seg_file_name` and `dataset_name`.

        Returns:
            the row with these:

                image: uint8 [3, H, W], RGB.
                height, width: size of `image`.
                sem_seg: class of each pixel, int64 [H, W], or the metadata's `ignore_label`.
                classes: those to compare, int64 [C]: those of `sem_seg`, then some others; never the background.

        Raises:
            OSError: the image or the label cannot be used; names it.
        """
        name = dataset_dict["dataset_name"]
        with named(f"Dataset '{name}'"):
            image, label = self._augment(*self._read(dataset_dict), dataset_dict["file_name"])
        classes = self._choose_classes(label, name)
        label[label >= self._label_mappers[name].num_classes] = MetadataCatalog.get(name).get("ignore_label", 255)

        height, width = label.shape
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        sample = {"image": pixels, "sem_seg": torch.from_numpy(label), "classes": torch.tensor(classes).long()}
        return {**dataset_dict, "height": height, "width": width, **sample}

    def _read(self, dataset_dict: dict) -> tuple[np.ndarray, np.ndarray]:
        """Read an image uint8 [H, W, 3] and its label int32 [H, W], where the number of classes stands for ignored."""
        file_name, label_name = dataset_dict["file_name"], dataset_dict["sem_seg_file_name"]
        try:
            image = np.array(read_image(file_name, file_name))
            utils.check_image_size(dict(dataset_dict), image)
            label = self._label_mappers[dataset_dict["dataset_name"]].read(label_name)
        except (BrokenSample, ValueError) as error:  # of another size than the row says, or a label value of no class
            raise OSError(error) from None

        if label.shape != image.shape[:2]:
            sizes = [" x ".join(map(str, array.shape[:2])) for array in (label, image)]
            raise OSError(f"label {label_name} has {sizes[0]} pixels, but its image {file_name} {sizes[1]}")
        return image, label

    def _augment(self, image: np.ndarray, label: np.ndarray, file_name: str) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image and its label; the label becomes int64."""
        # PIL resizes labels of 8 bits alone, so each byte of 16 bits is a channel
        label_bytes = label.astype("<u2").view(np.uint8).reshape(*label.shape, 2)
        aug_input = T.AugInput(image, sem_seg=label_bytes)
        try:
            self.augmentations(aug_input)
        except ValueError as error:  # such as a picture whose short side becomes 0 pixels
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise OSError(f"{file_name} ({size}) cannot be augmented: {error}") from None
        image = cast(np.ndarray, aug_input.image)
        return image, np.ascontiguousarray(aug_input.sem_seg).view("<u2")[..., 0].astype(np.int64)

    def _choose_classes(self, label: np.ndarray, name: str) -> list[int]:
        """Return the classes of a label, and drawn absent ones, which share no word with them."""
        words_by_class = self._words[name]
        present = [k for k in np.unique(label).tolist() if k in words_by_class]
        words = {word for k in present for word in words_by_class[k]}
        absent = [k for k in words_by_class if words.isdisjoint(words_by_class[k])]
        drawn = np.random.permutation(absent)[: self.num_absent]
        return present + drawn.astype(int).tolist()


def _words_by_class(dataset_name: str) -> dict[int, set[str]]:
    """Return the words of each class of a dataset, without the background."""
    vocabulary = dataset_vocabulary(dataset_name)
    words_by_class = {k: set() for k in range(int(vocabulary.background), vocabulary.num_classes)}
    for word, k in zip(vocabulary.words, vocabulary.classes):
        if k in words_by_class:
            words_by_class[k].add(word)
    return words_by_class
