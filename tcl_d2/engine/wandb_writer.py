"""Metrics and pictures of a training in Weights & Biases."""

import sys
import uuid
from collections import defaultdict
from types import ModuleType
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from ..utils.imports import import_optional
from ..utils.upstream import stored_pictures

_WINDOW_SIZE = 20  # iterations over which losses are smoothed, as in Detectron2's writers


def import_wandb() -> ModuleType:
    """Import the package; RuntimeError where it is missing."""
    return import_optional("wandb", "WANDB.PROJECT")


class WandbWriter(EventWriter, HookBase):
    """Writes the scalars and pictures of Detectron2's writers to a run of WANDB.PROJECT; as a hook, it starts the run.

    Checkpoints have the run's ID, so that a resumed training goes on with its run. All else, such as WANDB_MODE=offline
    and WANDB_NAME, is left to wandb's own environment variables.
    """

    def __init__(self, cfg: CfgNode):
        """Choose a new run."""
        self._wandb = import_wandb()
        self._cfg = cfg
        self._run_id = uuid.uuid4().hex
        self._last_write = -1
        self._run: Any = None

    # ------------------------------------------------------------------------------------ as a hook

    def before_train(self) -> None:
        try:
            self._run = self._wandb.init(
                project=self._cfg.WANDB.PROJECT,
                dir=self._cfg.OUTPUT_DIR,
                config=yaml.safe_load(self._cfg.dump()),
                id=self._run_id,
                resume="allow",
            )
        except self._wandb.Error as error:
            raise OSError(
                f"WANDB.PROJECT '{self._cfg.WANDB.PROJECT}': the run could not be started ({error}). Log in with wandb "
                "login, or set WANDB_MODE=offline"
            ) from None

        # By iteration, not by wandb's own step, which may not go back to that of an earlier checkpoint
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def state_dict(self) -> dict:
        return {"run_id": self._run_id}

    def load_state_dict(self, state_dict: dict) -> None:
        self._run_id = state_dict["run_id"]

    # ------------------------------------------------------------------------------------ as a writer

    def write(self) -> None:
        # Gather new values by iteration
        storage = get_event_storage()
        values = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(_WINDOW_SIZE).items():
            if iteration > self._last_write:
                values[iteration][name] = value
        for name, picture, iteration in stored_pictures(storage):  # TensorBoard's writer, which comes later, clears it
            values[iteration][name] = self._wandb.Image(picture.transpose(1, 2, 0))

        for iteration, row in sorted(values.items()):
            self._run.log({"iteration": iteration, **row})
        self._last_write = max(values, default=self._last_write)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
