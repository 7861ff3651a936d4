"""ImageTextDatasetMapper: turns a pair of image and caption into TCL's training input."""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import SizeMismatchError, check_image_size
from torch import Tensor
from torchvision import transforms

from ..modeling.templates import get_templates
from ..utils.images import BrokenSample, read_image
from .class_words import read_class_words
from .nouns import NounPrompter


def read_caption(text: str | bytes, name: str) -> str:
    """Return a caption as text; BrokenSample if it is blank or not UTF-8."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        text.encode()  # bytes of a list file that are not UTF-8 have become surrogates
    except (UnicodeError, AttributeError) as error:
        raise BrokenSample("caption is no UTF-8 text", name, error) from None
    if not text.strip():
        raise BrokenSample("empty caption", name)
    return text


def _check_augmentation(
    size: int, crop_scale: Sequence[float], crop_ratio: Sequence[float], flip_prob: float, erasing_prob: float
) -> None:
    """Raise a ValueError that names the config key of the first value out of range."""
    if size < 1:
        raise ValueError(f"INPUT.IMAGE_TEXT.SIZE is {size}; expected at least 1 pixel.")

    for key, bounds in (("CROP_SCALE", crop_scale), ("CROP_RATIO", crop_ratio)):
        are_numbers = len(bounds) == 2 and all(isinstance(bound, (int, float)) for bound in bounds)
        if not (are_numbers and 0 < bounds[0] <= bounds[1] < math.inf):
            raise ValueError(f"INPUT.IMAGE_TEXT.{key} is {bounds}; expected two positive numbers, the smaller first.")

    for key, probability in (("FLIP_PROB", flip_prob), ("ERASING_PROB", erasing_prob)):
        if not 0 <= probability <= 1:
            raise ValueError(f"INPUT.IMAGE_TEXT.{key} is {probability}; expected a probability, 0 to 1.")


class ImageTextDatasetMapper:
    """Reads, augments and tokenizes a pair."""

    @configurable
    def __init__(
        self,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        is_train: bool = True,
        size: int = 224,
        crop_scale: Sequence[float] = (0.08, 1.0),
        crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip_prob: float = 0.5,
        rand_augment: str = "rand-m9-mstd0.5-inc1",
        erasing_prob: float = 0.25,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        prompt_nouns: NounPrompter | None = None,
    ):
        """Build the augmentation.

        Args:
            tokenizer: N texts -> int64 [N, context].
            is_train: augment, and draw one of several captions; otherwise center crop and first caption.
            size: side of the square result, in pixels.
            crop_scale: least and greatest share of the area in a random crop.
            crop_ratio: least and greatest width / height of the crop.
            rand_augment: RandAugment's policy in timm's notation; "" for none.
            erasing_prob: probability that a rectangle is erased: it becomes noise in normalized values.
            pixel_mean: of RGB in 0..255; so is pixel_std.
            prompt_nouns: draws prompts for a caption's nouns, for GroupViT's multi-label loss; None for none.

        Raises:
            ValueError: a number is out of its range, or the policy unknown; names the config key.
        """
        _check_augmentation(size, crop_scale, crop_ratio, flip_prob, erasing_prob)
        self.tokenizer = tokenizer
        self.prompt_nouns = prompt_nouns
        self.is_train = is_train

        # Transforms are in 0..1 and normalize; their results are brought back to 0..255
        mean = tuple(value / 255 for value in pixel_mean)
        std = tuple(value / 255 for value in pixel_std)
        self.mean = torch.tensor(mean).view(3, 1, 1) * 255
        self.std = torch.tensor(std).view(3, 1, 1) * 255

        if is_train:
            self.transform = _build_augmentation(
                rand_augment,
                input_size=size,
                scale=tuple(crop_scale),
                ratio=tuple(crop_ratio),
                hflip=flip_prob,
                re_prob=erasing_prob,
                mean=mean,
                std=std,
            )
        else:
            resize = transforms.Resize(size, transforms.InterpolationMode.BILINEAR)
            crop = transforms.CenterCrop(size)
            self.transform = transforms.Compose([resize, crop, transforms.ToTensor(), transforms.Normalize(mean, std)])

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        from ..modeling.clip_loading import build_tokenizer

        image_text = cfg.INPUT.IMAGE_TEXT
        return {
            "tokenizer": build_tokenizer(cfg.MODEL.CLIP.NAME),
            "is_train": is_train,
            "size": image_text.SIZE,
            "crop_scale": image_text.CROP_SCALE,
            "crop_ratio": image_text.CROP_RATIO,
            "flip_prob": image_text.FLIP_PROB,
            "rand_augment": image_text.RAND_AUGMENT,
            "erasing_prob": image_text.ERASING_PROB,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "prompt_nouns": _build_noun_prompter(cfg.MODEL.GROUPVIT.MULTI_LABEL),
        }

    def __call__(self, sample: dict) -> dict:
        """Turn a pair into the model's training input.

        Args:
            sample: `image_bytes` (the image file's content) or `file_name`; `captions`, a list of texts (str) or UTF-8
                bytes; and optionally `key`, its name for messages.

        Returns:
            the pair without `image_bytes`, and with these:

                image: fp32 [3, size, size], RGB, 0..255, not normalized. Erased pixels may lie outside the range.
                height, width: size of `image`, unless the pair has its own: Detectron2's loaders group by them.
                caption: the drawn caption (str).
                tokens: its tokens, int64 [context].
                noun_tokens: tokens of its prompted nouns, int64 [K, context], if there is a `prompt_nouns`.
                key: name of the pair (str).

        Raises:
            BrokenSample: the image or the caption cannot be used, or the image has another size than the pair says.
            ValueError: a shard of many pairs was given.
        """
        if "shard" in sample:
            raise ValueError(
                f"{sample['shard']} is a shard of many pairs, which build_image_text_train_loader reads: Detectron2's "
                "own loaders take datasets with a row for each image (see register_caption_list)."
            )
        name = sample.get("key") or sample.get("file_name", "")

        # Draw a caption
        captions = sample.get("captions")
        if not captions:
            raise BrokenSample("no caption", name)
        caption = read_caption(random.choice(captions) if self.is_train else captions[0], name)

        # Read and augment the image
        image = read_image(sample.get("image_bytes") or sample.get("file_name", ""), name)
        try:
            check_image_size(dict(sample), np.asarray(image))
        except SizeMismatchError as error:
            raise BrokenSample("another size than the row says", name, error) from None
        pixels = self.transform(image) * self.std + self.mean

        # Keep what came with the pair
        height, width = pixels.shape[1:]
        kept = {entry: value for entry, value in sample.items() if entry != "image_bytes"}
        mapped = {"image": pixels, "caption": caption, "tokens": self.tokenizer([caption])[0], "key": name}
        if self.prompt_nouns is not None:
            mapped["noun_tokens"] = self.tokenizer(self.prompt_nouns(caption))
        return {"height": height, "width": width, **kept, **mapped}


def _build_noun_prompter(multi_label: CfgNode) -> NounPrompter | None:
    """Build the prompter of MODEL.GROUPVIT.MULTI_LABEL, or None if it asks for none."""
    if multi_label.NUM_NOUNS < 0:
        raise ValueError(f"MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS is {multi_label.NUM_NOUNS}; expected 0 or more.")
    if multi_label.NUM_NOUNS == 0:
        return None
    if not multi_label.WORDS:
        raise ValueError(
            "MODEL.GROUPVIT.MULTI_LABEL.WORDS is empty; expected a file of the words that count as nouns, one a line, "
            "such as tcl_d2://words/ade20k.txt."
        )
    try:
        words = [word for class_words in read_class_words(multi_label.WORDS) for word in class_words]
    except (OSError, ValueError) as error:
        raise type(error)(f"MODEL.GROUPVIT.MULTI_LABEL.WORDS: {error}") from None
    return NounPrompter(words, multi_label.NUM_NOUNS, get_templates(multi_label.TEMPLATES))


def _build_augmentation(rand_augment: str, **options) -> Callable:
    """Build timm's training transform; ValueError for an unknown policy."""
    import timm.data  # not at the top of the file, because it takes longer to import than all the rest

    try:
        return timm.data.create_transform(
            is_training=True,
            auto_augment=rand_augment or None,
            color_jitter=None,
            interpolation="bilinear",
            re_mode="pixel",
            **options,
        )
    except (AssertionError, ValueError, LookupError) as error:  # the numbers are checked, so it is the policy
        raise ValueError(
            f"INPUT.IMAGE_TEXT.RAND_AUGMENT is '{rand_augment}', no policy in timm's notation ({error}); "
            "expected one such as 'rand-m9-mstd0.5-inc1', or '' for none."
        ) from None
