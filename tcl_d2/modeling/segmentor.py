"""Zero-shot segmentation on a frozen CLIP: words, windows and background, for any way to make masks."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from .clip import FrozenCLIP, build_clip, build_tokenizer
from .grounder import normalize
from .refine import PAMR
from .score_rules import AllScores, ClassSubset, RunningArgmax
from .text import TextEmbedder, check_templates, dataset_vocabulary
from .window import Windows, pad_to_multiple

logger = logging.getLogger(__name__)
# Bounds of the scores that are held at once, for vocabularies of thousands of words and for large images.
_CLASSES_AT_ONCE = 64
_SCORE_BYTES_AT_ONCE = 256 * 2**20


class Encoded(NamedTuple):
    """What is computed of a batch of images once, for any classes."""

    images: Tensor  # normalised, [B, 3, H, W]
    clip_features: Tensor | None  # CLIP's own of each patch, normalised, [B, D, h, w]
    embedding: Tensor | None = None  # the grounder's pixel embeddings, [B, D, h', w']


class ZeroShotSegmentor(nn.Module):
    """Segments images into the classes of a vocabulary: windows, text embeddings and background, on a frozen CLIP.

    A subclass says in `encode` and `masks` how images and text embeddings become masks.
    """

    @configurable
    def __init__(
        self,
        *,
        clip: FrozenCLIP,
        tokenizer: Callable[[list[str]], Tensor],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        templates: Sequence[str],
        crop: int,
        stride: int,
        background_score: float,
        pamr: PAMR | None = None,
        precision: torch.dtype = torch.float32,
        text_cache: Path | None = None,
        mask_shift: float = 0.25,
        mask_scale: float = 10.0,
    ):
        """
        Args:
            tokenizer: N texts -> int64 [N, context].
            pixel_mean, pixel_std: of RGB in 0..255.
            templates: prompt templates, each with one `{}`, used where a vocabulary comes without.
            crop, stride: sliding window, in pixels.
            background_score: constant score of the background, in 0..1, where there is one.
            pamr: refinement of masks; None for none.
            precision: of autocast in inference; torch.float32 for none.
            text_cache: folder that keeps text embeddings; None for none.
            mask_shift, mask_scale: masks from CLIP's dense similarities s are sigmoid((s - shift) * scale).

        Raises:
            ValueError: a number out of its range, or unusable templates; names the config key.
        """
        super().__init__()
        if crop < 1:
            raise ValueError(f"TEST.ZERO_SHOT.CROP must be at least 1 pixel, not {crop}.")
        if not 1 <= stride <= crop:
            raise ValueError(f"TEST.ZERO_SHOT.STRIDE must be in 1..{crop} (TEST.ZERO_SHOT.CROP), not {stride}.")
        if not 0 <= background_score <= 1:
            raise ValueError(f"TEST.ZERO_SHOT.BACKGROUND is a score in 0..1, not {background_score}.")

        self.clip = clip
        self.tokenizer = tokenizer
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.embed_vocabulary = TextEmbedder(clip, tokenizer, text_cache)
        self.register_load_state_dict_post_hook(_forget_embeddings)
        self.templates = check_templates(templates)
        self.crop = crop
        self.stride = stride
        self.background_score = background_score
        self.pamr = pamr
        self.precision = precision
        self.mask_shift = mask_shift
        self.mask_scale = mask_scale
        self._windows_at_once = 8
        self._average_on_cpu = False
        self._text: Tensor | None = None
        self._subsets: list[ClassSubset] = []

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        test = cfg.TEST.ZERO_SHOT
        return {
            "clip": FrozenCLIP(build_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED)),
            "tokenizer": build_tokenizer(cfg.MODEL.CLIP.NAME),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "templates": test.TEMPLATES,
            "crop": test.CROP,
            "stride": test.STRIDE,
            "background_score": test.BACKGROUND,
            "pamr": PAMR(test.PAMR.ITERS, test.PAMR.DILATIONS) if test.PAMR.ENABLED else None,
            "precision": _precision(test.PRECISION, cfg.MODEL.DEVICE),
            "text_cache": Path(test.TEXT_CACHE).expanduser() if test.TEXT_CACHE else None,
            "mask_shift": cfg.MODEL.CLIP.MASK_SHIFT,
            "mask_scale": cfg.MODEL.CLIP.MASK_SCALE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def encode(self, images: Tensor) -> Encoded:
        """Of normalised images [B, 3, H, W] of whole patches, what does not depend on the classes."""
        raise NotImplementedError

    def masks(self, encoded: Encoded, text: Tensor) -> Tensor:
        """Masks in 0..1 [B, K, h, w] for text embeddings [K, D]; a class's mask does not depend on the others."""
        raise NotImplementedError

    def set_vocabulary(
        self, names: Sequence[str], background: bool = False, templates: Sequence[str] | None = None
    ) -> None:
        """Sets the classes that images without a vocabulary of their own are segmented into.

        Args:
            names: class words, without the background; ValueError if empty, blank or double.
            background: whether a background, at the constant score, comes before them.
            templates: prompt templates; None for the model's.
        """
        self.set_text_embeddings(self.embed_vocabulary(names, templates or self.templates), background)

    def set_dataset(self, *names: str) -> None:
        """Sets the classes of a registered data set: its `stuff_classes`, of which the first may be the background.

        Of several data sets, to segment their common images once: masks are made for each of their words once.
        """
        words, subsets = {}, []
        for name in names:
            classes, background = dataset_vocabulary(name)
            indices = [words.setdefault(word, len(words)) for word in classes]
            subsets.append(ClassSubset(torch.tensor(indices), background))
        self.set_vocabulary(list(words))
        self._subsets = subsets

    def set_text_embeddings(self, embeddings: Tensor, background: bool = False) -> None:
        """The same from embeddings [K, D], of any lengths; ValueError for another shape."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.clip.embed_dim:
            raise ValueError(f"Text embeddings must be [K, {self.clip.embed_dim}], not {list(embeddings.shape)}.")
        self._text = embeddings.detach().to(self.device)
        self._subsets = [ClassSubset(torch.arange(len(embeddings)), background)]

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's inference format.

        Args:
            batched_inputs: a dict an image: `image` [3, H, W], RGB, 0..255, already at the size at which windows are
                taken; `height`, `width` of the result (default: the image's); optionally `vocabulary` (class words)
                and `background` (bool), in place of those set before, and `labels_only` (bool).

        Returns:
            a dict an image: `sem_seg`, scores fp32 [K, height, width], background first where there is one; or where
            `labels_only` is true `sem_seg_labels`, their argmax int64 [height, width], without holding all scores.
            Where several data sets were set, `by_dataset`, a list of such dicts.
        """
        if torch.jit.is_tracing():
            raise RuntimeError(
                f"{type(self).__name__} cannot be traced: the windows of the traced image's size would stand for those "
                "of every image. Trace the masks of one crop instead: encode_crops and crop_masks."
            )
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            return [self._segment_in_memory(input_per_image) for input_per_image in batched_inputs]

    def _segment_in_memory(self, input_per_image: dict) -> dict:
        """_segment_image; where memory runs out, again with fewer windows at once, at last with averages on the CPU."""
        while True:
            try:
                return self._segment_image(input_per_image)
            except torch.OutOfMemoryError:
                if self._average_on_cpu:
                    raise
            torch.cuda.empty_cache()
            self._average_on_cpu = self._windows_at_once == 1
            self._windows_at_once = max(1, self._windows_at_once // 2)
            how = "averages on the CPU" if self._average_on_cpu else f"{self._windows_at_once} windows at once"
            logger.warning(
                "Memory ran out for an image of %s; from now on %s: slower, same masks",
                [*input_per_image["image"].shape[1:]],
                how,
            )

    @torch.no_grad()
    def _segment_image(self, input_per_image: dict) -> dict:
        text, subsets = self._classes(input_per_image)
        image = self.normalize_images([input_per_image["image"]])[0]
        size = (input_per_image.get("height", image.shape[1]), input_per_image.get("width", image.shape[2]))

        rule = RunningArgmax if input_per_image.get("labels_only", False) else AllScores
        rules = [rule(subset, self.background_score) for subset in subsets]
        for scores in self._score(image, text, size):
            for rule_per_dataset in rules:
                rule_per_dataset.update(scores)

        outputs = [rule_per_dataset.output() for rule_per_dataset in rules]
        return outputs[0] if len(outputs) == 1 else {"by_dataset": outputs}

    def _score(self, image: Tensor, text: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """Yield scores [k, *size] of a normalised image for one part of the classes [K, D] after the other."""
        windows = Windows(image, self.crop, self.stride)
        encoded = map(self.encode_crops, windows.batches(self._windows_at_once))

        # Crops are encoded once, and held where the classes come in several parts.
        bytes_per_class = 4 * max(size[0] * size[1], image.shape[1] * image.shape[2])
        classes_at_once = max(1, min(_CLASSES_AT_ONCE, _SCORE_BYTES_AT_ONCE // bytes_per_class))
        if len(text) > classes_at_once:
            encoded = list(encoded)

        for part in text.split(classes_at_once):
            masks = (self.crop_masks(*crops, part) for crops in encoded)
            scores = windows.average(chunk.cpu() if self._average_on_cpu else chunk for chunk in masks)
            yield F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]

    def _classes(self, input_per_image: dict) -> tuple[Tensor, list[ClassSubset]]:
        if input_per_image.get("vocabulary") is not None:
            text = self.embed_vocabulary(input_per_image["vocabulary"], self.templates)
            return text, [ClassSubset(torch.arange(len(text)), input_per_image.get("background", False))]

        if self._text is None:
            raise RuntimeError(
                "The model does not know which classes to look for: call model.set_vocabulary(names), or give each "
                "input a 'vocabulary'."
            )
        return self._text, self._subsets

    def normalize_images(self, images: list[Tensor]) -> Tensor:
        """Images [3, H, W] of one size, 0..255 -> fp32 [B, 3, H, W] on the model's device; ValueError for others."""
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3 or image.shape != images[0].shape:
                shapes = sorted({tuple(image.shape) for image in images})
                raise ValueError(f"'image' must be a tensor [3, H, W], of one size in a training batch; got {shapes}.")
        batch = torch.stack([image.to(self.device, torch.float32) for image in images])
        return (batch - self.pixel_mean) / self.pixel_std

    def encode_crops(self, crops: Tensor) -> tuple[Encoded, tuple[slice, slice]]:
        """Normalised crops [B, 3, H, W] of any size, padded to whole patches and encoded, and their place there."""
        padded, cut = pad_to_multiple(crops, self.clip.patch_size)
        return self.encode(padded), cut

    def crop_masks(self, encoded: Encoded, cut: tuple[slice, slice], text: Tensor) -> Tensor:
        """Masks in 0..1 [B, K, H, W] of what encode_crops gave, at the crops' own size, for text embeddings [K, D]."""
        masks = self.masks(encoded, text)
        masks = F.interpolate(masks, size=encoded.images.shape[-2:], mode="bilinear", align_corners=False)
        return masks[(..., *cut)]

    def dense_clip_features(self, tokens: Tensor, depth: int, grid: tuple[int, int]) -> Tensor:
        """CLIP's own features of each patch, normalised [B, D, h, w], from its trunk's tokens after `depth` blocks."""
        return normalize(self.clip.dense(tokens, depth, grid), 1)

    def dense_clip_masks(self, features: Tensor, text: Tensor) -> Tensor:
        """CLIP's own masks [B, K, h, w] from its dense features [B, D, h, w]."""
        with torch.autocast(features.device.type, enabled=False):  # the scale makes much of small errors
            similarity = torch.einsum("bdhw,kd->bkhw", features, normalize(text, 1))
        return torch.sigmoid((similarity - self.mask_shift) * self.mask_scale)


def _forget_embeddings(model: ZeroShotSegmentor, _: object) -> None:
    """Empty the cache of text embeddings: the CLIP whose weights were loaded may be another one."""
    model.embed_vocabulary.forget()


def _precision(name: str, device: str) -> torch.dtype:
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in kinds or (name == "float16" and not device.startswith("cuda")):
        raise ValueError(
            f"TEST.ZERO_SHOT.PRECISION must be float32, bfloat16 or, on CUDA, float16; not '{name}' on '{device}'."
        )
    return kinds[name]
