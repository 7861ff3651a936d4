"""State dicts with the names of official releases, TCL's and CLIP-DINOiser's, and with ours."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

# (official prefix, our prefix); the first one that fits a name counts.
_PREFIXES = (
    ("clip_image_encoder.clip_proj.ln.", "clip.model.visual.ln_post."),
    ("clip_image_encoder.clip_proj.proj", "clip.model.visual.proj"),
    ("clip_image_encoder.clip_visual.", "clip.model.visual."),
    ("clip_text_encoder.", "clip.model."),
    ("masker.image_encoder.backbone.transformer.resblocks.", "grounder.blocks."),
    ("masker.image_encoder.decoder.decoder.net.", "grounder.decoder."),
    ("masker.image_encoder.decoder.image_proj.ln.", "grounder.projection.norm."),
    ("masker.image_encoder.decoder.image_proj.proj", "grounder.projection.weight"),
    ("masker.sim2mask.", "sim2mask."),
    ("tcli_loss.", "losses.ImageTCLLoss."),
    ("tclf_loss.", "losses.FeatureTCLLoss."),
)
_CLIP_DINOISER = {"obj_proj.weight", "obj_proj.bias", "bkg_decoder.weight", "bkg_decoder.bias"}
_BLOCK = re.compile(r"(grounder\.blocks\.)(\d+)\.")


def is_official(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict has the official release's names."""
    return any(key.startswith("masker.") for key in state)


def is_clip_dinoiser(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict has the names of CLIP-DINOiser's release, whose file has two convolutions alone."""
    return state.keys() == _CLIP_DINOISER


def from_clip_dinoiser(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of CLIP-DINOiser's release with our names, those of a DenseCLIP's head."""
    return {f"head.{name}": value for name, value in state.items()}


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the official release's state dict with our names; the copied blocks are counted from 0.

    The release keeps a copied block's number in the whole encoder; a checkpoint that counts from 0 is read too.
    """
    renamed = {}
    for key, value in state.items():
        key = _replace_prefix(key, _PREFIXES)
        key = re.sub(r"^(grounder\.decoder\.\d+)\.conv\.", r"\1.conv1.", key)
        key = re.sub(r"\.gate\.gate$", ".gate", key)
        renamed[key] = value

    blocks = (int(match[2]) for match in map(_BLOCK.match, renamed) if match)
    return _shift_blocks(renamed, -min(blocks, default=0))


def to_official(state: Mapping[str, Tensor], freeze: int) -> dict[str, Tensor]:
    """Return our state dict with the official release's names; `freeze` is the number of the first copied block."""
    our_prefixes = [(ours, official) for official, ours in _PREFIXES]
    renamed = {}
    for key, value in _shift_blocks(state, freeze).items():
        key = re.sub(r"^(grounder\.decoder\.\d+)\.conv1\.", r"\1.conv.", key)
        key = re.sub(r"^(grounder\.decoder\..+)\.gate$", r"\1.gate.gate", key)
        renamed[_replace_prefix(key, our_prefixes)] = value
    return renamed


def _replace_prefix(key: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Replace the first old prefix that fits by its new one; pairs are (old, new)."""
    return next((new + key.removeprefix(old) for old, new in pairs if key.startswith(old)), key)


def _shift_blocks(state: Mapping[str, Tensor], offset: int) -> dict[str, Tensor]:
    """Add an offset to the numbers of the grounder's blocks."""

    def shift(match: re.Match) -> str:
        return f"{match[1]}{int(match[2]) + offset}."

    return {_BLOCK.sub(shift, key): value for key, value in state.items()}
