"""The meta-architectures: TCL, and MaskCLIP (CLIP's own dense features) as its baseline."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from ..drawing import draw_text
from .clip import FrozenCLIP, build_clip, build_tokenizer
from .grounder import Grounder, Sim2Mask, normalize
from .losses import Grounding, build_losses, gather
from .micro_batches import in_parts
from .pairs import pair_statistics, total_variation
from .refine import PAMR
from .text import TextEmbedder, check_templates, dataset_vocabulary
from .window import Windows, pad_to_multiple

logger = logging.getLogger(__name__)
_TEXTS_AT_ONCE = 64
_CLASSES_AT_ONCE = 64  # bounds memory for vocabularies of thousands of words


class Encoded(NamedTuple):
    """What is computed of a batch of images once, for any classes."""

    images: Tensor  # normalised, [B, 3, H, W]
    clip_features: Tensor | None  # CLIP's own of each patch, normalised, [B, D, h, w]
    embedding: Tensor | None = None  # the grounder's pixel embeddings, [B, D, h', w']


class Selection(NamedTuple):
    """The classes of one data set among those that masks are made for."""

    indices: Tensor  # int64 [K]
    background: bool  # whether a background comes before them


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
        """
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.embed_vocabulary = TextEmbedder(clip, tokenizer, text_cache)
        self.register_load_state_dict_post_hook(lambda model, _: model.embed_vocabulary.forget())  # CLIP may be another
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
        self._selections: list[Selection] = []

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
        words, selections = {}, []
        for name in names:
            classes, background = dataset_vocabulary(name)
            indices = [words.setdefault(word, len(words)) for word in classes]
            selections.append(Selection(torch.tensor(indices), background))
        self.set_vocabulary(list(words))
        self._selections = selections

    def set_text_embeddings(self, embeddings: Tensor, background: bool = False) -> None:
        """The same from embeddings [K, D], of any lengths; ValueError for another shape."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.clip.embed_dim:
            raise ValueError(f"Text embeddings must be [K, {self.clip.embed_dim}], not {list(embeddings.shape)}.")
        self._text = embeddings.detach().to(self.device)
        self._selections = [Selection(torch.arange(len(embeddings)), background)]

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
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            return [self._segment_in_memory(one) for one in batched_inputs]

    def _segment_in_memory(self, one: dict) -> dict:
        """_segment_image; where memory runs out, again with fewer windows at once, at last with averages on the CPU."""
        while True:
            try:
                return self._segment_image(one)
            except torch.OutOfMemoryError:
                if self._average_on_cpu:
                    raise
            torch.cuda.empty_cache()
            self._average_on_cpu = self._windows_at_once == 1
            self._windows_at_once = max(1, self._windows_at_once // 2)
            how = "averages on the CPU" if self._average_on_cpu else f"{self._windows_at_once} windows at once"
            logger.warning(
                "Memory ran out for an image of %s; from now on %s: slower, same masks", [*one["image"].shape[1:]], how
            )

    @torch.no_grad()
    def _segment_image(self, one: dict) -> dict:
        text, selections = self._classes(one)
        image = self.normalize_images([one["image"]])[0]
        size = (one.get("height", image.shape[1]), one.get("width", image.shape[2]))
        parts = self._score(image, text, size)
        if one.get("labels_only", False):
            outputs = [{"sem_seg_labels": labels} for labels in argmax(parts, selections, self.background_score)]
        else:
            scores = torch.cat(list(parts))
            empty = torch.full_like(scores[:1], self.background_score)
            outputs = [
                {"sem_seg": torch.cat([empty, scores[indices]]) if background else scores[indices]}
                for indices, background in selections
            ]
        return outputs[0] if len(outputs) == 1 else {"by_dataset": outputs}

    def _score(self, image: Tensor, text: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """Scores [k, *size] of a normalised image for one part of the classes [K, D] after the other."""
        windows = Windows(image, self.crop, self.stride)
        encoded = map(self.encode_crops, windows.batches(self._windows_at_once))
        if len(text) > _CLASSES_AT_ONCE:
            encoded = list(encoded)
        for part in text.split(_CLASSES_AT_ONCE):
            masks = (self.crop_masks(*crops, part) for crops in encoded)
            scores = windows.average(some.cpu() if self._average_on_cpu else some for some in masks)
            yield F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]

    def _classes(self, one: dict) -> tuple[Tensor, list[Selection]]:
        if one.get("vocabulary") is not None:
            text = self.embed_vocabulary(one["vocabulary"], self.templates)
            return text, [Selection(torch.arange(len(text)), one.get("background", False))]
        if self._text is None:
            raise RuntimeError(
                "The model does not know which classes to look for: call model.set_vocabulary(names), or give each "
                "input a 'vocabulary'."
            )
        return self._text, self._selections

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


def argmax(parts: Iterable[Tensor], selections: list[Selection], background_score: float) -> list[Tensor]:
    """For each selection of the classes, the index of the largest score at each pixel, int64 [H, W].

    Args:
        parts: scores [k, H, W] of the classes, some after the other.
        background_score: of the background, which is index 0 where there is one.
    """
    best: list[Tensor | None] = [None] * len(selections)
    labels: list[Tensor | None] = [None] * len(selections)
    first = 0
    for scores in parts:
        for i, (indices, background) in enumerate(selections):
            own = torch.nonzero((indices >= first) & (indices < first + len(scores)))[:, 0]
            if not len(own):
                continue
            here = indices[own] - first
            value, which = scores[here].max(0) if len(here) < len(scores) else scores.max(0)
            index = (own if len(here) < len(scores) else own[here.argsort()]).to(which.device)[which] + int(background)
            if best[i] is None:
                lowest = background_score if background else -torch.inf
                best[i], labels[i] = torch.full_like(value, lowest), torch.zeros_like(index)
            better = value > best[i]
            best[i], labels[i] = torch.where(better, value, best[i]), torch.where(better, index, labels[i])
        first += len(scores)
    return labels


def _precision(name: str, device: str) -> torch.dtype:
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in kinds or (name == "float16" and not device.startswith("cuda")):
        raise ValueError(
            f"TEST.ZERO_SHOT.PRECISION must be float32, bfloat16 or, on CUDA, float16; not '{name}' on '{device}'."
        )
    return kinds[name]


@META_ARCH_REGISTRY.register()
class MaskCLIP(ZeroShotSegmentor):
    """Dense CLIP: similarities of CLIP's own last values and the texts (Zhou et al., ECCV 2022). Nothing is trained."""

    def encode(self, images: Tensor) -> Encoded:
        depth = len(self.clip.blocks) - 1
        features = self.dense_clip_features(self.clip.trunk(images, depth), depth, self.clip.grid(images))
        return Encoded(images, features)

    def masks(self, encoded: Encoded, text: Tensor) -> Tensor:
        masks = self.dense_clip_masks(encoded.clip_features, text)
        # Enlarged as TCL's decoder does, so that refinement works at the same resolution for both.
        masks = F.interpolate(masks, scale_factor=4.0, mode="bilinear", align_corners=False)
        return masks if self.pamr is None else self.pamr(encoded.images, masks)


@META_ARCH_REGISTRY.register()
class TCL(ZeroShotSegmentor):
    """Text-grounded contrastive learning (Cha et al., CVPR 2023)."""

    @configurable
    def __init__(
        self,
        *,
        freeze: int,
        losses: Sequence[nn.Module],
        decoder_blocks: int = 2,
        sim2mask: Sim2Mask | None = None,
        kp_weight: float = 0.3,
        train_last_blocks: bool = False,
        micro_batch: int = 0,
        checkpoint_masked: bool = False,
        vis_period: int = 0,
        **zero_shot,
    ):
        """
        Args:
            freeze: blocks of the image encoder that are shared and frozen; the rest is copied.
            losses: loss heads (see losses.py).
            decoder_blocks: doublings of the masks' resolution.
            sim2mask: None for the paper's initial values.
            kp_weight: share of CLIP's own masks at inference (knowledge preservation); 0 for none.
            train_last_blocks: whether the copied blocks train from the start, rather than only the rest.
            micro_batch: images whose activations are held at once in training; 0 for all.
            checkpoint_masked: whether to compute the frozen encoder's pass over the masked image twice, block by block,
                rather than hold its activations.
            vis_period: iterations between pictures of masks; 0 for none.
            zero_shot: the arguments of ZeroShotSegmentor.
        """
        super().__init__(**zero_shot)
        self.freeze = freeze
        self.grounder = Grounder(self.clip, freeze, decoder_blocks)
        self.sim2mask = sim2mask or Sim2Mask()
        self.losses = nn.ModuleDict({type(head).__name__: head for head in losses})
        self.kp_weight = kp_weight
        self.micro_batch = micro_batch
        self.checkpoint_masked = checkpoint_masked
        self.vis_period = vis_period
        self.train_last_blocks(train_last_blocks)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        tcl = cfg.MODEL.TCL
        return {
            **super().from_config(cfg),
            "freeze": tcl.FREEZE,
            "losses": build_losses(cfg),
            "decoder_blocks": tcl.DECODER_BLOCKS,
            "sim2mask": Sim2Mask(tcl.SIM_SCALE_INIT, tcl.SIM_BIAS_INIT, tcl.GUMBEL_TAU),
            "kp_weight": cfg.TEST.ZERO_SHOT.KP_WEIGHT,
            "train_last_blocks": tcl.UNFREEZE_ITER == 0,
            "micro_batch": cfg.SOLVER.MICRO_BATCH,
            "checkpoint_masked": tcl.CHECKPOINT_MASKED,
            "vis_period": cfg.VIS_PERIOD,
        }

    def train_last_blocks(self, train: bool) -> None:
        """Frees or freezes the copied last blocks: the second or the first stage of the schedule."""
        self.grounder.blocks.requires_grad_(train)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """In training, `image` [3, H, W] (RGB, 0..255, one size for the batch) with `caption` (str) or `tokens`
        (int [context]) -> weighted losses by name. In inference see ZeroShotSegmentor.forward."""
        if not self.training:
            return super().forward(batched_inputs)
        images, tokens = self.normalize_images([one["image"] for one in batched_inputs]), self._tokens(batched_inputs)
        losses = self.compute_losses(images, tokens)
        if self.vis_period > 0 and has_event_storage() and get_event_storage().iter % self.vis_period == 0:
            picture = self._draw(images, tokens, [one.get("caption", "") for one in batched_inputs])
            get_event_storage().put_image("image, mask of its text, mask of another, caption", picture)
        return losses

    def _tokens(self, batched_inputs: list[dict]) -> Tensor:
        if all("tokens" in one for one in batched_inputs):
            return torch.stack([one["tokens"] for one in batched_inputs]).to(self.device)
        if all("caption" in one for one in batched_inputs):
            return self.tokenizer([one["caption"] for one in batched_inputs]).to(self.device)
        raise ValueError("Training needs a 'caption' (str) or 'tokens' (Tensor[context]) with every image.")

    def compute_losses(self, images: Tensor, tokens: Tensor, uniform: Tensor | None = None) -> dict[str, Tensor]:
        """
        Args:
            images: normalised, [B, 3, H, W], of whole patches.
            tokens: int [B, context]; text i belongs to image i.
            uniform: noise of the hard masks [B, 1, h, w] in (0, 1), to repeat a step exactly; None draws it.

        Returns:
            the weighted losses by name.
        """
        grounding = self.ground(images, tokens, uniform)
        return {head.name: head(grounding) for head in self.losses.values()}

    def ground(self, images: Tensor, tokens: Tensor, uniform: Tensor | None = None) -> Grounding:
        """What the losses need of a batch; arguments as compute_losses.

        With `micro_batch`, the activations of so many images are held at once. Losses are over what remains of each
        image, so they and their gradients are those of the undivided batch.
        """
        text = gather(self.encode_text(tokens))
        first = comm.get_rank() * len(images)
        needs = sorted({field for head in self.losses.values() for field in head.needs})
        if uniform is None:
            size = [side * self.grounder.scale for side in self.clip.grid(images)]
            uniform = self.sim2mask.noise((len(images), 1, *size), images.device)

        def some(images: Tensor, matching: Tensor, uniform: Tensor) -> list[Tensor]:
            found = self._ground_some(images, text, matching, uniform, needs)
            return [found[field] for field in needs]

        batch = images, text[first : first + len(images)], uniform
        if 0 < self.micro_batch < len(images):
            parts = list(zip(*(whole.split(self.micro_batch) for whole in batch)))
            trained = [p for p in (*self.grounder.parameters(), *self.sim2mask.parameters()) if p.requires_grad]
            values = in_parts(some, parts, trained)
        else:
            values = some(*batch)
        return Grounding(text, first, **dict(zip(needs, values)))

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens int [N, context] -> embeddings fp32 [N, D], not normalised."""
        return torch.cat([self.clip.encode_text(some).float() for some in tokens.split(_TEXTS_AT_ONCE)])

    def _ground_some(
        self, images: Tensor, text: Tensor, matching: Tensor, uniform: Tensor, needs: Collection[str]
    ) -> dict[str, Tensor]:
        """The needed fields of a Grounding for some images and the embeddings [B, D] of their own texts."""
        embedding = self.pixel_embedding(images)
        found = pair_statistics(embedding, text, self.sim2mask, needs)
        if "embedding_variation" in needs:
            found["embedding_variation"] = total_variation(embedding).mean(1)
        if "mean_embedding" in needs:
            found["mean_embedding"] = embedding.mean((2, 3))
        if "masked_image" in needs:
            masks = self.sim2mask.hard(self.sim2mask.matching(embedding, matching), uniform)
            masked = images * F.interpolate(masks, size=images.shape[-2:], mode="nearest")
            found["masked_image"] = self.clip.encode_image(masked, self.checkpoint_masked)
        return found

    def pixel_embedding(self, images: Tensor) -> Tensor:
        """The grounder's pixel embeddings fp32 [B, D, h, w] of normalised images [B, 3, H, W] of whole patches."""
        with torch.no_grad():
            tokens = self.clip.trunk(images, self.freeze)
        return self.grounder(tokens, self.clip.grid(images)).float()

    def encode(self, images: Tensor) -> Encoded:
        grid = self.clip.grid(images)
        tokens = self.clip.trunk(images, self.freeze)
        features = self.dense_clip_features(tokens, self.freeze, grid) if self.kp_weight > 0 else None
        return Encoded(images, features, self.grounder(tokens, grid))

    def masks(self, encoded: Encoded, text: Tensor) -> Tensor:
        masks = torch.sigmoid(self.sim2mask(encoded.embedding, text))
        if self.pamr is not None:
            masks = self.pamr(encoded.images, masks)
        if self.kp_weight > 0:
            kept = self.dense_clip_masks(encoded.clip_features, text)
            kept = F.interpolate(kept, size=masks.shape[-2:], mode="bilinear", align_corners=False)
            masks = self.kp_weight * kept + (1 - self.kp_weight) * masks
        return masks

    @torch.no_grad()
    def _draw(self, images: Tensor, tokens: Tensor, captions: Sequence[str], count: int = 4) -> np.ndarray:
        """RGB uint8 [3, count*H, ...]: images, under the masks of their own and of another text, and captions."""
        images = images[:count]
        soft = torch.sigmoid(self.sim2mask(self.pixel_embedding(images), self.encode_text(tokens[: count + 1])))
        rows = []
        for i, (image, masks) in enumerate(zip(images * self.pixel_std + self.pixel_mean, soft)):
            pair = torch.stack([masks[i], masks[(i + 1) % len(masks)]])[:, None]
            pair = F.interpolate(pair, size=image.shape[-2:], mode="nearest")
            row = torch.cat([image, *(image * (0.2 + 0.8 * mask) for mask in pair)], dim=-1)
            row = row.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
            rows.append(np.concatenate([row, draw_text(captions[i], len(row), 260)], axis=1))
        return np.concatenate(rows).transpose(2, 0, 1)
