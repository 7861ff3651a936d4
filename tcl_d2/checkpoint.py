"""Reading checkpoints: Detectron2's own and the official TCL release's, recognised by their layout."""

import re
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

# The official release's names -> ours, as regular expressions, first match wins.
_OFFICIAL_NAMES = (
    (r"clip_text_encoder\.", r"clip.model."),
    (r"clip_image_encoder\.clip_visual\.", r"clip.model.visual."),
    (r"clip_image_encoder\.clip_proj\.ln\.", r"clip.model.visual.ln_post."),
    (r"clip_image_encoder\.clip_proj\.proj$", r"clip.model.visual.proj"),
    (r"masker\.image_encoder\.backbone\.transformer\.resblocks\.", r"grounder.blocks."),
    (r"masker\.image_encoder\.decoder\.decoder\.net\.(\d+)\.conv\.", r"grounder.decoder.\1.conv1."),
    (r"masker\.image_encoder\.decoder\.decoder\.net\.(\d+)\.conv2\.", r"grounder.decoder.\1.conv2."),
    (r"masker\.image_encoder\.decoder\.image_proj\.ln\.", r"grounder.projection.norm."),
    (r"masker\.image_encoder\.decoder\.image_proj\.proj$", r"grounder.projection.weight"),
    (r"masker\.sim2mask\.", r"sim2mask."),
    (r"tcli_loss\.", r"losses.ImageTCLLoss."),
    (r"tclf_loss\.", r"losses.FeatureTCLLoss."),
)
_BLOCK = re.compile(r"(grounder\.blocks\.)(\d+)\.")


def is_official(state: dict[str, Any]) -> bool:
    """Whether a state dict has the official release's names."""
    return any(key.startswith("masker.") for key in state)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official release's state dict with our names, fp32; the copied blocks are counted from 0.

    The release keeps a copied block's number in the whole encoder; a checkpoint that counts from 0 is read too.
    """
    renamed = {}
    for key, value in state.items():
        for pattern, name in _OFFICIAL_NAMES:
            key, found = re.subn("^" + pattern, name, key)
            if found:
                break
        renamed[re.sub(r"\.gate\.gate$", ".gate", key)] = value.float() if value.is_floating_point() else value
    first = min((int(match[2]) for match in map(_BLOCK.match, renamed) if match), default=0)
    return {
        _BLOCK.sub(lambda match: f"{match[1]}{int(match[2]) - first}.", key): value for key, value in renamed.items()
    }


class TCLCheckpointer(DetectionCheckpointer):
    """A DetectionCheckpointer that also reads the official release's `.pth`, and unpickles nothing but tensors."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            loaded = torch.load(filename, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is none of its own
            reason = str(error).split("\n")[0] or type(error).__name__
            raise ValueError(
                f"MODEL.WEIGHTS: '{filename}' could not be read as a checkpoint that holds tensors and plain values: "
                f"{reason}"
            ) from None
        model = loaded.get("model", loaded) if isinstance(loaded, dict) else None
        if not isinstance(model, dict):
            raise ValueError(f"MODEL.WEIGHTS: '{filename}' holds no model: expected a dict with a state dict 'model'.")
        if is_official(model):
            return {"model": from_official(model)}
        return loaded if "model" in loaded else {"model": model}

    def _load_model(self, checkpoint: dict[str, Any]):
        known = self.model.state_dict().keys() & checkpoint["model"].keys()
        if not known:
            raise ValueError(
                f"MODEL.WEIGHTS: none of the checkpoint's weights is one of this {type(self.model).__name__}'s. "
                f"Its first names: {list(checkpoint['model'])[:3]}."
            )
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes:  # Detectron2 would go on with random weights in their place
            name, found, expected = incompatible.incorrect_shapes[0]
            raise ValueError(
                f"MODEL.WEIGHTS: the checkpoint does not fit the model: {len(incompatible.incorrect_shapes)} weights "
                f"differ in shape, such as {name}: {tuple(found)} in the file, {tuple(expected)} in the model. Was it "
                "trained with another MODEL.CLIP.NAME or MODEL.TCL?"
            )
        return incompatible
