"""ZeroShotSegmentor: the base of all systems that segment images into the classes of a vocabulary."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from torch import Tensor, nn
from torch.nn import functional as F

from .clip import FrozenCLIP
from .clip_loading import build_clip, build_tokenizer
from .grounder import normalize
from .inference import Windows, iterate_scores, pad_to_multiple
from .pamr import PAMR
from .score_rules import AllScores, ClassSubset, RunningArgmax
from .text import TextEmbedder, check_templates, dataset_vocabulary

logger = logging.getLogger(__name__)
_WINDOWS_AT_ONCE = 8  # halved where memory runs out


class CropFeatures(NamedTuple):
    """What is computed of a batch of crops once, for any classes.

    Attributes:
        images: normalized crops [B, 3, H, W].
        clip_features: CLIP's own of each patch, normalized, [B, D, h, w].
        embedding: the grounder's pixel embeddings, [B, D, h', w'].
    """

    images: Tensor
    clip_features: Tensor | None
    embedding: Tensor | None = None


class ZeroShotSegmentor(nn.Module):
    """Segments images into the classes of a vocabulary: windows, text features and background, on a frozen CLIP.

    A subclass says in `encode` and `predict_masks` how images and text features become masks.
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
        crop_size: int,
        stride: int,
        background_score: float,
        pamr: PAMR | None = None,
        precision: torch.dtype = torch.float32,
        text_cache: Path | None = None,
        mask_shift: float = 0.25,
        mask_scale: float = 10.0,
        dataset_name: str | None = None,
    ):
        """Build the segmentor from its parts.

        Args:
            clip: the frozen CLIP.
            tokenizer: N texts -> int64 [N, context].
            pixel_mean: mean of RGB in 0..255.
            pixel_std: standard deviation of RGB in 0..255.
            templates: prompt templates, each with one `{}`, used where a vocabulary comes without.
            crop_size: side of the sliding windows, in pixels.
            stride: step between windows, in pixels.
            background_score: constant score of the background, in 0..1, where there is one.
            pamr: refinement of masks; None for none.
            precision: dtype of autocast in inference; torch.float32 for none.
            text_cache: folder that keeps text features; None for none.
            mask_shift: masks from CLIP's dense similarities s are sigmoid((s - mask_shift) * mask_scale).
            mask_scale: see mask_shift.
            dataset_name: registered dataset whose classes are looked for until others are set; None for none.

        Raises:
            ValueError: a number out of its range, or unusable templates; names the config key.
        """
        super().__init__()
        if crop_size < 1:
            raise ValueError(f"TEST.ZERO_SHOT.CROP_SIZE must be at least 1 pixel, not {crop_size}.")
        if not 1 <= stride <= crop_size:
            raise ValueError(f"TEST.ZERO_SHOT.STRIDE must be in 1..{crop_size} (CROP_SIZE), not {stride}.")
        if not 0 <= background_score <= 1:
            raise ValueError(f"TEST.ZERO_SHOT.BACKGROUND_SCORE is a score in 0..1, not {background_score}.")

        # Images
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.crop_size = crop_size
        self.stride = stride

        # Words
        self.clip = clip
        self.tokenizer = tokenizer
        self.templates = check_templates(templates)
        self.embed_vocabulary = TextEmbedder(clip, tokenizer, text_cache)
        self.register_load_state_dict_post_hook(_forget_embeddings)
        self.dataset_name = dataset_name
        self._text: Tensor | None = None
        self._subsets: list[ClassSubset] = []

        # Masks
        self.background_score = background_score
        self.pamr = pamr
        self.precision = precision
        self.mask_shift = mask_shift
        self.mask_scale = mask_scale
        self._windows_at_once = _WINDOWS_AT_ONCE
        self._average_on_cpu = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        test = cfg.TEST.ZERO_SHOT
        return {
            # Words and images
            "clip": FrozenCLIP(build_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED)),
            "tokenizer": build_tokenizer(cfg.MODEL.CLIP.NAME),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "templates": test.TEMPLATES,
            "crop_size": test.CROP_SIZE,
            "stride": test.STRIDE,
            "background_score": test.BACKGROUND_SCORE,
            # Masks
            "pamr": PAMR(test.PAMR.ITERS, test.PAMR.DILATIONS) if test.PAMR.ENABLED else None,
            "precision": _autocast_dtype(test.PRECISION, cfg.MODEL.DEVICE),
            "text_cache": Path(test.TEXT_CACHE).expanduser() if test.TEXT_CACHE else None,
            "mask_shift": cfg.MODEL.CLIP.MASK_SHIFT,
            "mask_scale": cfg.MODEL.CLIP.MASK_SCALE,
            # As Detectron2's DefaultPredictor, which gives no vocabulary, takes its metadata
            "dataset_name": cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else None,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    # ------------------------------------------------------------------------------------ what a subclass says

    def encode(self, images: Tensor) -> CropFeatures:
        """Compute what does not depend on the classes, of normalized images [B, 3, H, W] of whole patches."""
        raise NotImplementedError

    def predict_masks(self, features: CropFeatures, text: Tensor) -> Tensor:
        """Predict masks in 0..1 [B, K, h, w] for text features [K, D]; a class's mask does not depend on the others."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------ classes

    def set_vocabulary(
        self, names: Sequence[str], background: bool = False, templates: Sequence[str] | None = None
    ) -> None:
        """Set the classes that images without a vocabulary of their own are segmented into.

        Args:
            names: class words, without the background; ValueError if empty, blank or double.
            background: whether a background, at the constant score, comes before them.
            templates: prompt templates; None for the model's.
        """
        self.set_text_embeddings(self.embed_vocabulary(names, templates or self.templates), background)

    def set_dataset(self, *names: str) -> None:
        """Set the classes of a registered dataset: its `stuff_classes`, of which the first may be the background.

        Of several datasets, to segment their common images once: masks are made for each of their words once.
        """
        words, subsets = {}, []
        for name in names:
            classes, background = dataset_vocabulary(name)
            indices = [words.setdefault(word, len(words)) for word in classes]
            subsets.append(ClassSubset(torch.tensor(indices), background))
        self.set_vocabulary(list(words))
        self._subsets = subsets

    def set_text_embeddings(self, embeddings: Tensor, background: bool = False) -> None:
        """Set the classes by their text features [K, D], of any lengths; ValueError for another shape."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.clip.embed_dim:
            raise ValueError(f"Text embeddings must be [K, {self.clip.embed_dim}], not {list(embeddings.shape)}.")
        self._text = embeddings.detach().to(self.device)
        self._subsets = [ClassSubset(torch.arange(len(embeddings)), background)]

    def _classes(self, input_per_image: dict) -> tuple[Tensor, list[ClassSubset]]:
        if input_per_image.get("vocabulary") is not None:
            text = self.embed_vocabulary(input_per_image["vocabulary"], self.templates)
            return text, [ClassSubset(torch.arange(len(text)), input_per_image.get("background", False))]

        if self._text is None:
            self._set_default_dataset()
        return self._text, self._subsets

    def _set_default_dataset(self) -> None:
        """Set the classes of the dataset that the model was built with; RuntimeError where it has none."""
        if self.dataset_name is None or "stuff_classes" not in MetadataCatalog.get(self.dataset_name).as_dict():
            dataset = "DATASETS.TEST is empty" if self.dataset_name is None else f"'{self.dataset_name}' has no classes"
            raise RuntimeError(
                "The model does not know which classes to look for: call model.set_vocabulary(names), give each input "
                f"a 'vocabulary', or let DATASETS.TEST begin with a dataset that has stuff_classes ({dataset})."
            )
        self.set_dataset(self.dataset_name)

    # ------------------------------------------------------------------------------------ whole images

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment images, in Detectron2's inference format.

        Args:
            batched_inputs: a dict an image:

                image: Tensor [3, H, W], RGB, 0..255, already at the size at which windows are taken.
                height, width: size of the result in pixels; default: the image's.
                vocabulary: class words (list[str]), in place of those set before.
                background: whether a background comes before the vocabulary (bool).
                labels_only: whether to give labels in place of scores, without holding all scores (bool).

        Returns:
            a dict an image:

            sem_seg: scores fp32 [K, height, width], background first where there is one.
            sem_seg_labels: in its place where `labels_only`: the class with the largest score, int64 [height, width].
            by_dataset: in their place where several datasets were set: a list of such dicts.
        """
        if torch.jit.is_tracing():
            raise RuntimeError(
                f"{type(self).__name__} cannot be traced: the windows of the traced image's size would stand for those "
                "of every image. Trace the masks of one crop instead: encode_crops and crop_masks."
            )
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            return [self._segment_in_memory(input_per_image) for input_per_image in batched_inputs]

    def _segment_in_memory(self, input_per_image: dict) -> dict:
        """Segment an image; where memory runs out, with fewer windows at once, at last with averages on the CPU."""
        while True:
            try:
                return self._segment_image(input_per_image)
            except torch.OutOfMemoryError:
                if self._average_on_cpu:
                    raise

            torch.cuda.empty_cache()
            self._average_on_cpu = self._windows_at_once == 1
            self._windows_at_once = max(1, self._windows_at_once // 2)
            logger.warning(
                "Memory ran out for an image of %s; from now on %s: slower, same masks",
                [*input_per_image["image"].shape[1:]],
                "averages on the CPU" if self._average_on_cpu else f"{self._windows_at_once} windows at once",
            )

    @torch.no_grad()
    def _segment_image(self, input_per_image: dict) -> dict:
        text, subsets = self._classes(input_per_image)
        image = self.normalize_images([input_per_image["image"]])[0]
        size = (input_per_image.get("height", image.shape[1]), input_per_image.get("width", image.shape[2]))

        # Each dataset takes what it needs of the scores, as they come
        rule = RunningArgmax if input_per_image.get("labels_only", False) else AllScores
        results = [rule(subset, self.background_score) for subset in subsets]
        for scores in self._iterate_scores(image, text, size):
            for result in results:
                result.update(scores)

        outputs = [result.output() for result in results]
        return outputs[0] if len(outputs) == 1 else {"by_dataset": outputs}

    def _iterate_scores(self, image: Tensor, text: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        def predict(crops: tuple, text: Tensor) -> Tensor:
            masks = self.crop_masks(*crops, text)
            return masks.cpu() if self._average_on_cpu else masks

        windows = Windows(image, self.crop_size, self.stride)
        return iterate_scores(windows, self.encode_crops, predict, text, size, self._windows_at_once)

    # ------------------------------------------------------------------------------------ crops

    def normalize_images(self, images: list[Tensor]) -> Tensor:
        """Normalize images [3, H, W] of one size, 0..255 -> fp32 [B, 3, H, W] on the model's device.

        Raises:
            ValueError: images of another shape, or of several sizes.
        """
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3 or image.shape != images[0].shape:
                shapes = sorted({tuple(image.shape) for image in images})
                raise ValueError(f"'image' must be a tensor [3, H, W], of one size in a training batch; got {shapes}.")
        batch = torch.stack([image.to(self.device, torch.float32) for image in images])
        return (batch - self.pixel_mean) / self.pixel_std

    def encode_crops(self, crops: Tensor) -> tuple[CropFeatures, tuple[slice, slice]]:
        """Pad normalized crops [B, 3, H, W] of any size to whole patches and encode them.

        Returns:
            their features, and the slices (rows, columns) at which the crops lie in the padded ones.
        """
        padded, place = pad_to_multiple(crops, self.clip.patch_size)
        return self.encode(padded), place

    def crop_masks(self, features: CropFeatures, place: tuple[slice, slice], text: Tensor) -> Tensor:
        """Predict masks in 0..1 [B, K, H, W] at the crops' own size.

        Args:
            features: of the crops, from encode_crops.
            place: of the crops in the padded ones, from encode_crops.
            text: text features [K, D].
        """
        masks = self.predict_masks(features, text)
        masks = F.interpolate(masks, size=features.images.shape[-2:], mode="bilinear", align_corners=False)
        return masks[(..., *place)]

    def dense_clip_features(self, tokens: Tensor, depth: int, grid: tuple[int, int]) -> Tensor:
        """Compute CLIP's own features of each patch, normalized [B, D, h, w], from its tokens after `depth` blocks."""
        return normalize(self.clip.dense_features(tokens, depth, grid), 1)

    def dense_clip_masks(self, features: Tensor, text: Tensor) -> Tensor:
        """Predict CLIP's own masks [B, K, h, w] from its dense features [B, D, h, w]."""
        with torch.autocast(features.device.type, enabled=False):  # the scale makes much of small errors
            similarity = torch.einsum("bdhw,kd->bkhw", features, normalize(text, 1))
        return torch.sigmoid((similarity - self.mask_shift) * self.mask_scale)


def _forget_embeddings(model: ZeroShotSegmentor, _: object) -> None:
    """Empty the cache of text features: the CLIP whose weights were loaded may be another one."""
    model.embed_vocabulary.forget()


def _autocast_dtype(name: str, device: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes or (name == "float16" and not device.startswith("cuda")):
        raise ValueError(
            f"TEST.ZERO_SHOT.PRECISION must be float32, bfloat16 or, on CUDA, float16; not '{name}' on '{device}'."
        )
    return dtypes[name]
