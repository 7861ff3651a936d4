"""ImageTextDatasetMapper: turns a pair of image and caption into TCL's training input."""

import random
import re
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import SizeMismatchError, check_image_size
from PIL import Image
from torch import Tensor

from ...config.ranges import check_values
from ...utils.errors import expect, named
from ...utils.images import BrokenSample, read_image
from ...words.files import read_class_words
from ...words.templates import get_templates
from .nouns import NounPrompter

# Sections of a RandAugment policy: timm takes a key without a number and an unknown set of transforms in silence
_RAND_SECTION = re.compile(r"(m|n|p|mstd|mmax|inc)\d+(\.\d+)?|t(weights|3a|3aw)")


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
            crop_scale: least and greatest share of the area in a random crop; crop_ratio those of its width / height.
            rand_augment: RandAugment's policy in timm's notation; "" for none.
            erasing_prob: probability that a rectangle is erased: it becomes noise in normalized values.
            pixel_mean: of RGB in 0..255; so is pixel_std.
            prompt_nouns: draws prompts for a caption's nouns, for GroupViT's multi-label loss; None for none.

        Raises:
            ValueError: a number is out of its range, or the policy unknown; names the config key.
        """
        bounds = {"CROP_SCALE": crop_scale, "CROP_RATIO": crop_ratio}
        check_values("INPUT.IMAGE_TEXT", SIZE=size, FLIP_PROB=flip_prob, ERASING_PROB=erasing_prob, **bounds)
        for name, (least, greatest) in bounds.items():
            expect(least <= greatest, f"INPUT.IMAGE_TEXT.{name}", [least, greatest], "the smaller first")
        self.tokenizer, self.prompt_nouns, self.is_train = tokenizer, prompt_nouns, is_train

        # Transforms are in 0..1 and normalize; their results are brought back to 0..255
        mean, std = (tuple(value / 255 for value in values) for values in (pixel_mean, pixel_std))
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) * 255 for values in (mean, std))
        options = {"scale": tuple(crop_scale), "ratio": tuple(crop_ratio), "hflip": flip_prob, "re_prob": erasing_prob}
        self.transform = _build_transform(size, is_train, rand_augment, mean=mean, std=std, **options)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        from ...modeling.encoders.clip_loading import build_tokenizer

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
        caption = self._draw_caption(sample, name)
        pixels = self.transform(_read_image(sample, name)) * self.std + self.mean

        height, width = pixels.shape[1:]
        kept = {entry: value for entry, value in sample.items() if entry != "image_bytes"}
        mapped = {"image": pixels, "caption": caption, "tokens": self.tokenizer([caption])[0], "key": name}
        if self.prompt_nouns is not None:
            mapped["noun_tokens"] = self.tokenizer(self.prompt_nouns(caption))
        return {"height": height, "width": width, **kept, **mapped}

    def _draw_caption(self, sample: dict, name: str) -> str:
        captions = sample.get("captions")
        if not captions:
            raise BrokenSample("no caption", name)
        return read_caption(random.choice(captions) if self.is_train else captions[0], name)


def _read_image(sample: dict, name: str) -> Image.Image:
    image = read_image(sample.get("image_bytes") or sample.get("file_name", ""), name)
    try:
        check_image_size(dict(sample), np.asarray(image))
    except SizeMismatchError as error:
        raise BrokenSample("another size than the row says", name, error) from None
    return image


def _build_noun_prompter(multi_label: CfgNode) -> NounPrompter | None:
    """Build the prompter of MODEL.GROUPVIT.MULTI_LABEL, or None if it asks for none."""
    key = "MODEL.GROUPVIT.MULTI_LABEL"
    check_values(key, NUM_NOUNS=multi_label.NUM_NOUNS)
    if multi_label.NUM_NOUNS == 0:
        return None
    expected = "a file of the words that count as nouns, one a line, such as tcl_d2://words/ade20k.txt"
    expect(multi_label.WORDS, f"{key}.WORDS", "empty", expected)
    with named(f"{key}.WORDS"):
        words = [word for class_words in read_class_words(multi_label.WORDS) for word in class_words]
    return NounPrompter(words, multi_label.NUM_NOUNS, get_templates(multi_label.TEMPLATES))


def _build_transform(size: int, is_train: bool, rand_augment: str, **options) -> Callable:
    """Build timm's transform; ValueError for an unknown policy."""
    import timm.data  # not at the top of the file, because it takes longer to import than all the rest

    try:
        sections = rand_augment.split("-")[1:] if rand_augment.startswith("rand") else ()
        for section in sections:
            if not _RAND_SECTION.fullmatch(section):
                raise ValueError(f"unknown section '{section}'")
        create_transform = cast(Callable, timm.data.create_transform)  # whose hints leave out what it takes
        return create_transform(
            size,
            is_training=is_train,
            auto_augment=rand_augment or None,
            color_jitter=None,
            interpolation="bilinear",
            re_mode="pixel",
            crop_pct=1.0,
            **options,
        )
    except (AssertionError, ValueError, LookupError) as error:  # the numbers are checked, so it is the policy
        expected = "a policy in timm's notation, such as 'rand-m9-mstd0.5-inc1', or '' for none"
        raise ValueError(f"INPUT.IMAGE_TEXT.RAND_AUGMENT is '{rand_augment}' ({error}); expected {expected}.") from None
