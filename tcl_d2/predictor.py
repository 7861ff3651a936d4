"""From pictures and words to masks in a few lines."""

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .checkpoint import TCLCheckpointer, fetch_weights, warn_if_untrained
from .checkpoint.hub import is_hub_name, load_folder_config
from .config import check_device, check_meta_architecture, dense_head_config, load_config, merge_options, num_devices
from .data.benchmarks import benchmark_classes, model_input
from .image_stream import Reading, Request, segment_stream
from .modeling import DenseCLIP, FrozenCLIP
from .segmentation import Segmentation
from .utils.images import ImageLike, as_array
from .utils.numbers import check_count
from .utils.regions import as_mask
from .utils.resize import check_sizes
from .utils.specificity import at_specificity
from .utils.threads import map_ahead
from .utils.vocabulary import read_vocabulary

logger = logging.getLogger(__name__)
PRETRAINED = {"official": "eval/official.yaml", "shapes": "shapes/trained.yaml"}
_RANKING_SIDE = 256  # longest side at which words are ranked, in pixels: that of the scores of a thousand words


@dataclass(frozen=True)
class EncodedImage:
    """An image for many requests of one predictor, made by its `encode`: its features are computed once.

    They are there from the first request on, as long as this is held: some 40 MB for each window of 448 pixels of a
    TCL on ViT-B/16. They hold for the predictor's settings at that time.

    Attributes:
        pixels: RGB uint8 [H, W, 3], of the results' size.
        inputs: what the model takes of the image, with the features.
        model: that of the predictor.
    """

    pixels: np.ndarray
    inputs: dict
    model: nn.Module

    def __getstate__(self) -> dict:
        raise TypeError(
            "An encoded image belongs to its predictor, and is not pickled or copied: send the picture, and encode it "
            "where it arrives."
        )


class TCLPredictor:
    """Segmenter of pictures into any words, with a model that is built once.

    predictor = TCLPredictor("configs/shapes/trained.yaml")
    segmentation = predictor("photo.jpg", ["red apple", "wooden table"], background=True)
    segmentation.labels, segmentation.areas(), segmentation.mask("red apple")
    """

    def __init__(self, config: CfgNode | str | Path, *options: object):
        """Build the model with the weights of MODEL.WEIGHTS on MODEL.DEVICE, or on the CPU where there is no GPU.

        Args:
            config: a configuration, or the path of its file; configs/shapes/trained.yaml is a model that comes with
                the project.
            options: KEY, VALUE pairs over the values of the configuration.

        Raises:
            FileNotFoundError, KeyError, ValueError: a file is missing, a key is unknown, a value does not fit, or the
                weights cannot be read.
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
        check_sizes(self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
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
    def model(self) -> nn.Module:
        """The model; one that is set may be under DistributedDataParallel or DataParallel."""
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else model

    @classmethod
    def from_pretrained(cls, name: str | Path, *options: object) -> "TCLPredictor":
        """Build the predictor of a trained model.

        Args:
            name: "official" (the checkpoint of TCL's authors, downloaded once), "shapes" (the small world's, which
                comes with the project), OWNER/NAME of a model on the Hugging Face hub, a folder as
                tcl-d2 convert --hub writes it, or a configuration.
            options: KEY, VALUE pairs over the values of the configuration.

        Raises:
            FileNotFoundError, KeyError, OSError, ValueError: there is no such model, it cannot be downloaded, or see
                __init__.
        """
        return cls(_pretrained_config(str(name)), *options)

    def with_dense_head(self, name: str) -> "TCLPredictor":
        """Return a predictor by a method without training: this one's CLIP, with another last block.

        Both share the CLIP, which is in memory once. The options that this predictor was built with stand over the
        method's settings.

        Args:
            name: clip, maskclip, sclip, clearclip, naclip, proxyclip, or a name of your own in DENSE_HEAD_REGISTRY.

        Raises:
            OSError, ValueError: there is no such method, or it cannot be built, such as ProxyCLIP without the weights
                of its vision model; or this model, such as a GroupViT, has no CLIP.
        """
        if not isinstance(self.model.clip, FrozenCLIP):
            raise ValueError(f"the method '{name}' needs a CLIP, which a {type(self.model).__name__} has not")
        predictor = copy.copy(self)
        predictor.cfg = dense_head_config(self.cfg, name, self.options)
        predictor.model = DenseCLIP(predictor.cfg, clip=self.model.clip).to(self.model.device).eval()
        return predictor

    def __call__(
        self,
        image: ImageLike | EncodedImage | Sequence[ImageLike],
        classes: str | Sequence[str | Sequence[str]],
        background: bool | str | Sequence[str] = False,
        *,
        negative: str | Sequence[str] = (),
        labels_only: bool = False,
        label_scores: bool = False,
        longest_side: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or each of a list of images.

        Args:
            image: path, PIL image, or array, see utils.images.as_array; or a list of them, see `stream`; or what
                `encode` gives of one, for many requests.
            classes: class words, without the background: a word or a list of words for each class, named by its first
                word; or one text, see split_words. Entries such as "not: shadow" are negative words.
            background: whether pixels that no word fits well (TEST.ZERO_SHOT.BACKGROUND_SCORE) are background; or words
                of the background too, "sky, wall" or a list. None and empty words are no background.
            negative: words that take pixels away, "shadow, tree" or a list: pixels that they fit best belong to no
                class. They are the last class of the result, "not: shadow", which its pictures leave as it is.
            labels_only: whether to go without the scores, which take 4 bytes for each class at each pixel.
            label_scores: whether to give the score of each pixel's class, of which Segmentation.instances makes objects
                without all scores.
            longest_side: limit of the result's sides, in pixels; None: the result is as large as the image. The model
                sees the image at its working size in any case.

        Returns:
            the segmentation; for a list, a list.

        Raises:
            ValueError: no image, an array of another shape or type, or unusable words; names it.
        """
        is_list = isinstance(image, (list, tuple))
        images = image if is_list else [image]
        options = {"negative": negative, "labels_only": labels_only, "label_scores": label_scores}
        options["longest_side"] = longest_side
        num_workers = None if is_list else 0
        segmentations = list(self.stream(images, classes, background, **options, num_workers=num_workers))
        return segmentations if is_list else segmentations[0]

    def stream(
        self,
        images: Iterable[ImageLike],
        classes: str | Sequence[str | Sequence[str]],
        background: bool | str | Sequence[str] = False,
        *,
        negative: str | Sequence[str] = (),
        labels_only: bool = False,
        label_scores: bool = False,
        longest_side: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[Segmentation | OSError | ValueError]:
        """Segment images of any sizes in batches, while the next ones are read in threads; yield results in order.

        Few images are held at once, so that there may be any number of them. Labels are those of one image at a time;
        scores differ in the last bit, for a matrix product of several images may be summed up in another order.

        Args:
            images: paths, PIL images or arrays; may be a generator.
            classes: see __call__.
            background: see __call__.
            negative: see __call__.
            labels_only: see __call__.
            label_scores: see __call__.
            longest_side: see __call__.
            batch_size: greatest number of images in a batch, as large images make smaller ones; None for
                TEST.ZERO_SHOT.IMS_PER_BATCH.
            num_workers: number of threads that read images; None for DATALOADER.NUM_WORKERS; 0 for the calling one.
            return_exceptions: whether to yield the error of an image that cannot be read, or that memory is too small
                for, rather than to raise it.

        Returns:
            an iterator over the segmentations.

        Raises:
            ValueError: a single image, unusable words, or a number out of its range, at once; an image that cannot be
                read, in turn.
        """
        # Check the request
        if isinstance(images, (str, Path, Image.Image)) or isinstance(images, np.ndarray) and images.ndim < 4:
            raise ValueError(
                "'images' is a single image; expected several: give [image], or call the predictor itself."
            )
        batch_size = self.cfg.TEST.ZERO_SHOT.IMS_PER_BATCH if batch_size is None else batch_size
        num_workers = self.cfg.DATALOADER.NUM_WORKERS if num_workers is None else num_workers
        check_count("batch_size", batch_size, 1)
        check_count("num_workers", num_workers, 0)
        if longest_side is not None:
            check_count("longest_side", longest_side, 1)
        vocabulary, background, negative = self._read_words(classes, background, negative)
        request = Request(vocabulary, background, negative, labels_only, label_scores and labels_only)

        # Read, batch and segment, as results are taken
        readings = map_ahead(partial(self._read_or_error, longest_side=longest_side), images, num_workers)
        results = segment_stream(self.model, readings, request, batch_size)
        return results if return_exceptions else map(_raise_error, results)

    # ------------------------------------------------------------------------------------------------- interactive

    def encode(self, image: ImageLike, longest_side: int | None = None) -> EncodedImage:
        """Read an image for many requests, which then take a part of the time: its features are computed once.

        Args:
            image: see __call__.
            longest_side: see __call__; results may have smaller sides still.

        Raises:
            ValueError: the image cannot be read, or longest_side is out of its range.
        """
        if longest_side is not None:
            check_count("longest_side", longest_side, 1)
        reading = self._read(image, longest_side)
        return EncodedImage(reading.pixels, {**reading.inputs, "kept_crops": []}, self.model)

    def rank_words(
        self,
        image: ImageLike | EncodedImage,
        region: np.ndarray | tuple[int, int],
        words: str | Sequence[str | Sequence[str]],
    ) -> dict[str, float]:
        """Rank words by how well they fit a region of an image.

        A word's score is the mean over the region of its scores in a segmentation into all these words, without a
        background. With TCL these are masks in 0..1, made of the cosines of pixels and word; with dense CLIPs that have
        a softmax, probabilities among these words. A class of several words has the best of them at each pixel.

        Args:
            image: see __call__.
            region: mask bool [H, W] of the image's size (of an encoded image's `pixels`), see Segmentation.region; or
                a point (x, y) in pixels.
            words: as __call__ takes classes; or the name of a registered benchmark, for the words of its classes.

        Returns:
            the score of each word, the best first.

        Raises:
            ValueError: a mask of another size or without pixels, a point outside the image, unusable words, or a
                benchmark that there is not.
        """
        classes = words_to_rank(words)
        encoded = image if isinstance(image, EncodedImage) else self.encode(image)
        mask = torch.from_numpy(as_mask(region, encoded.pixels.shape[:2])).float()
        segmentation = self(encoded, classes, longest_side=_RANKING_SIDE)

        # Average over the share that each pixel of the smaller scores has of the region
        scores = torch.as_tensor(segmentation.scores)
        shares = F.interpolate(mask[None, None], scores.shape[1:], mode="area").flatten()
        means = scores.flatten(1) @ shares / shares.sum()
        ranking = sorted(zip(segmentation.classes, means.tolist()), key=lambda word_and_mean: -word_and_mean[1])
        return dict(ranking)

    def warnings(
        self,
        classes: str | Sequence[str | Sequence[str]],
        background: bool | str | Sequence[str] = False,
        negative: str | Sequence[str] = (),
    ) -> list[str]:
        """Return what a user should know of words: which are cut, or unknown to the model. The log has it too.

        Arguments and errors as those of __call__.
        """
        vocabulary = self.model.make_vocabulary(classes, background, negative)
        return self.model.embed_vocabulary.warnings(vocabulary.words, self.model.templates)

    # ------------------------------------------------------------------------------------------------- reading

    def _read_words(
        self,
        classes: str | Sequence[str | Sequence[str]],
        background: bool | str | Sequence[str],
        negative: str | Sequence[str],
    ) -> tuple[list[str | list[str]], bool | list[str], list[str]]:
        """Return the vocabulary, the background and the negative words that a user means; errors as __call__'s."""
        words = read_vocabulary(classes, background, negative)
        self.model.make_vocabulary(*words)  # says what does not work
        return words

    def _read_or_error(
        self, image: ImageLike | EncodedImage, longest_side: int | None
    ) -> Reading | OSError | ValueError:
        """Return an image that was read, or the error with which that failed."""
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
            inputs = model_input(pixels, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)

        if longest_side is not None:
            pixels = _shrink(pixels, longest_side)
        inputs["height"], inputs["width"] = pixels.shape[:2]
        return Reading(image, pixels, inputs)


def _raise_error(result: Segmentation | Exception) -> Segmentation:
    if isinstance(result, Exception):
        raise result
    return result


def _pretrained_config(name: str) -> CfgNode:
    """Return the configuration of a trained model; `name` as from_pretrained takes it."""
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


def words_to_rank(words: str | Sequence[str | Sequence[str]]) -> list[str | list[str]]:
    """Return words as a vocabulary; of what is the name of a benchmark, or is written like one, those of its classes.

    Args:
        words: see at_specificity; or the name of a registered benchmark.

    Raises:
        ValueError: there is no such benchmark; or see at_specificity.
    """
    if isinstance(words, str) and (words in DatasetCatalog.list() or _is_like_benchmark(words)):
        classes, _ = benchmark_classes(words)
        return classes
    return at_specificity(words)


def _is_like_benchmark(words: str) -> bool:
    return "_" in words[1:-1] and re.fullmatch(r"\w+", words) is not None  # in linear time


def _shrink(image: np.ndarray, longest_side: int) -> np.ndarray:
    """Shrink [H, W, 3] until no side is longer than `longest_side`; leave a smaller image as it is."""
    picture = Image.fromarray(image)
    picture.thumbnail((longest_side, longest_side))
    return np.asarray(picture)
