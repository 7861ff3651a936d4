"""TCLPredictor: a model that is built once, from pictures and words to masks."""

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..checkpoint import TCLCheckpointer
from ..checkpoint.checkpointer import fetch_weights, warn_if_untrained
from ..checkpoint.hub import is_hub_name, load_folder_config
from ..config import load_config, merge_options
from ..config.loading import dense_head_config
from ..config.ranges import check_ranges
from ..data.benchmarks import benchmark_classes, image_settings, model_input
from ..modeling import DenseCLIP, FrozenCLIP, ZeroShotSegmentor
from ..modeling.checks import check_device, check_meta_architecture, num_devices
from ..segmentation import Segmentation
from ..segmentation.regions import as_mask
from ..utils.images import ImageLike, as_array
from ..utils.numbers import check_count
from ..utils.threads import map_ahead
from ..words.words import BackgroundLike, ClassesLike, Words
from .stream import Reading, Request, segment_stream

logger = logging.getLogger(__name__)
PRETRAINED = {"official": "eval/official.yaml", "shapes": "shapes/trained.yaml"}
_RANKING_SIDE = 256  # longest side at which words are ranked, in pixels: that of the scores of a thousand words


@dataclass(frozen=True)
class EncodedImage:
    """An image for many requests of one predictor, made by its `encode`: its features are computed once.

    They are computed at the first request, under the predictor's settings at that time, and held as long as this is:
    some 40 MB for each window of 448 pixels of a TCL on ViT-B/16.

    Attributes:
        pixels: RGB uint8 [H, W, 3], of the results' size.
        inputs: the model's, with the features.
        model: the predictor's.
    """

    pixels: np.ndarray
    inputs: dict
    model: nn.Module

    def __getstate__(self) -> dict:
        raise TypeError(
            "An encoded image belongs to its predictor and cannot be pickled or copied: send the picture, and encode "
            "it where it arrives."
        )


class _CallOptions(TypedDict, total=False):
    negative: str | Sequence[str]
    labels_only: bool
    label_scores: bool
    longest_side: int | None


class TCLPredictor:
    """Segmenter of pictures into any words, with a model that is built once.

    ```python
    predictor = TCLPredictor("configs/shapes/trained.yaml")
    segmentation = predictor("photo.jpg", ["red apple", "wooden table"], background=True)
    segmentation.labels, segmentation.areas(), segmentation.mask("red apple")
    ```
    """

    def __init__(self, config: CfgNode | str | Path, *options: object):
        """Build the model with the weights of MODEL.WEIGHTS on MODEL.DEVICE, or on the CPU if there is no GPU.

        Args:
            config: a configuration, or the path of its file, such as configs/shapes/trained.yaml.
            options: KEY, VALUE pairs over the values of the configuration.

        Raises:
            FileNotFoundError, KeyError, ValueError: a file is missing or unreadable, a key unknown, or a value wrong.
        """
        # Read the configuration
        self.options = options
        if isinstance(config, CfgNode):
            self.cfg = config.clone()
            self.cfg.defrost()
            merge_options(self.cfg, options)
        else:
            self.cfg = load_config(config, options)

        # Check it
        check_meta_architecture(self.cfg)
        check_ranges(self.cfg, "INPUT.")
        if not num_devices(self.cfg.MODEL.DEVICE):
            logger.warning("MODEL.DEVICE is %s, but torch finds no GPU here: on the CPU", self.cfg.MODEL.DEVICE)
            self.cfg.MODEL.DEVICE = "cpu"
        check_device(self.cfg.MODEL.DEVICE)
        warn_if_untrained(self.cfg)

        # Build the model, once its weights are there
        fetch_weights(self.cfg.MODEL.WEIGHTS)
        self.model = build_model(self.cfg).eval()
        TCLCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS)

    @property
    def model(self) -> ZeroShotSegmentor:
        """The model; one that is set may be under DistributedDataParallel or DataParallel."""
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        model = model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model
        self._model = cast(ZeroShotSegmentor, model)

    @classmethod
    def from_pretrained(cls, name: str | Path, *options: object) -> "TCLPredictor":
        """Build the predictor of a trained model; raises also an OSError if it cannot be downloaded.

        Args:
            name: "official" (the checkpoint of TCL's authors, downloaded once), "shapes" (the small world's, which
                comes with the project), OWNER/NAME of a model on the Hugging Face hub, a folder as
                tcl-d2 convert --hub writes it, or a configuration.
        """
        return cls(_pretrained_config(str(name)), *options)

    def with_dense_head(self, name: str) -> "TCLPredictor":
        """Return a predictor by a method without training: this one's CLIP, shared, with another last block.

        The options that this predictor was built with stand over the method's settings.

        Args:
            name: in DENSE_HEAD_REGISTRY, see MODEL.DENSE_CLIP.HEAD.

        Raises:
            OSError, ValueError: there is no such method, this model has no CLIP, or weights are missing.
        """
        if not isinstance(self.model.clip, FrozenCLIP):
            raise ValueError(f"the method '{name}' needs a CLIP; {type(self.model).__name__} has none")
        predictor = copy.copy(self)
        predictor.cfg = dense_head_config(self.cfg, name, self.options)
        predictor.model = DenseCLIP(predictor.cfg, clip=self.model.clip).to(self.model.device).eval()
        return predictor

    @overload
    def __call__(
        self,
        image: ImageLike | EncodedImage,
        classes: ClassesLike,
        background: BackgroundLike = False,
        **options: Unpack[_CallOptions],
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        image: Sequence[ImageLike],
        classes: ClassesLike,
        background: BackgroundLike = False,
        **options: Unpack[_CallOptions],
    ) -> list[Segmentation]: ...

    def __call__(
        self,
        image: ImageLike | EncodedImage | Sequence[ImageLike],
        classes: ClassesLike,
        background: BackgroundLike = False,
        *,
        negative: str | Sequence[str] = (),
        labels_only: bool = False,
        label_scores: bool = False,
        longest_side: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or each of a list of images; ValueError names an image or words that cannot be used.

        Args:
            image: path, bytes, PIL image, or array, see utils.images.as_array; a list of them; or one that is encoded.
            classes: a word or a list of words for each class, named by its first word; or one text, see split_words.
                Entries such as "not: shadow" are negative words.
            background: whether pixels that no word fits well (TEST.ZERO_SHOT.BACKGROUND_SCORE) are background; or words
                of the background too, "sky, wall" or a list.
            negative: words that take pixels away, "shadow, tree" or a list: pixels that they fit best belong to the
                last class of the result, "not: shadow", which its pictures leave as it is.
            labels_only: whether to go without the scores, which take 4 bytes for each class at each pixel.
            label_scores: whether to give, with labels only, the score of each pixel's class, for objects.
            longest_side: limit of the result's sides, in pixels; None: it is as large as the image. The model sees the
                image at its working size in any case.
        """
        is_list = isinstance(image, (list, tuple))
        options: dict[str, Any] = {"negative": negative, "labels_only": labels_only, "label_scores": label_scores}
        options |= {"longest_side": longest_side, "num_workers": None if is_list else 0}
        images = cast("Sequence[ImageLike | EncodedImage]", image if is_list else [image])
        segmentations = cast("list[Segmentation]", list(self.stream(images, classes, background, **options)))
        return segmentations if is_list else segmentations[0]

    def stream(
        self,
        images: Iterable[ImageLike | EncodedImage | OSError | ValueError],
        classes: ClassesLike,
        background: BackgroundLike = False,
        *,
        negative: str | Sequence[str] = (),
        labels_only: bool = False,
        label_scores: bool = False,
        longest_side: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[Segmentation | OSError | ValueError]:
        """Segment any number of images in batches, while threads read the next ones; yield results in order.

        Labels are those of one image at a time; scores differ in the last bit. Other arguments are as for a call.

        Args:
            images: may be a generator; few are held at once. An error in place of an image is its result.
            batch_size: most images in a batch, with fewer large ones; None for TEST.ZERO_SHOT.IMS_PER_BATCH.
            num_workers: number of threads that read; None for DATALOADER.NUM_WORKERS; 0 for the calling one.
            return_exceptions: whether to yield, in place of raising it, the error of an image that cannot be read or
                exceeds the memory.
        """
        # Check the request
        _check_several(images)
        test, loader = self.cfg.TEST.ZERO_SHOT, self.cfg.DATALOADER
        batch_size = check_count("batch_size", test.IMS_PER_BATCH if batch_size is None else batch_size, 1)
        num_workers = check_count("num_workers", loader.NUM_WORKERS if num_workers is None else num_workers, 0)
        _check_side(longest_side)
        words = Words.read(classes, background, negative)
        self.model.make_vocabulary(words)  # raises for unusable words

        # Read, batch and segment, as results are taken
        request = Request(vocabulary=words, labels_only=labels_only, label_scores=label_scores and labels_only)
        readings = map_ahead(partial(self._read_or_error, longest_side=longest_side), images, num_workers)
        results = segment_stream(self.model, readings, request, batch_size)
        return results if return_exceptions else map(_raise_error, results)

    # ------------------------------------------------------------------------------------------------- interactive

    def encode(self, image: ImageLike, longest_side: int | None = None) -> EncodedImage:
        """Read an image for many requests, which share its features and so take a part of the time."""
        _check_side(longest_side)
        reading = self._read(image, longest_side)
        return EncodedImage(reading.pixels, {**reading.inputs, "kept_crops": []}, self.model)

    def rank_words(
        self,
        image: ImageLike | EncodedImage,
        region: np.ndarray | tuple[int, int],
        words: ClassesLike,
    ) -> dict[str, float]:
        """Rank words by how well they fit a region of an image; return the score of each, the best first.

        A word's score is the mean over the region of its scores in a segmentation into all these words, without a
        background. With TCL these are masks in 0..1; with dense CLIPs that have a softmax, probabilities among these
        words. A class of several words has the best of them at each pixel.

        Args:
            region: mask bool [H, W] of the image's size (of an encoded image's `pixels`), see Segmentation.region; or
                a point (x, y) in pixels.
            words: classes, as for a call; or the name of a registered benchmark, for the words of its classes.

        Raises:
            ValueError: a mask of another size or without pixels, a point outside the image, or unusable words.
        """
        words = words_to_rank(words)
        encoded = image if isinstance(image, EncodedImage) else self.encode(image)
        mask = torch.from_numpy(as_mask(region, encoded.pixels.shape[:2])).float()
        segmentation = self(encoded, words, longest_side=_RANKING_SIDE)

        # Average over the share that each pixel of the smaller scores has of the region
        scores = torch.as_tensor(segmentation.scores)
        shares = F.interpolate(mask[None, None], scores.shape[1:], mode="area").flatten()
        means = scores.flatten(1) @ shares / shares.sum()
        ranking = sorted(zip(segmentation.classes, means.tolist()), key=lambda word_and_mean: -word_and_mean[1])
        return dict(ranking)

    def warnings(self, words: Words) -> list[str]:
        """Return warnings about words that are cut, or unknown to the model; they are logged too."""
        vocabulary = self.model.make_vocabulary(words)
        return self.model.embed_vocabulary.warnings(vocabulary.words, self.model.templates)

    # ------------------------------------------------------------------------------------------------- reading

    def _read_or_error(
        self, image: ImageLike | EncodedImage | OSError | ValueError, longest_side: int | None
    ) -> Reading | OSError | ValueError:
        if isinstance(image, (OSError, ValueError)):
            return image
        try:
            return self._read(image, longest_side)
        except (OSError, ValueError) as error:
            return error

    def _read(self, image: ImageLike | EncodedImage, longest_side: int | None) -> Reading:
        """Read an image, and resize it for the model and for the result."""
        if isinstance(image, EncodedImage):
            if image.model is not self.model:
                raise ValueError("The image was encoded by another predictor: encode it by the one that segments it.")
            pixels, inputs = image.pixels, dict(image.inputs)
        else:
            pixels = as_array(image)
            inputs = model_input(pixels, **image_settings(self.cfg))
            if isinstance(image, (str, Path)):
                inputs["file_name"] = str(image)

        if longest_side is not None:
            picture = Image.fromarray(pixels)
            picture.thumbnail((longest_side, longest_side))
            pixels = np.asarray(picture)
        inputs["height"], inputs["width"] = pixels.shape[:2]
        return Reading(image, pixels, inputs)


def _check_several(images: object) -> None:
    """Raise a ValueError for a single image, whose letters or rows are no images."""
    if isinstance(images, (str, Path, Image.Image)) or isinstance(images, np.ndarray) and images.ndim < 4:
        raise ValueError("'images' is a single image; expected several: give [image], or call the predictor itself.")


def _check_side(longest_side: int | None) -> None:
    if longest_side is not None:
        check_count("longest_side", longest_side, 1)


def _raise_error(result: Segmentation | OSError | ValueError) -> Segmentation:
    if isinstance(result, Exception):
        raise result
    return result


def _pretrained_config(name: str) -> CfgNode:
    if name in PRETRAINED:
        return load_config(PRETRAINED[name])
    if name.endswith((".yaml", ".yml")):
        return load_config(name)
    if Path(name).is_dir() or is_hub_name(name):
        return load_folder_config(name)
    raise ValueError(
        f"there is no model '{name}': expected {', '.join(PRETRAINED)}, a folder that tcl-d2 convert --hub "
        "wrote, OWNER/NAME on the Hugging Face hub, or a config file (.yaml)"
    )


def words_to_rank(words: ClassesLike) -> Words:
    """Read words without a background; the name of a registered benchmark stands for those of its classes.

    Raises:
        ValueError: there is no such benchmark, or the words are unusable.
    """
    if isinstance(words, str) and (words in DatasetCatalog.list() or _is_like_benchmark(words)):
        return Words(benchmark_classes(words)[0])
    return replace(Words.read(words), background=False)


def _is_like_benchmark(words: str) -> bool:
    return "_" in words[1:-1] and re.fullmatch(r"\w+", words) is not None  # in linear time
