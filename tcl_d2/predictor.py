"""From pictures and words to masks in a few lines."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from .checkpoint import TCLCheckpointer, fetch_weights
from .checkpoint.hub import is_hub_name, load_folder_config
from .config import check_device, check_meta_architecture, dense_head_config, load_config, merge_options
from .data.benchmark_mapper import model_input
from .modeling import DenseCLIP, FrozenCLIP
from .segmentation import Segmentation
from .utils.images import ImageLike, as_array
from .utils.resize import check_sizes
from .utils.words import BACKGROUND, NO_CLASS, as_lists, class_names, split_background_words, split_words

logger = logging.getLogger(__name__)
PRETRAINED = {"official": "eval/official.yaml", "shapes": "shapes/trained.yaml"}


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
        if self.cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            logger.warning("MODEL.DEVICE is %s, but torch finds no GPU here: on the CPU", self.cfg.MODEL.DEVICE)
            self.cfg.MODEL.DEVICE = "cpu"
        check_device(self.cfg.MODEL.DEVICE)
        if self.cfg.MODEL.META_ARCHITECTURE == "TCL" and not self.cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: the grounder of this TCL model is untrained")

        # Build the model, once its weights are there
        fetch_weights(self.cfg.MODEL.WEIGHTS)
        self.model: nn.Module = build_model(self.cfg).eval()
        TCLCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS)

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
        image: ImageLike | Sequence[ImageLike],
        classes: str | Sequence[str | Sequence[str]],
        background: bool | str | Sequence[str] = False,
        *,
        labels_only: bool = False,
        longest_side: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or each of a list of images.

        Args:
            image: path, PIL image, or array, see utils.images.as_array; or a list of them.
            classes: class words, without the background: a word or a list of words for each class, named by its first
                word; or one text, see split_words.
            background: whether pixels that no word fits well (TEST.ZERO_SHOT.BACKGROUND_SCORE) are background; or words
                of the background too, "sky, wall" or a list.
            labels_only: whether to go without the scores, which take 4 bytes for each class at each pixel.
            longest_side: limit of the result's sides, in pixels; None: the result is as large as the image. The model
                sees the image at its working size in any case.

        Returns:
            the segmentation; for a list, a list.

        Raises:
            ValueError: no image, an array of another shape or type, or unusable words; names it.
        """
        if isinstance(background, str):
            background = split_background_words(background) or False
        has_background = background is not False
        vocabulary = class_words(classes, has_background)
        if isinstance(image, (list, tuple)):
            options = {"labels_only": labels_only, "longest_side": longest_side}
            return [self(picture, vocabulary, background, **options) for picture in image]

        # Resize the image, for the model and for the result
        pixels = as_array(image)
        inputs = model_input(pixels, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        if longest_side is not None:
            pixels = _shrink(pixels, longest_side)
        inputs["height"], inputs["width"] = pixels.shape[:2]

        # Run the model
        inputs |= {"vocabulary": vocabulary, "background": background, "labels_only": labels_only}
        with torch.no_grad():
            output = self.model([inputs])[0]

        # Bring labels and scores to the CPU
        scores = None if labels_only else output["sem_seg"].float().cpu()
        labels = output["sem_seg_labels"].cpu() if labels_only else scores.argmax(0)
        names = class_names(vocabulary)
        if has_background:
            names = [BACKGROUND, *names]
        elif self.model.filler_words:
            names = [*names, NO_CLASS]
        return Segmentation(pixels, names, labels.numpy(), has_background, scores)


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


def class_words(classes: str | Sequence[str | Sequence[str]], background: bool = False) -> list[str | list[str]]:
    """Return class words as a vocabulary.

    Args:
        classes: a word or a list of words for each class; or one text, see split_words.
        background: whether the background is a class besides.

    Raises:
        ValueError: one of the words is "background", and there is a background besides.
    """
    vocabulary = split_words(classes) if isinstance(classes, str) else list(classes)
    if background and any(BACKGROUND in words for words in as_lists(vocabulary)):
        raise ValueError(
            f"'{BACKGROUND}' is one of the class words, and the background comes before them as a class of that name: "
            "leave the word out, or go without the background."
        )
    return vocabulary


def _shrink(image: np.ndarray, longest_side: int) -> np.ndarray:
    """Shrink [H, W, 3] until no side is longer than `longest_side`; leave a smaller image as it is."""
    if longest_side < 1:
        raise ValueError(f"longest_side is {longest_side}; expected at least 1 pixel.")
    picture = Image.fromarray(image)
    picture.thumbnail((longest_side, longest_side))
    return np.asarray(picture)
