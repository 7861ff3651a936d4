"""ImageTextDatasetMapper: a pair of image and caption becomes what TCL trains on."""

import math
import random
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torchvision import transforms

from .images import BrokenSample, read_image


def read_caption(text: str | bytes, name: str) -> str:
    """A caption as text; BrokenSample if it is blank or not UTF-8."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        text.encode()  # a list file's undecodable bytes are surrogates here
    except (UnicodeError, AttributeError) as error:
        raise BrokenSample("caption is no UTF-8 text", name, error) from None
    if not text.strip():
        raise BrokenSample("empty caption", name)
    return text


def _check_augmentation(
    size: int, crop_scale: Sequence[float], crop_ratio: Sequence[float], flip: float, erasing: float
) -> None:
    """Raise a ValueError that names the config key of the first value that is out of its range."""
    if size < 1:
        raise ValueError(f"INPUT.IMAGE_TEXT.SIZE is {size}; expected at least 1 pixel.")
    for key, bounds in (("CROP_SCALE", crop_scale), ("CROP_RATIO", crop_ratio)):
        are_numbers = len(bounds) == 2 and all(isinstance(bound, (int, float)) for bound in bounds)
        if not (are_numbers and 0 < bounds[0] <= bounds[1] < math.inf):
            raise ValueError(f"INPUT.IMAGE_TEXT.{key} is {bounds}; expected two positive numbers, the smaller first.")
    for key, probability in (("FLIP", flip), ("ERASING", erasing)):
        if not 0 <= probability <= 1:
            raise ValueError(f"INPUT.IMAGE_TEXT.{key} is {probability}; expected a probability, 0 to 1.")


class ImageTextDatasetMapper:
    """Reads, augments and tokenises one pair."""

    @configurable
    def __init__(
        self,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        is_train: bool = True,
        size: int = 224,
        crop_scale: Sequence[float] = (0.08, 1.0),
        crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        rand_augment: str = "rand-m9-mstd0.5-inc1",
        erasing: float = 0.25,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ):
        """
        Args:
            tokenizer: N texts -> int64 [N, context].
            is_train: augment, and draw one of several captions; otherwise centre crop and first caption.
            size: side of the square result in pixels.
            crop_scale, crop_ratio: of the random resized crop: share of the area, width / height.
            flip, erasing: probabilities. rand_augment: timm's notation, "" for none.
            pixel_mean, pixel_std: of RGB in 0..255: erased pixels are noise in normalised values, as officially.

        Raises:
            ValueError: a number is out of its range, or the policy unknown; names the config key.
        """
        import timm.data  # here, for it takes longer to import than all the rest

        _check_augmentation(size, crop_scale, crop_ratio, flip, erasing)
        self.tokenizer = tokenizer
        self.is_train = is_train
        mean, std = (tuple(value / 255 for value in values) for values in (pixel_mean, pixel_std))
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (mean, std))
        if is_train:
            try:
                self.transform = timm.data.create_transform(
                    size,
                    is_training=True,
                    scale=tuple(crop_scale),
                    ratio=tuple(crop_ratio),
                    hflip=flip,
                    auto_augment=rand_augment or None,
                    color_jitter=None,
                    interpolation="bilinear",
                    re_prob=erasing,
                    re_mode="pixel",
                    mean=mean,
                    std=std,
                )
            except (AssertionError, ValueError, LookupError) as error:  # the numbers are checked: the policy is left
                raise ValueError(
                    f"INPUT.IMAGE_TEXT.RAND_AUGMENT is '{rand_augment}', no policy in timm's notation ({error}); "
                    "expected one such as 'rand-m9-mstd0.5-inc1', or '' for none."
                ) from None
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
            "flip": image_text.FLIP_PROB,
            "rand_augment": image_text.RAND_AUGMENT,
            "erasing": image_text.ERASING_PROB,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def __call__(self, sample: dict) -> dict:
        """
        Args:
            sample: `file_name` or `image_bytes`; `captions`, a list of texts or UTF-8 bytes; optionally `key`, a name.

        Returns:
            `image` fp32 [3, size, size], RGB, 0..255 (erased pixels may lie outside), not normalised; `caption`;
            `tokens` int64 [context]; `key`.

        Raises:
            BrokenSample: the image or the caption cannot be used.
        """
        name = sample.get("key") or sample.get("file_name", "")
        captions = sample.get("captions")
        if not captions:
            raise BrokenSample("no caption", name)
        caption = read_caption(random.choice(captions) if self.is_train else captions[0], name)
        image = read_image(sample.get("image_bytes") or sample.get("file_name", ""), name)
        pixels = self.transform(image) * self.std + self.mean
        return {"image": pixels, "caption": caption, "tokens": self.tokenizer([caption])[0], "key": name}
