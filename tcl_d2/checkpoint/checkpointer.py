"""The checkpointer: reads our and official checkpoints, accounts for every weight, and writes whole files."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import detectron2
import open_clip
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..files import replacing
from ..tensors import read_metadata, read_tensors
from ..version import __version__
from .official import from_official, is_official

logger = logging.getLogger(__name__)


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of ours or of the official release, recognised by its names, as {"model": our state dict, ...}.

    A safetensors file may hold either; what it says of itself is its "card".

    Raises:
        FileNotFoundError, ValueError: see read_tensors; or there is no model in it.
    """
    loaded = read_tensors(path)
    if str(path).endswith(".safetensors"):
        loaded = {"model": loaded, "card": json.loads(read_metadata(path).get("card", "{}"))}
    model = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(model, dict) or not any(isinstance(value, Tensor) for value in model.values()):
        raise ValueError(f"'{path}' holds no model: expected a state dict, or a dict with a state dict 'model'")
    rest = {key: value for key, value in loaded.items() if key != "model"} if "model" in loaded else {}
    return {**rest, "model": from_official(model) if is_official(model) else model}


def make_card(cfg: CfgNode) -> dict[str, str]:
    """What a checkpoint says of itself: the model, its CLIP, data, versions, and the whole configuration (YAML)."""
    return {
        "model": cfg.MODEL.META_ARCHITECTURE,
        "CLIP": f"{cfg.MODEL.CLIP.NAME}, {cfg.MODEL.CLIP.PRETRAINED or 'random weights'}",
        "trained on": ", ".join(cfg.DATASETS.TRAIN),
        "versions": f"tcl_d2 {__version__}, torch {torch.__version__}, detectron2 {detectron2.__version__}",
        "configuration": cfg.dump(),
    }


class TCLCheckpointer(DetectionCheckpointer):
    """A DetectionCheckpointer that also reads the official release's `.pth`, and unpickles nothing but tensors.

    Files are written whole or not at all. Weights that are missing, or of another shape, are an error where Detectron2
    goes on with random ones.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, card: dict[str, str] | None = None, **checkpointables: Any
    ):
        """
        Args:
            card: what checkpoints say of themselves (see make_card).
        """
        super().__init__(model, save_dir, **checkpointables)
        self.card = card

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Writes {save_dir}/{name}.pth; OSError if that fails: the last checkpoint stays what it was.

        Args:
            tag: whether it becomes the last checkpoint, from which a training is resumed.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        try:
            with replacing(path) as unfinished:
                torch.save({"model": self.model.state_dict(), **states, **kwargs, "card": self.card}, unfinished)
            if tag:
                self.tag_last_checkpoint(path.name)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            last = f"the last whole one is {self.get_checkpoint_file()}" if self.has_checkpoint() else "there is none"
            raise OSError(f"Checkpoint {path} could not be written ({error}): {last}. Is the disk full?") from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replacing(Path(self.save_dir, "last_checkpoint")) as unfinished:
            unfinished.write_text(last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._file = filename
        try:
            loaded = read_checkpoint(filename)
        except ValueError as error:
            raise ValueError(f"MODEL.WEIGHTS: {error}") from None
        if not self.checkpointables.keys() & loaded.keys() and (rest := loaded.keys() - {"model", "card"}):
            logger.info("%s: not read, for it is no part of the model: %s", filename, ", ".join(sorted(rest)))
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]):
        state = {name.removeprefix("module."): value for name, value in checkpoint["model"].items()}
        own = self.model.state_dict()
        self._check_fits(state, own)
        checkpoint["model"] = dict(state)  # which the base class takes out
        incompatible = super()._load_model(checkpoint)
        logger.info("%s: %d of its %d weights are used", self._file, len(own.keys() & state.keys()), len(state))
        return incompatible

    def _check_fits(self, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
        kind = type(self.model).__name__
        if not own.keys() & state.keys():
            raise ValueError(
                f"MODEL.WEIGHTS: none of the weights of '{self._file}' is one of this {kind}'s. Its first names: "
                f"{list(state)[:3]}."
            )
        differing = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if differing:
            name = min(differing)
            theirs, ours = _clip_of(state), _clip_of(own)
            clips = f" It was made with {theirs}; the model has {ours} (MODEL.CLIP.NAME)." if theirs != ours else ""
            raise ValueError(
                f"MODEL.WEIGHTS: '{self._file}' does not fit the model: {len(differing)} weights differ in shape, such "
                f"as {name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model.{clips}"
            )
        missing = [name for name in own.keys() - state.keys() if not name.startswith(("clip.", "losses."))]
        blocks = [name for name in state.keys() - own.keys() if name.startswith("grounder.blocks.")]
        if missing or (blocks and kind == "TCL"):
            raise ValueError(
                f"MODEL.WEIGHTS: '{self._file}' does not fit the model: it "
                + (f"lacks {len(missing)} weights, such as {min(missing)}" if missing else f"has also {min(blocks)}")
                + ". Was it trained with another MODEL.TCL.FREEZE or DECODER_BLOCKS?"
            )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Says for every weight that is not in the file, or not in the model, why."""
        kind = type(self.model).__name__
        missing = Counter(name.split(".")[0] for name in incompatible.missing_keys)
        if missing["clip"]:
            logger.info("Not in the file: %d weights of the frozen CLIP; MODEL.CLIP.PRETRAINED's stay", missing["clip"])
        if missing["losses"]:
            logger.info("Not in the file: %d scales of losses; they start anew", missing["losses"])
        for name in incompatible.unexpected_keys:
            parts = ("grounder.", "sim2mask.", "losses.")
            reason = f"a {kind} has no such part" if name.startswith(parts) else "no weight of the model has this name"
            logger.info("Not used: %s (%s)", name, reason)


def _clip_of(state: dict[str, Tensor]) -> str:
    """The CLIP that a state dict was made with, by its shapes, with the names of open_clip's models that have them."""
    projection = state.get("grounder.projection.weight", state.get("clip.model.visual.proj"))
    if projection is None:
        return "an unknown CLIP"
    width, dim = projection.shape
    patch = state["clip.model.visual.conv1.weight"].shape[-1] if "clip.model.visual.conv1.weight" in state else None

    def fits(config: dict) -> bool:
        vision = config["vision_cfg"]
        return (
            config["embed_dim"] == dim
            and vision.get("width", 768) == width
            and isinstance(vision.get("layers", 12), int)
            and patch in (None, vision.get("patch_size", 16))
            and "timm_model_name" not in vision
        )

    names = sorted((name for name in open_clip.list_models() if fits(open_clip.get_model_config(name))), key=len)
    return f"a CLIP of width {width} and {dim} dimensions" + (f" (such as {', '.join(names[:3])})" if names else "")
