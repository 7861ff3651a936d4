"""Frozen vision models of timm, whose features of patches training-free methods use beside CLIP's."""

import logging
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, cast

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import PatchEmbed, RotaryEmbeddingDinoV3
from timm.models import is_model_pretrained
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as read_dinov3_layout
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as read_dinov2_layout
from torch import Tensor, nn
from torch.func import functional_call

from ...utils.tensors import digest_weights
from ..functional import tokens_to_map
from . import shapes_vit  # noqa: F401  (registers its model)
from .last_block import LastBlock
from .positions import RESIZED_TO_GRID, KeptPositions, PositionRule
from .weights import load_weights, read_weights

logger = logging.getLogger(__name__)
VisionModel = VisionTransformer | Eva  # of timm
DINO_POSITIONS = PositionRule(offset=0.1)  # as DINO's release resizes them
DINOV2_POSITIONS = PositionRule(antialias="bicubic")  # as DINOv2's release does for models with registers
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class VisionEncoder(nn.Module):
    """Features of an image's patches by a frozen vision model, for images of any size and normalization."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: VisionModel,
        position: PositionRule = RESIZED_TO_GRID,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
    ):
        """Freeze a vision model from build_vision_model.

        Args:
            position: how position embeddings are resized.
            pixel_mean: RGB in 0..255 with which the images that come in were normalized; likewise `pixel_std`.
        """
        super().__init__()
        # In a tuple it is no submodule: its weights come by its name, and checkpoints of the model do not need them
        self._model = (model.requires_grad_(False).eval(),)
        self.position = position
        self._positions = KeptPositions()

        # The model sees images in the normalization that it was trained with: (x * std + mean - its_mean) / its_std
        mean, std, its_mean, its_std = (
            torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            for values in (pixel_mean, pixel_std, *model_normalization(model))
        )
        self.register_buffer("scale", std / its_std, persistent=False)
        self.register_buffer("shift", (mean - its_mean) / its_std, persistent=False)

    @property
    def model(self) -> Any:
        return self._model[0]

    @property
    def patch_size(self) -> int:
        return self.model.patch_embed.patch_size[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> "VisionEncoder":  # to a device or a dtype
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features after the final norm: normalized [B, 3, H, W] -> [B, C, h, w].

        A rest at the right and at the bottom that is no whole patch is not seen.
        """
        return tokens_to_map(self.tokens(images), self.grid(images))

    def tokens(self, images: Tensor) -> Tensor:
        """Compute all tokens after the final norm, prefix tokens such as the class's first: [B, p + h*w, C]."""
        return self._run(images, _Tokens(self.model))

    def values(self, images: Tensor) -> Tensor:
        """Compute the values of the last block's attention, heads joined: arguments and result as `forward`'s."""
        _, _, value = self.last_block(images).project_heads()
        return tokens_to_map(value.transpose(1, 2).flatten(2), self.grid(images))

    def last_block(self, images: Tensor) -> LastBlock:
        """Return the model's last block, with what it is given for images as `forward` takes them."""
        tokens = self._run(images, _BeforeLastBlock(self.model))
        rope: Any = self.model.rope if isinstance(self.model, Eva) else None
        return LastBlock(self.model, tokens, rope and rope.get_embed(shape=self.grid(images)))

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return how many rows and columns of patches images [B, 3, H, W] have."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _run(self, images: Tensor, part: "_Tokens | _BeforeLastBlock") -> Tensor:
        grid = self.grid(images)
        images = images[..., : grid[0] * self.patch_size, : grid[1] * self.patch_size]

        # Position embeddings, where there are any, are resized by this rule rather than by timm's
        replaced = {}
        if self.model.pos_embed is not None:
            size = tuple(self.model.patch_embed.grid_size)
            position = self._positions(self.position, self.model.pos_embed[0], size, grid)
            replaced["model.pos_embed"] = position[None]
        return functional_call(part, replaced, (images * self.scale + self.shift,))

    def weights(self) -> list[Tensor]:
        """Return all tensors that features depend on."""
        return [*self.model.state_dict().values(), self.scale, self.shift]

    def digest(self) -> str:
        """Return a digest of all that features depend on: weights, normalization, and the rule of positions."""
        normalization = [values.flatten().tolist() for values in (self.scale, self.shift)]
        return f"{digest_weights(self.model)} {normalization} {self.position}"


class _Tokens(nn.Module):
    """All tokens [B, p + h*w, C] of a model's images, after the final norm."""

    model: Any

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class _BeforeLastBlock(_Tokens):
    """All tokens [B, p + h*w, C] before a model's last block."""

    def forward(self, images: Tensor) -> Tensor:
        options = {"output_fmt": "NLC", "intermediates_only": True, "stop_early": True, "return_prefix_tokens": True}
        (tokens,) = self.model.forward_intermediates(images, indices=[len(self.model.blocks) - 2], **options)
        return tokens if isinstance(tokens, Tensor) else torch.cat(tokens[::-1], 1)  # a pair: patches, prefix tokens


def model_normalization(model: nn.Module) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of RGB in 0..255 that a timm model was trained with."""
    config = resolve_model_data_config(model)
    return [255 * value for value in config["mean"]], [255 * value for value in config["std"]]


@lru_cache(maxsize=1)
def load_vision_encoder(
    key: str,
    name: str,
    pretrained: str,
    position: PositionRule,
    pixel_mean: tuple[float, ...],
    pixel_std: tuple[float, ...],
) -> VisionEncoder:
    """Build a VisionEncoder of a model from build_vision_model; the last one is kept for the next call."""
    return VisionEncoder(build_vision_model(key, name, pretrained), position, pixel_mean, pixel_std)


def build_vision_model(key: str, name: str, pretrained: str) -> VisionModel:
    """Build a vision model that returns all its tokens.

    Args:
        key: has the next two as its NAME and PRETRAINED in the configuration; for errors.
        name: a VisionTransformer of timm, such as "vit_base_patch8_224.dino", or a DINOv3.
        pretrained: "timm" for the weights that timm names, a file or its address, or "" for random weights, the same
            each time. A classifier in the file is left out; files of DINOv2, DINOv3 and OpenAI's CLIP are read, too.

    Raises:
        ValueError: timm has no such model, it is neither of the two, or the file does not fit.
        OSError: the weights cannot be read.
    """
    check_vision_model(key, name)
    if pretrained == "timm" and not is_model_pretrained(name):
        raise ValueError(f"{key}.PRETRAINED is 'timm', which has no weights of '{name}': give a file of them.")

    # Build it; random weights are the same each time, for what was trained on them needs them again
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = cast(VisionModel, timm.create_model(name, pretrained=pretrained == "timm", num_classes=0))
    except OSError as error:
        raise OSError(
            f"{key}: the weights of '{name}' are neither in the local cache nor could they be downloaded "
            f"({type(error).__name__}). Run once where the network reaches the hub and keep its cache (HF_HOME), or "
            f"give a file of them: {key}.PRETRAINED /path/to/weights.safetensors"
        ) from None
    if pretrained not in ("", "timm"):
        state = _read_state(model, f"{key}.PRETRAINED", pretrained)
        load_weights(model, state, f"{key}.PRETRAINED: '{pretrained}' does not fit {key}.NAME '{name}'")
    mean, std = ([round(value, 1) for value in values] for values in model_normalization(model))
    logger.info("%s: '%s' was trained on images of mean %s and deviation %s, as timm says", key, name, mean, std)
    return _return_tokens(model)


def _read_state(model: VisionModel, key: str, path: str) -> dict[str, Tensor]:
    """Read a file of weights without a classifier, in timm's names or those of DINOv2, DINOv3 and OpenAI's CLIP."""
    state = read_weights(key, path)
    if "mask_token" in state or "visual.class_embedding" in state:
        state = read_dinov3_layout(state, model) if isinstance(model, Eva) else read_dinov2_layout(state, model)
    return {name: value for name, value in state.items() if not name.startswith(("head.", "head_dist."))}


@cache
def check_vision_model(key: str, name: str) -> int:
    """Return the side of a model's patches, before its weights are downloaded; ValueError as above."""
    if not timm.is_model(name):
        raise ValueError(
            f"{key}.NAME is '{name}', which timm {timm.__version__} does not have; expected a VisionTransformer, such "
            "as vit_base_patch8_224.dino, or a DINOv3."
        )

    with torch.device("meta"):
        model: Any = timm.create_model(name)
    if not (_has_positions_of_patches(model) or _is_dinov3(model)):
        description = type(model).__name__
        if isinstance(model, VisionTransformer) and not isinstance(model.patch_embed, PatchEmbed):
            description += " on the features of a convolutional network"
        raise ValueError(
            f"{key}.NAME is '{name}', a {description}; expected a VisionTransformer of timm with position embeddings, "
            "which gives a token for each patch, such as vit_base_patch8_224.dino, or a DINOv3, such as "
            "vit_base_patch16_dinov3."
        )
    return model.patch_embed.patch_size[0]


def _has_positions_of_patches(model: nn.Module) -> bool:
    is_plain = isinstance(model, VisionTransformer) and isinstance(model.patch_embed, PatchEmbed)
    return is_plain and model.pos_embed is not None


def _is_dinov3(model: nn.Module) -> bool:
    """Check for positions by RoPE alone, in images of any size; EVA's own models have position embeddings, too."""
    return isinstance(model, Eva) and model.pos_embed is None and isinstance(model.rope, RotaryEmbeddingDinoV3)


def _return_tokens(model: VisionModel) -> VisionModel:
    """Make the model return all tokens of windows of any size, with position embeddings as they are given."""
    # After the final norm, which some models have behind their pooling
    if isinstance(model, VisionTransformerDistilled):  # it takes no other pooling
        model.forward_head = _keep_tokens
    else:
        model.reset_classifier(0, global_pool="")

    # timm's own dynamic_img_size would resize the position embeddings a second time; a DINOv3 has none, and needs it
    if not isinstance(model, Eva):
        model.dynamic_img_size = model.patch_embed.strict_img_size = False
        model.patch_embed.flatten = True
    return model


def _keep_tokens(x: Tensor, pre_logits: bool = False) -> Tensor:
    return x
