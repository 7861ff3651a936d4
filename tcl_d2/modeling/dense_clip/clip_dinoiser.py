"""CLIP-DINOiser: MaskCLIP's features, pooled over similar patches (Wysoczanska et al., ECCV 2024, arXiv 2312.12359).

Two small convolutions on CLIP's own intermediate features say which patches are similar, and which show an object.
They are taught by DINO and FOUND, without text and labels.
"""

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.ranges import check_values
from ..encoders.clip import FrozenCLIP, run_block_with_norm, value_path
from ..encoders.clip_loading import image_tower
from ..encoders.positions import RESIZED_TO_GRID
from ..encoders.weights import load_weights, read_weights
from ..functional import self_similarity, tokens_to_map
from .heads import DENSE_HEAD_REGISTRY, DenseHead
from .teachers import Teacher

logger = logging.getLogger(__name__)
_KEY = "MODEL.DENSE_CLIP.DINOISER"
_PREFIX = "head."  # of the head's weights in a DenseCLIP's checkpoint


class CLIPDINOiserHead(DenseHead):
    """MaskCLIP's features, averaged over the patches that resemble each other.

    The two convolutions have the names of the release's file.
    """

    num_blocks = 3
    position = RESIZED_TO_GRID
    pad_to = None
    squeezes_padding = True

    def __init__(
        self,
        width: int,
        hidden: int = 256,
        gamma: float = 0.2,
        finds_objects: bool = True,
        teacher: Teacher | None = None,
    ):
        """Initialize the convolutions as PyTorch does, as the release begins to train.

        Args:
            width: channels of CLIP's blocks.
            hidden: channels in which patches are compared.
            gamma: correlations below it are 0; in training, DINO's from it on are the positives.
            finds_objects: whether there is the second convolution, for objects.
            teacher: makes the targets; None for a head that is not trained.
        """
        super().__init__()
        check_values(_KEY, GAMMA=gamma)
        self.obj_proj = nn.Conv2d(width, hidden, 3, padding=1, padding_mode="replicate")
        self.bkg_decoder: nn.Conv2d | Any = nn.Conv2d(width, 1, 1) if finds_objects else None
        self.gamma = gamma
        self._teacher: Teacher | Any = teacher  # private: ReCo's cache goes by the public attributes

    @property
    def finds_objects(self) -> bool:
        return self.bkg_decoder is not None

    def forward(
        self, clip: FrozenCLIP, tokens: Tensor, images: Tensor, with_objects: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        grid, last = clip.grid(images), len(clip.blocks) - 1
        tokens, normed = run_block_with_norm(clip.blocks[-self.num_blocks], tokens)
        tokens = clip.run_blocks(tokens, last + 2 - self.num_blocks, last)
        features = clip.project(value_path(clip.blocks[-1], tokens), grid)

        intermediate = tokens_to_map(normed, grid)
        pooled = self.pool(features, self.correlate(intermediate))
        return (pooled, self.object_logits(intermediate)) if with_objects else pooled

    def correlate(self, intermediate: Tensor) -> Tensor:
        """Compute the correlations fp32 [B, h*w, h*w] of patches, from CLIP's intermediate features [B, C, h, w]."""
        with torch.autocast(intermediate.device.type, enabled=False):  # pairs close to the threshold flip
            return self_similarity(self.obj_proj(intermediate.float()))

    def object_logits(self, intermediate: Tensor) -> Tensor:
        """Compute the logits of objects fp32 [B, 1, h, w], from CLIP's intermediate features [B, C, h, w]."""
        with torch.autocast(intermediate.device.type, enabled=False):
            return self.bkg_decoder(F.normalize(intermediate.float(), dim=1))

    def pool(self, features: Tensor, correlations: Tensor) -> Tensor:
        """Average features [B, D, h, w], not normalized, over patches by their correlations [B, h*w, h*w]."""
        with torch.autocast(features.device.type, enabled=False):
            weights = correlations.masked_fill(correlations < self.gamma, 0)
            pooled = (weights @ features.float().flatten(2).transpose(1, 2)) / (weights.sum(-1, keepdim=True) + 1e-6)
            return pooled.transpose(1, 2).unflatten(2, features.shape[-2:])

    # ------------------------------------------------------------------------------------ training

    def compute_losses(self, clip: FrozenCLIP, images: Tensor, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Compute the losses by name: patches are as similar as the teacher says, and objects are where masks are.

        Args:
            images: normalized, [B, 3, H, W], of whole patches.
            batched_inputs: with `objects`, the probability of an object, fp32 [1, h', w'] of any resolution, where the
                head finds objects.
        """
        with torch.no_grad():
            tokens = clip.forward_blocks(images, len(clip.blocks) - self.num_blocks, position=self.position)
            _, normed = run_block_with_norm(clip.blocks[-self.num_blocks], tokens)
            intermediate = tokens_to_map(normed, clip.grid(images))
            similar = self._teacher(images) >= self.gamma

        losses = {"loss_correlation": bce(self.correlate(intermediate).clamp(min=0), similar)}
        if self.finds_objects:
            logits = self.object_logits(intermediate)
            losses["loss_objects"] = bce(logits, object_targets(batched_inputs, logits))
        return losses

    def parameter_groups(self, cfg: CfgNode) -> list[dict]:
        decay = cfg.SOLVER.WEIGHT_DECAY
        groups = [{"params": list(self.obj_proj.parameters()), "weight_decay": decay}]
        if self.finds_objects:
            parameters = list(self.bkg_decoder.parameters())
            groups.append({"params": parameters, "weight_decay": decay, "lr": cfg.MODEL.DENSE_CLIP.DINOISER.OBJECT_LR})
        return groups


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the binary cross-entropy of logits and a target (bool) of the same shape, the mean over all."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def object_targets(batched_inputs: list[dict], logits: Tensor) -> Tensor:
    """Return which patches show an object, bool [B, 1, h, w], by the `objects` of a batch's inputs."""
    maps = []
    for input_per_image in batched_inputs:
        objects = input_per_image["objects"].to(logits.device)[None]
        maps.append(F.interpolate(objects, size=logits.shape[-2:], mode="bilinear", align_corners=False))
    return torch.cat(maps) > 0.5  # after they are resized


@DENSE_HEAD_REGISTRY.register()
def clip_dinoiser(cfg: CfgNode) -> CLIPDINOiserHead:
    dinoiser, clip = cfg.MODEL.DENSE_CLIP.DINOISER, cfg.MODEL.CLIP.NAME
    head = CLIPDINOiserHead(
        image_tower(clip).width, gamma=dinoiser.GAMMA, finds_objects=dinoiser.FIND_OBJECTS, teacher=Teacher(cfg)
    )
    if dinoiser.WEIGHTS:
        state = _read_head(dinoiser.WEIGHTS, dinoiser.FIND_OBJECTS)
        unfit = f"{_KEY}.WEIGHTS: '{dinoiser.WEIGHTS}' does not fit a clip_dinoiser for MODEL.CLIP.NAME '{clip}'"
        load_weights(head, state, unfit)
    elif not cfg.MODEL.WEIGHTS:
        logger.warning("%s.WEIGHTS and MODEL.WEIGHTS are empty: CLIP-DINOiser's convolutions have random weights", _KEY)
    return head


def _read_head(path: str, finds_objects: bool) -> dict[str, Tensor]:
    """Read a head's weights from the release's file, or from a DenseCLIP's checkpoint."""
    state = read_weights(f"{_KEY}.WEIGHTS", path)
    if any(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    if not finds_objects:
        state = {name: value for name, value in state.items() if not name.startswith("bkg_decoder.")}
    return state
