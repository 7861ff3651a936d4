"""TCL: text-grounded contrastive learning (Cha et al., CVPR 2023)."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.ranges import check_values
from ...segmentation.drawing import draw_text
from ...utils.events import put_picture
from ...utils.tensors import have_equal_weights
from ...words.vocabulary import dataset_vocabulary, join_vocabularies
from ..dense_clip.heads import DenseHead, MaskCLIPHead, build_dense_head
from ..encoders.clip import FrozenCLIP
from ..encoders.text import batch_tokens
from ..functional import gather, normalize
from ..segmentor.base import ZeroShotSegmentor
from ..segmentor.crops import CropFeatures
from .grad_cache import forward_in_parts
from .grounder import Grounder, Sim2Mask
from .label_statistics import MaskTarget, make_mask_target, sem_seg_statistics
from .losses import LABEL_STATISTICS, Grounding, LossHead, build_losses, takes_labels
from .mask_statistics import pair_statistics, total_variation

_TEXTS_AT_ONCE = 64


class LabeledBatch(NamedTuple):
    """The labeled images of a training batch, normalized and of whole patches, and what their masks should be."""

    images: Tensor  # [L, 3, H, W]
    targets: list[MaskTarget]


@META_ARCH_REGISTRY.register()
class TCL(ZeroShotSegmentor):
    """Text-grounded contrastive learning (Cha et al., CVPR 2023)."""

    clip: FrozenCLIP
    losses: Any  # an nn.ModuleDict of LossHeads

    @configurable
    def __init__(
        self,
        *,
        freeze: int,
        losses: Sequence[LossHead],
        decoder_blocks: int = 2,
        sim2mask: Sim2Mask | None = None,
        kp_weight: float = 0.3,
        kp_head: DenseHead | None = None,
        train_last_blocks: bool = False,
        micro_batch_size: int = 0,
        checkpoint_masked: bool = False,
        vis_period: int = 0,
        **zero_shot,
    ):
        """Build TCL from its parts; `zero_shot` are the arguments of ZeroShotSegmentor.

        Args:
            freeze: blocks of the image encoder that are shared and frozen; the others are copied.
            kp_weight: share in 0..1 of CLIP's own masks, by `kp_head` or MaskCLIP's rule, at inference.
            micro_batch_size: images whose activations are held at once in training; 0 for all.
            checkpoint_masked: whether CLIP's pass over the masked image is recomputed for the gradient.
        """
        super().__init__(**zero_shot)
        check_values("TEST.ZERO_SHOT", KP_WEIGHT=kp_weight)
        check_values("SOLVER", IMS_PER_MICRO_BATCH=micro_batch_size)

        # Modules
        self.freeze = freeze
        self.grounder = Grounder(self.clip, freeze, decoder_blocks)
        self.sim2mask = sim2mask or Sim2Mask()
        self.losses = nn.ModuleDict({type(head).__name__: head for head in losses})
        self.kp_head = (kp_head or MaskCLIPHead()).requires_grad_(False)

        # Inference and training
        self.kp_weight = kp_weight
        self.micro_batch_size = micro_batch_size
        self.checkpoint_masked = checkpoint_masked
        self.vis_period = vis_period
        self.train_last_blocks(train_last_blocks)

    @property
    def needs_labels(self) -> bool:
        return any(takes_labels(head) for head in self.losses.values())

    @property
    def needs_captions(self) -> bool:
        return not all(takes_labels(head) for head in self.losses.values())

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        tcl = cfg.MODEL.TCL
        return {
            **super().from_config(cfg),
            # Modules
            "freeze": tcl.FREEZE,
            "losses": build_losses(cfg),
            "decoder_blocks": tcl.DECODER_BLOCKS,
            "sim2mask": Sim2Mask(tcl.SIM_SCALE_INIT, tcl.SIM_BIAS_INIT, tcl.GUMBEL_TAU),
            # Inference and training
            "kp_weight": cfg.TEST.ZERO_SHOT.KP_WEIGHT,
            "kp_head": build_dense_head(tcl.KP_HEAD, cfg),
            "train_last_blocks": tcl.UNFREEZE_ITER == 0,
            "micro_batch_size": cfg.SOLVER.IMS_PER_MICRO_BATCH,
            "checkpoint_masked": tcl.CHECKPOINT_MASKED,
            "vis_period": cfg.VIS_PERIOD,
        }

    def train_last_blocks(self, train: bool) -> None:
        """Free or freeze the copied last blocks: the second or the first stage of the schedule."""
        self.grounder.blocks.requires_grad_(train)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Compute the weighted losses of a batch by name in training; in inference see ZeroShotSegmentor.forward.

        Args:
            batched_inputs: a dict for each image:

                image: Tensor [3, H, W], RGB, 0..255, one size for the batch.
                caption: its text (str), or
                tokens: its text's tokens, int [context].

            For loss heads on labels, also or instead labeled images, as SemSegDatasetMapper gives them:

                image: as above.
                sem_seg: class of each pixel, or the `ignore_label` of the dataset's metadata, int64 [H, W].
                classes: those whose masks are compared with it, int64 [C].
                dataset_name: registered dataset, which has the classes' words.
        """
        if not self.training:
            return super().forward(batched_inputs)

        labeled = None
        if self.needs_labels:
            labeled = self._batch_labels(batched_inputs)
            batched_inputs = [input_per_image for input_per_image in batched_inputs if not _is_label(input_per_image)]
        if not self.needs_captions:
            return self.compute_losses(None, None, None, labeled)

        tokens = batch_tokens(batched_inputs, self.tokenizer, self.device)
        images = self.normalize_images([input_per_image["image"] for input_per_image in batched_inputs])
        losses = self.compute_losses(images, tokens, None, labeled)

        captions = [input_per_image.get("caption", "") for input_per_image in batched_inputs]
        draw = partial(self._draw_masks, images, tokens, captions)
        put_picture("image, mask of its text, mask of another, caption", self.vis_period, draw)
        return losses

    def compute_losses(
        self,
        images: Tensor | None,
        tokens: Tensor | None,
        uniform: Tensor | None = None,
        labeled: LabeledBatch | None = None,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses by name.

        Args:
            images: normalized, [B, 3, H, W], of whole patches; None where no loss head needs captions.
            tokens: int [B, context]; text i belongs to image i.
            uniform: noise of the hard masks [B, 1, h, w] in (0, 1), to repeat a step exactly; None draws it.
            labeled: labeled images; None where no loss head needs them.
        """
        grounding = Grounding() if images is None or tokens is None else self.ground(images, tokens, uniform)
        if labeled is not None:
            grounding = replace(grounding, **self.compare_with_labels(labeled))
        return {head.name: head(grounding) for head in self.losses.values()}

    def ground(self, images: Tensor, tokens: Tensor, uniform: Tensor | None = None) -> Grounding:
        """Compute the statistics that the loss heads need of a batch; arguments as compute_losses.

        With `micro_batch_size`, so many images' activations are held at once. The losses are over statistics of each
        image, so they and their gradients are those of the undivided batch.
        """
        # The texts of all processes; this process's begin at an offset
        text = gather(self.encode_text(tokens))
        text_offset = comm.get_rank() * len(images)
        positive_text = text[text_offset : text_offset + len(images)]

        # Noise is drawn for the whole batch: parts are computed twice
        if uniform is None:
            uniform = self.sim2mask.noise((len(images), 1, *self._mask_size(images)), images.device)

        names = sorted({name for head in self.losses.values() for name in head.needs} - set(LABEL_STATISTICS))

        def statistics_of_part(images: Tensor, positive_text: Tensor, uniform: Tensor) -> list[Tensor]:
            statistics = self._compute_statistics(images, text, positive_text, uniform, names)
            return [statistics[name] for name in names]

        values = self._compute_in_parts(statistics_of_part, images, positive_text, uniform)
        return Grounding(text, text_offset, **dict(zip(names, values)))

    def compare_with_labels(self, labeled: LabeledBatch) -> dict[str, Tensor]:
        """Compute the LABEL_STATISTICS of labeled images by name; with `micro_batch_size` as `ground`."""

        def statistics_of_part(images: Tensor, targets: list[MaskTarget]) -> list[Tensor]:
            statistics = sem_seg_statistics(self.pixel_embedding(images), targets, self.sim2mask)
            return [statistics[name] for name in LABEL_STATISTICS]

        return dict(zip(LABEL_STATISTICS, self._compute_in_parts(statistics_of_part, *labeled)))

    def _compute_in_parts(self, function: Callable[..., list[Tensor]], *batch: Tensor | Sequence) -> Sequence[Tensor]:
        """Call a function that computes values [B] of a batch, with the activations of some images at once."""
        size = self.micro_batch_size
        if not 0 < size < len(batch[0]):
            return function(*batch)
        parts = [tuple(whole[i : i + size] for whole in batch) for i in range(0, len(batch[0]), size)]
        trained = [p for p in (*self.grounder.parameters(), *self.sim2mask.parameters()) if p.requires_grad]
        return forward_in_parts(function, parts, trained)

    def _batch_labels(self, batched_inputs: list[dict]) -> LabeledBatch:
        """Collect the labeled images of a training batch; there may be none."""
        labeled = [input_per_image for input_per_image in batched_inputs if "sem_seg" in input_per_image]
        _check_labels(labeled)
        images = [input_per_image["image"] for input_per_image in labeled or batched_inputs]
        images = self.normalize_images(images)[: len(labeled)]
        size = self._mask_size(images)

        # The words of each dataset
        names = {input_per_image["dataset_name"] for input_per_image in labeled}
        words_by_dataset = {name: self._embed_dataset(name) for name in names}

        targets = []
        for input_per_image in labeled:
            name = input_per_image["dataset_name"]
            ignore_label = MetadataCatalog.get(name).get("ignore_label", 255)
            sem_seg = input_per_image["sem_seg"].to(self.device)
            classes = input_per_image["classes"]
            targets.append(make_mask_target(sem_seg, classes, ignore_label, *words_by_dataset[name], size))
        return LabeledBatch(images, targets)

    def _mask_size(self, images: Tensor) -> tuple[int, int]:
        """Return the height and width of the masks of images [B, 3, H, W]."""
        rows, columns = self.clip.grid(images)
        return rows * self.grounder.scale, columns * self.grounder.scale

    def _embed_dataset(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the text features of a dataset's words [W, D], prompted as in evaluation, and the words' classes [W].

        They are cached in full precision, so that an evaluation can take the same.
        """
        words, (subset,) = join_vocabularies([dataset_vocabulary(name, identify=self.identify)])
        with torch.autocast(self.device.type, enabled=False):
            text = self.embed_vocabulary(words, self.templates)
        return text[subset.words.to(text.device)], subset.classes

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens int [N, context] -> text features fp32 [N, D], not normalized."""
        return torch.cat([self.clip.encode_text(chunk).float() for chunk in tokens.split(_TEXTS_AT_ONCE)])

    def _compute_statistics(
        self, images: Tensor, text: Tensor, positive_text: Tensor, uniform: Tensor, names: Collection[str]
    ) -> dict[str, Tensor]:
        """Compute the named statistics of a Grounding for images [B, 3, H, W] and their own texts' features [B, D]."""
        embedding = self.pixel_embedding(images)

        # Of the soft masks of all pairs
        statistics = pair_statistics(embedding, text, self.sim2mask, names)

        # Of the pixel embeddings
        if "image_tv" in names:
            statistics["image_tv"] = total_variation(embedding).mean(1)
        if "mean_embedding" in names:
            statistics["mean_embedding"] = embedding.mean((2, 3))

        # Of the hard masks of matching pairs
        if "masked_image" in names:
            masks = self.sim2mask.hard(self.sim2mask.positive_logits(embedding, positive_text), uniform)
            masked = images * F.interpolate(masks, size=images.shape[-2:], mode="nearest")
            statistics["masked_image"] = self.clip.encode_image(masked, self.checkpoint_masked)
        return statistics

    def pixel_embedding(self, images: Tensor) -> Tensor:
        """Compute pixel embeddings fp32 [B, D, h, w] of normalized images [B, 3, H, W] of whole patches.

        `pixel_features` takes images of any size. ValueError for parts of patches.
        """
        size, patch_size = list(images.shape[-2:]), self.clip.patch_size
        if any(side % patch_size for side in size):
            raise ValueError(f"Images are {size}; expected multiples of the patches' side, {patch_size} pixels.")
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            tokens = self.clip.forward_blocks(images, self.freeze)
        return self.grounder(tokens, self.clip.grid(images)).float()

    def encode(self, images: Tensor) -> CropFeatures:
        depth = min(self.freeze, len(self.clip.blocks) - self.kp_head.num_blocks)
        shared = self.clip.forward_blocks(images, depth)
        grid = self.clip.grid(images)
        ground = partial(self.grounder, grid=grid)
        tokens = self.clip.run_blocks(shared, depth, self.freeze)
        embedding = self.clip.results((self.grounder, grid), ground, tokens)
        features = CropFeatures(images, None, embedding, self.bind_refiner("crop", images))
        if self.kp_weight == 0:
            return features

        clip_features = self.kp_head.continue_features(self.clip, shared, depth, images)
        return features._replace(clip_features=normalize(clip_features, 1))

    def share_weights(self, other: ZeroShotSegmentor) -> None:
        super().share_weights(other)
        if isinstance(other, TCL) and have_equal_weights(self.grounder, other.grounder):
            self.grounder = other.grounder

    def dense_features(self, features: CropFeatures) -> Tensor:
        return features.embedding

    def predict_masks(self, features: CropFeatures, text: Tensor, words: slice) -> Tensor:
        text = text[words]
        masks = features.refine(torch.sigmoid(self.sim2mask(features.embedding, text)))

        # Knowledge preservation
        if self.kp_weight > 0:
            clip_masks = self.dense_clip_masks(features.clip_features, text)
            clip_masks = F.interpolate(clip_masks, size=masks.shape[-2:], mode="bilinear", align_corners=False)
            masks = self.kp_weight * clip_masks + (1 - self.kp_weight) * masks
        return masks

    @torch.no_grad()
    def _draw_masks(self, images: Tensor, tokens: Tensor, captions: Sequence[str], count: int = 4) -> np.ndarray:
        """Draw images under the masks of their own and of another text, and captions: RGB uint8 [3, count*H, ...]."""
        images = images[:count]
        text = self.encode_text(tokens[: count + 1])
        masks = torch.sigmoid(self.sim2mask(self.pixel_embedding(images), text))
        pixels = self.denormalize_images(images)

        rows = []
        for i, image in enumerate(pixels):
            # Darken what is outside of the mask of its own text and of the next one
            pair = torch.stack([masks[i, i], masks[i, (i + 1) % len(text)]])[:, None]
            pair = F.interpolate(pair, size=image.shape[-2:], mode="nearest")
            row = torch.cat([image, *(image * (0.2 + 0.8 * mask) for mask in pair)], dim=-1)

            # Write the caption beside it
            row = row.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
            rows.append(np.concatenate([row, draw_text(captions[i], len(row), 260)], axis=1))
        return np.concatenate(rows).transpose(2, 0, 1)


def _is_label(input_per_image: dict) -> bool:
    """Return whether an image of a batch has a label and no text."""
    return "sem_seg" in input_per_image and not {"caption", "tokens"} & input_per_image.keys()


def _check_labels(labeled: list[dict]) -> None:
    """Check that labeled images have what TCL.forward asks for, and labels of their own size."""
    for input_per_image in labeled:
        missing = {"classes", "dataset_name"} - input_per_image.keys()
        if missing:
            raise ValueError(f"An image has a 'sem_seg' but no '{min(missing)}': see SemSegDatasetMapper.")
        sizes = [list(input_per_image[key].shape[-2:]) for key in ("sem_seg", "image")]
        if sizes[0] != sizes[1]:
            raise ValueError(f"A 'sem_seg' is {sizes[0]}, but its 'image' {sizes[1]}: expected the same size.")
