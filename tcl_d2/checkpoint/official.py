"""The official TCL release's names of weights, and ours."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# (official, ours); of several that fit, the longest counts.
_PREFIXES = (
    ("clip_text_encoder.", "clip.model."),
    ("clip_image_encoder.clip_visual.", "clip.model.visual."),
    ("clip_image_encoder.clip_proj.ln.", "clip.model.visual.ln_post."),
    ("clip_image_encoder.clip_proj.proj", "clip.model.visual.proj"),
    ("masker.image_encoder.backbone.transformer.resblocks.", "grounder.blocks."),
    ("masker.image_encoder.decoder.decoder.net.", "grounder.decoder."),
    ("masker.image_encoder.decoder.image_proj.ln.", "grounder.projection.norm."),
    ("masker.image_encoder.decoder.image_proj.proj", "grounder.projection.weight"),
    ("masker.sim2mask.", "sim2mask."),
    ("tcli_loss.", "losses.ImageTCLLoss."),
    ("tclf_loss.", "losses.FeatureTCLLoss."),
)
_BLOCK = re.compile(r"(grounder\.blocks\.)(\d+)\.")


def is_official(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has the official release's names."""
    return any(key.startswith("masker.") for key in state)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official release's state dict with our names; the copied blocks are counted from 0.

    The release keeps a copied block's number in the whole encoder; a checkpoint that counts from 0 is read too.
    """
    renamed = {}
    for key, value in state.items():
        key = _replace_prefix(key, _PREFIXES)
        key = re.sub(r"^(grounder\.decoder\.\d+)\.conv\.", r"\1.conv1.", key)
        renamed[re.sub(r"\.gate\.gate$", ".gate", key)] = value
    return _shift_blocks(renamed, -min(_block_numbers(renamed), default=0))


def to_official(state: Mapping[str, Tensor], freeze: int) -> dict[str, Tensor]:
    """Our state dict with the official release's names.

    Args:
        freeze: blocks of the image encoder that are not copied (MODEL.TCL.FREEZE): the number of the first copied one.
    """
    renamed = {}
    for key, value in _shift_blocks(state, freeze).items():
        key = re.sub(r"^(grounder\.decoder\.\d+)\.conv1\.", r"\1.conv.", key)
        key = re.sub(r"^(grounder\.decoder\..+)\.gate$", r"\1.gate.gate", key)
        renamed[_replace_prefix(key, [(ours, official) for official, ours in _PREFIXES])] = value
    return renamed


def _replace_prefix(key: str, pairs: list | tuple) -> str:
    fitting = [pair for pair in pairs if key.startswith(pair[0])]
    if not fitting:
        return key
    old, new = max(fitting, key=lambda pair: len(pair[0]))
    return new + key[len(old) :]


def _block_numbers(state: Mapping[str, Tensor]) -> set[int]:
    return {int(match[2]) for match in map(_BLOCK.match, state) if match}


def _shift_blocks(state: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    return {_BLOCK.sub(lambda match: f"{match[1]}{int(match[2]) + by}.", key): value for key, value in state.items()}
