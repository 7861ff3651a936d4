"""TIPSv2's two towers, which meet at their width without a projection."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..encoders.positions import PositionRule
from ..encoders.renaming import rename_weights
from ..encoders.vision import VisionEncoder, VisionModel, build_vision_model
from ..encoders.weights import load_weights, read_weights
from ..functional import tokens_to_map
from .base import PatchTextEncoder
from .text import PADDING

TIPS_POSITIONS = PositionRule(antialias="bilinear")  # as its release resizes them
_SECTION = "MODEL.TIPS"
_PREFIX = "vision_encoder."  # of the image tower's weights in the hub's file
_NAMES = (  # the release's and timm's, see rename_weights
    ("register_tokens", "reg_token"),
    ("blocks.#.mlp.w12.*", "blocks.#.mlp.fc1.*"),
    ("blocks.#.mlp.w3.*", "blocks.#.mlp.fc2.*"),
)


class TIPSEncoder(PatchTextEncoder):
    """TIPSv2's image tower, a VisionTransformer of timm, and its text tower on transformers."""

    def __init__(self, vision: VisionModel, text: Any, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        """Freeze two towers of one width.

        Args:
            vision: from build_vision_model.
            text: from build_text_tower.
            pixel_mean: RGB in 0..255 with which the images that come in were normalized; likewise `pixel_std`.

        Raises:
            ValueError: the towers have different widths.
        """
        super().__init__(nn.ModuleDict({"vision": vision, "text": text}))
        self.vision = VisionEncoder(vision, TIPS_POSITIONS, pixel_mean, pixel_std)
        self.embed_dim, self.patch_size = vision.embed_dim, self.vision.patch_size
        width = text.config.hidden_size
        if width != self.embed_dim:
            raise ValueError(
                f"{_SECTION}.NAME gives features of {self.embed_dim} numbers, but {_SECTION}.TEXT of {width}: expected "
                "the two towers of one model"
            )

    def encode_text(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, : max(1, int((tokens != PADDING).sum(1).max()))]  # longer padding changes nothing
        return self.model["text"](input_ids=tokens, attention_mask=(tokens != PADDING).long()).pooler_output

    def encode_patches(self, images: Tensor) -> Tensor:
        """Compute the features [B, D, h, w] of normalized images by the values of the last block (MaskCLIP's rule)."""
        tokens = self.vision.last_block(images).finish(each_alone=True)
        return tokens_to_map(tokens, self.vision.grid(images))


def build_image_tower(name: str, pretrained: str) -> VisionModel:
    """Build the image tower, as build_vision_model, which also reads the release's files and the hub's."""
    if pretrained in ("", "timm"):
        return build_vision_model(_SECTION, name, pretrained)
    tower = build_vision_model(_SECTION, name, "")
    state = read_weights(f"{_SECTION}.PRETRAINED", pretrained)
    if "reg_token" not in state:  # no file of timm's
        state = _from_release(state, pretrained)
    load_weights(tower, state, f"{_SECTION}.PRETRAINED: '{pretrained}' does not fit {_SECTION}.NAME '{name}'")
    return tower


def _from_release(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Rename the image tower of a state dict, the release's or the hub's, for timm.

    timm's own function would also resize position embeddings, without a word and by another rule.
    """
    is_of_hub = any(name.startswith(_PREFIX) for name in state)
    state = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX * is_of_hub)}
    if not state.keys() >= {"cls_token", "register_tokens", "pos_embed"}:
        raise ValueError(
            f"{_SECTION}.PRETRAINED: '{path}' has no image tower of TIPSv2; expected a file of timm's, the release's "
            "..._vision.npz, or the hub's model.safetensors"
        )

    # timm adds the class token's position to it beforehand, and has no token of masks
    state.pop("mask_token", None)
    position = state["pos_embed"]
    state |= {"cls_token": state["cls_token"] + position[:, :1], "pos_embed": position[:, 1:]}
    return rename_weights(state, _NAMES)
