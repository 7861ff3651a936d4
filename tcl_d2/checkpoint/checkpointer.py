"""The checkpointer: reads our and official checkpoints, accounts for every weight, and writes whole files."""

import json
import logging
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..modeling import FrozenCLIP, FrozenDualEncoder
from ..utils.downloads import local_weights
from ..utils.files import replacing
from ..utils.tensors import check_finite, read_metadata, read_tensors, split_checkpoint
from .card import carried_activation, check_resume
from .official import from_clip_dinoiser, from_official, is_clip_dinoiser, is_official

logger = logging.getLogger(__name__)


def warn_if_untrained(cfg: CfgNode) -> None:
    """Warn of a TCL without weights, whose grounder segments at random."""
    if cfg.MODEL.META_ARCHITECTURE == "TCL" and not cfg.MODEL.WEIGHTS:
        logger.warning("MODEL.WEIGHTS is empty: the grounder of this TCL model is untrained")


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a .pth or .safetensors file, ours or of an official release, which is recognized by its names.

    Returns:
        model: our state dict, {name: tensor}.
        card: what the checkpoint says of itself (see make_card); may be missing or None.
        iteration, trainer, ...: as they are in the file.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, has no model, or a damaged card.
    """
    loaded = read_tensors(path)
    if str(path).endswith(".safetensors"):
        loaded = {"model": loaded, "card": _read_json(read_metadata(path).get("card", "{}"))}

    model, rest = split_checkpoint(loaded, path)
    if not _maps_texts(rest.get("card") or {}):
        raise ValueError(f"'{path}' has a damaged card: expected texts by name, as make_card gives them")
    if is_official(model):
        model = from_official(model)
        rest["card"] = {"CLIP": "OpenAI's, as in the official release", "activation": "QuickGELU"}
    elif is_clip_dinoiser(model):
        model = from_clip_dinoiser(model)
        rest["card"] = {"CLIP": "ViT-B-16, laion2b_s34b_b88k, as in CLIP-DINOiser's release", "activation": "GELU"}
    return {**rest, "model": model}


def fetch_weights(path: str) -> str:
    """Return the local path of MODEL.WEIGHTS; "" for none."""
    return local_weights("MODEL.WEIGHTS", path) if path else ""


def _maps_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for item in value.items() for text in item)


def _unwrap(model: nn.Module) -> nn.Module:
    """Return a model without DistributedDataParallel and torch.compile, whose prefixes checkpoints go without."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return _unwrap(model.module)
    compiled = dict(model.named_children()).get("_orig_mod")
    return model if compiled is None else _unwrap(compiled)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (RecursionError, ValueError):
        return text  # read_checkpoint refuses it as a card


class TCLCheckpointer(DetectionCheckpointer):
    """A DetectionCheckpointer that also reads the official release's `.pth`, and unpickles nothing but tensors.

    Files are written whole or not at all. Weights that are missing, or of another shape, are an error where Detectron2
    goes on with random ones.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, card: dict[str, str] | None = None, **checkpointables: Any
    ):
        """Build the checkpointer.

        Args:
            model: also under DistributedDataParallel and torch.compile.
            save_dir: folder for checkpoints; "" to write none.
            card: goes into checkpoints (see make_card).
            checkpointables: saved and restored beside the model, by name.
        """
        super().__init__(_unwrap(model), save_dir, **checkpointables)
        self.card = card
        clip = getattr(self.model, "clip", None)
        if card is not None and isinstance(clip, FrozenCLIP):
            self.card = {**card, "activation": clip.activation}
        self._source = "MODEL.WEIGHTS"  # what to blame for a file that does not fit

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Write {save_dir}/{name}.pth; with `tag` it becomes the checkpoint that --resume goes on from."""
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
        except (OSError, RuntimeError) as error:  # on a full disk torch's writer raises RuntimeError
            message = f"Checkpoint {path} could not be written ({error}). Is the disk full? {self._way_on()}"
            raise OSError(message) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replacing(self._tag) as unfinished:
            unfinished.write_text(last_filename_basename)

    @property
    def _tag(self) -> Path:
        return Path(self.save_dir, "last_checkpoint")

    def has_checkpoint(self) -> bool:
        return os.path.lexists(self._tag)  # one that cannot be read is an error, not a fresh start

    def get_checkpoint_file(self) -> str:
        """Return the path that last_checkpoint names; ValueError says how to go on if there is none."""
        name = self._tag.read_text(errors="replace").strip() if self._tag.is_file() else ""
        if not name or not Path(self.save_dir, name).is_file():
            problem = f"--resume: '{self._tag}', which names the checkpoint to go on from, is missing or names no file"
            raise ValueError(f"{problem} beside it ('{name[:80]}'). {self._way_on()}")
        return str(Path(self.save_dir, name))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load all states from the checkpoint that last_checkpoint names or, without one, the weights of a file alone.

        Raises:
            ValueError: the last checkpoint is missing, cut off, or does not fit this training; says how to go on.
        """
        # With checkpoints, but no last_checkpoint, a training must not start anew; given weights can be evaluated
        has_others = self.save_dir and any(Path(self.save_dir).glob("model_*.pth"))
        needs_last = has_others and (self.checkpointables or not path)
        if resume and (self.has_checkpoint() or needs_last):
            last = self.get_checkpoint_file()
            self._check_last(last)
            self._source = "--resume"
            return self.load(last)
        return self.load(path, checkpointables=[])

    def _check_last(self, path: str) -> None:
        """Check that a checkpoint is whole and that the training can go on from it; ValueError says how to go on."""
        try:
            checkpoint = read_checkpoint(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"--resume: {error}. {self._way_on()}") from None
        if not self._has_states(checkpoint):
            raise ValueError(f"--resume: '{path}' has weights, but no training to go on with. {self._way_on()}")
        if self.card is not None:
            check_resume(path, checkpoint, self.card)

    def _has_states(self, checkpoint: dict[str, Any]) -> bool:
        """Return whether a checkpoint has all that this checkpointer restores; in an evaluation, only the model."""
        if not self.checkpointables:
            return True
        return self.checkpointables.keys() <= checkpoint.keys() and isinstance(checkpoint.get("iteration"), int)

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

        # The best one is a choice, not where the training stopped: it counts where there is no other.
        if len(iterations) > 1:
            iterations.pop(Path(self.save_dir, "model_best.pth"), None)
        return max(iterations.items(), key=lambda item: item[1], default=None)

    def _way_on(self) -> str:
        """Return a text that names the last whole checkpoint and says how to go on from it."""
        last = self._find_last_whole()
        if last is None:
            return "There is no whole checkpoint: start over without --resume, or in another OUTPUT_DIR"
        path, iterations = last
        return (
            f"The last whole checkpoint is '{path}', of {iterations} iterations: to go on from it, run "
            f"`echo {shlex.quote(path.name)} > {shlex.quote(str(self._tag))}`, then the same with --resume; to "
            "start over, give another OUTPUT_DIR"
        )

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        path = path or ""  # Detectron2 takes None for no weights
        is_address = path.startswith(("http://", "https://"))
        self._remedy = f" (it is what {path} gave: remove it to get it again)" if is_address else ""
        return super().load(fetch_weights(path), *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        self._file = filename
        try:
            loaded = read_checkpoint(filename)
            check_finite(loaded["model"], filename)
        except ValueError as error:
            raise ValueError(f"{self._source}: {error}{self._remedy}") from None

        unused = sorted(str(key) for key in loaded.keys() - {"model", "card"})
        if unused and not self.checkpointables.keys() & loaded.keys():
            logger.info("%s: not read, for it is no part of the model: %s", filename, ", ".join(unused))
        return loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state, model_state = checkpoint["model"], self.model.state_dict()
        self._check_activation(checkpoint)
        if problem := self._find_misfit(state, model_state):
            raise ValueError(f"{self._source}: '{self._file}' does not fit the model: {problem}")

        checkpoint["model"] = dict(state)  # the base class takes it out
        incompatible = super()._load_model(checkpoint)
        num_used = len(model_state.keys() & state.keys())
        logger.info("%s: %d of its %d weights are used", self._file, num_used, len(state))
        return incompatible

    def _check_activation(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError if a checkpoint was trained with another activation; warn if GELU is a guess."""
        clip = getattr(self.model, "clip", None)
        if not isinstance(clip, FrozenCLIP):
            return

        trained = carried_activation(checkpoint, self._file)
        if trained not in ("", clip.activation):
            raise ValueError(
                f"{self._source}: '{self._file}' was trained with a CLIP that has {trained}, but the model's has "
                f"{clip.activation}. MODEL.CLIP.NAME says which: a name of open_clip's that ends in -quickgelu, such "
                "as ViT-B-16-quickgelu, or the same without it"
            )

        if not trained and clip.activation == "GELU" and any(name.startswith("clip.") for name in checkpoint["model"]):
            logger.warning(
                "'%s' brings its own CLIP, but does not say whether that has GELU, as the model's, or QuickGELU. For "
                "QuickGELU, give a MODEL.CLIP.NAME that ends in -quickgelu, such as ViT-B-16-quickgelu",
                self._file,
            )

    def _find_misfit(self, state: dict[str, Tensor], model_state: dict[str, Tensor]) -> str:
        """Return why a state dict cannot be loaded; "" if it can."""
        common = model_state.keys() & state.keys()
        if not common:
            return f"it has none of the weights of a {type(self.model).__name__}. Its first names: {list(state)[:3]}."

        # Shapes; another CLIP is the usual reason
        differing = sorted(name for name in common if model_state[name].shape != state[name].shape)
        if differing:
            name, clips = differing[0], [_describe_clip(state), _describe_clip(model_state)]
            reason = " It was made with {}; the model has {} (MODEL.CLIP.NAME).".format(*clips)
            return (
                f"{len(differing)} weights differ in shape, such as {name}: {tuple(state[name].shape)} in the file, "
                f"{tuple(model_state[name].shape)} in the model.{reason if clips[0] != clips[1] else ''}"
            )

        # A frozen CLIP comes from MODEL.CLIP.PRETRAINED; scales of losses may start over
        may_lack, keys = ("losses.",), "MODEL.GROUPVIT.DEPTHS"
        if isinstance(getattr(self.model, "clip", None), FrozenDualEncoder):
            may_lack, keys = ("clip.", "losses.", "kp_head."), "MODEL.TCL.FREEZE or DECODER_BLOCKS"
            if any(name.startswith("head.") for name in model_state):
                keys = "MODEL.DENSE_CLIP.HEAD, or DINOISER.FIND_OBJECTS"
        missing = sorted(name for name in model_state.keys() - state.keys() if not name.startswith(may_lack))
        extra_blocks = sorted(name for name in state.keys() - model_state.keys() if name.startswith("grounder.blocks."))
        if missing:
            return f"it lacks {len(missing)} weights, such as {missing[0]}. Was it trained with another {keys}?"
        if extra_blocks and type(self.model).__name__ == "TCL":
            return f"it has also {extra_blocks[0]}. Was it trained with another {keys}?"
        return ""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Log what is not in the file, and each weight that is not in the model."""
        missing = Counter(name.split(".")[0] for name in incompatible.missing_keys)
        if missing["clip"]:
            logger.info("Not in the file: %d weights of the frozen CLIP; MODEL.CLIP.PRETRAINED's stay", missing["clip"])
        if missing["losses"]:
            logger.info("Not in the file: %d scales of losses; they start over", missing["losses"])
        for name in incompatible.unexpected_keys:
            logger.info("Not used: %s (a %s has no such weight)", name, type(self.model).__name__)


def _describe_clip(state: dict[str, Tensor]) -> str:
    """Describe the CLIP that a state dict was made with, by its shapes."""
    projection = state.get("grounder.projection.weight", state.get("clip.model.visual.proj"))
    if projection is None or projection.ndim != 2:
        return "an unknown CLIP"
    width, embed_dim = projection.shape
    return f"a CLIP of width {width} and {embed_dim} dimensions"
