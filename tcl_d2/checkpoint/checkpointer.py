"""The checkpointer: reads our and official checkpoints, accounts for every weight, and writes whole files."""

import json
import logging
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import open_clip
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..utils.files import replacing
from ..utils.tensors import check_finite, read_metadata, read_tensors
from .card import check_resume
from .official import from_official, is_official

logger = logging.getLogger(__name__)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of ours or of the official release, recognised by its names.

    Returns:
        "model": our state dict, {name: tensor}.
        "card": what it says of itself (see make_card); may be missing or None.
        Whatever else the file holds, under its names.

    Raises:
        FileNotFoundError, ValueError: see read_tensors; or there is no model in it, or no card where it should be.
    """
    loaded = read_tensors(path)
    if str(path).endswith(".safetensors"):
        loaded = {"model": loaded, "card": _read_json(read_metadata(path).get("card", "{}"))}

    # The model
    model = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not model or not _maps_strings_to(Tensor, model):
        raise ValueError(f"'{path}' holds no model: expected a state dict, or a dict with a state dict 'model'")

    # What is beside it
    rest = {key: value for key, value in loaded.items() if key != "model"} if "model" in loaded else {}
    if not _maps_strings_to(str, rest.get("card") or {}):
        raise ValueError(f"'{path}' has a damaged card: expected texts by name, as make_card gives them")
    return {**rest, "model": from_official(model) if is_official(model) else model}


def _maps_strings_to(expected: type, value: Any) -> bool:
    """Return whether a value is a dict of names and values of one type."""
    pairs = value.items() if isinstance(value, dict) else [(None, None)]
    return all(isinstance(name, str) and isinstance(entry, expected) for name, entry in pairs)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # which is no card


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
        self._source = "MODEL.WEIGHTS"  # what to blame for a file that does not fit

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
            last = self._find_last_whole()
            resort = f"the last whole one is {last[0]}" if last else "there is none"
            raise OSError(f"Checkpoint {path} could not be written ({error}): {resort}. Is the disk full?") from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replacing(self._tag) as unfinished:
            unfinished.write_text(last_filename_basename)

    @property
    def _tag(self) -> Path:
        return Path(self.save_dir, "last_checkpoint")

    def has_checkpoint(self) -> bool:
        return os.path.lexists(self._tag)  # one that cannot be read is an error, not a fresh start

    def get_checkpoint_file(self) -> str:
        """Return the path of the checkpoint that last_checkpoint names.

        Raises:
            ValueError: it names no file; says which checkpoint there is, and how to go on.
        """
        try:
            name = self._tag.read_text(errors="replace").strip()
        except OSError as error:
            raise ValueError(f"--resume: '{self._tag}' could not be read: {error}. {self._way_on()}") from None
        if not name or not Path(self.save_dir, name).is_file():
            raise ValueError(f"--resume: '{self._tag}' names '{name[:80]}', no file beside it. {self._way_on()}")
        return str(Path(self.save_dir, name))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load all states from the checkpoint that last_checkpoint names or, without one, the weights of a file alone.

        Args:
            path: of the file of weights; "" for none.

        Raises:
            ValueError: last_checkpoint is gone while there are checkpoints, names no file or one that is cut off, or
                that checkpoint does not fit this training; says how to go on.
        """
        if resume and self.has_checkpoint():
            last = self.get_checkpoint_file()
            self._check_last(last)
            self._source = "--resume"
            return self.load(last)

        names = sorted(file.name for file in Path(self.save_dir).glob("model_*.pth")) if self.save_dir else []
        if resume and names and (self.checkpointables or not path):
            listed = ", ".join(names if len(names) <= 4 else ["...", *names[-4:]])
            raise ValueError(
                f"--resume: '{self.save_dir}' has checkpoints ({listed}), but no file last_checkpoint, which names the "
                f"one to go on from. {self._way_on()}"
            )
        return self.load(path, checkpointables=[])

    def _check_last(self, path: str) -> None:
        """Raise ValueError, with a way on, where a checkpoint is cut off or the training cannot go on from it."""
        try:
            checkpoint = read_checkpoint(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"--resume: {error}. {self._way_on()}") from None
        if not self._has_states(checkpoint):
            raise ValueError(f"--resume: '{path}' has weights, but no training to go on with. {self._way_on()}")
        if self.card is not None:
            check_resume(path, checkpoint, self.card)

    def _has_states(self, checkpoint: dict[str, Any]) -> bool:
        """Return whether all is there that this checkpointer restores: nothing but the model in an evaluation."""
        return not self.checkpointables or (
            self.checkpointables.keys() <= checkpoint.keys() and isinstance(checkpoint.get("iteration"), int)
        )

    def _find_last_whole(self) -> tuple[Path, int] | None:
        """Return the path and iterations of the last checkpoint in the folder that can be read; None for none."""
        iterations = {}
        for path in Path(self.save_dir).glob("model_*.pth"):
            try:
                checkpoint = read_checkpoint(str(path))
            except (OSError, ValueError):
                continue
            if self._has_states(checkpoint):
                iterations[path] = checkpoint.get("iteration", -1) + 1
        # The best one is a choice, not where the training stopped: it is named where there is no other.
        return max(iterations.items(), key=lambda item: (item[0].name != "model_best.pth", item[1]), default=None)

    def _way_on(self) -> str:
        """Say which whole checkpoint is the last, and how to go on from it."""
        last = self._find_last_whole()
        if last is None:
            return "There is no whole checkpoint: begin anew, without --resume or in another OUTPUT_DIR"
        path, iterations = last
        return (
            f"The last whole checkpoint is '{path}', of {iterations} iterations: to go on from it, run "
            f"`echo {shlex.quote(path.name)} > {shlex.quote(str(self._tag))}`, then the same with --resume; to begin "
            "anew, give another OUTPUT_DIR"
        )

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._file = filename
        try:
            loaded = read_checkpoint(filename)
            check_finite(loaded["model"], filename)
        except ValueError as error:
            raise ValueError(f"{self._source}: {error}") from None
        if not self.checkpointables.keys() & loaded.keys() and (rest := loaded.keys() - {"model", "card"}):
            logger.info("%s: not read, for it is no part of the model: %s", filename, ", ".join(sorted(map(str, rest))))
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
                f"{self._source}: none of the weights of '{self._file}' is one of this {kind}'s. Its first names: "
                f"{list(state)[:3]}."
            )
        differing = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if differing:
            name = min(differing)
            theirs, ours = _clip_of(state), _clip_of(own)
            clips = f" It was made with {theirs}; the model has {ours} (MODEL.CLIP.NAME)." if theirs != ours else ""
            raise ValueError(
                f"{self._source}: '{self._file}' does not fit the model: {len(differing)} weights differ in shape, "
                f"such as {name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model.{clips}"
            )
        missing = [name for name in own.keys() - state.keys() if not name.startswith(("clip.", "losses."))]
        blocks = [name for name in state.keys() - own.keys() if name.startswith("grounder.blocks.")]
        if missing or (blocks and kind == "TCL"):
            raise ValueError(
                f"{self._source}: '{self._file}' does not fit the model: it "
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
    if projection is None or projection.ndim != 2:
        return "an unknown CLIP"
    width, dim = projection.shape
    patches = state.get("clip.model.visual.conv1.weight")
    patch = patches.shape[-1] if patches is not None and patches.ndim == 4 else None

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
