"""Private parts of other libraries, where no public one serves: here alone, each with its reason.

Versions: torch 2.11 to 2.14, Detectron2 0.6, gradio 6. tests/test_upstream.py fails where one of them changes.
"""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # documented for subclassing, but not public by its name
from torch.utils.flop_counter import flop_registry  # public are its counter, which counts no activations, and adding

if TYPE_CHECKING:
    import gradio
    from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
    from detectron2.utils.events import EventStorage

__all__ = [
    "TorchDispatchMode",
    "changes_in_place",
    "clicked",
    "flop_registry",
    "joined_evaluators",
    "mask_to_boundary",
    "num_waiting",
    "own_weights",
    "stored_pictures",
    "without_parameter",
]


def changes_in_place(tensor: Tensor) -> int:
    """Return a number that grows when a tensor is changed in place; 0 for one of inference mode, which has none.

    Autograd finds changes by it; a digest of the values would cost a pass over them.
    """
    return 0 if tensor.is_inference() else tensor._version


def own_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return what a module itself, without those in it, adds to a state dict.

    nn.Module.state_dict calls hooks, by which fully_shard would shard a model again.
    """
    tensors = {**module._parameters, **module._buffers}
    hidden = module._non_persistent_buffers_set
    return {name: tensor for name, tensor in tensors.items() if tensor is not None and name not in hidden}


def without_parameter(module: nn.Module, name: str) -> None:
    """Remove a parameter from a module made by copy.copy, and not from the module that it shares them with."""
    module._parameters = {**module._parameters, name: None}


def mask_to_boundary(mask: np.ndarray) -> np.ndarray:
    """Return what Detectron2's evaluator takes for the boundary of a mask, or of labels, uint8 [H, W].

    Of a mask, these are its pixels that are not farther from its outside than 2 percent of the image's diagonal. A copy
    of the rule could differ from the boundaries that Detectron2 reports.
    """
    from detectron2.evaluation import SemSegEvaluator

    return SemSegEvaluator._mask_to_boundary(None, mask)  # a method that uses nothing of its evaluator


def joined_evaluators(evaluators: "DatasetEvaluators") -> "list[DatasetEvaluator]":
    """Return the evaluators that Detectron2's DatasetEvaluators calls one after the other."""
    return evaluators._evaluators


def stored_pictures(storage: "EventStorage") -> list[tuple[str, np.ndarray, int]]:
    """Return the pictures put since the last clear_images: name, values [3, H, W] and iteration of each."""
    return storage._vis_data


def clicked(event: "gradio.EventData") -> dict:
    """Return what the browser says of an event; empty if it says nothing, or no names with values.

    Asked for an attribute, an event without data raises TypeError.
    """
    return event._data if isinstance(event._data, dict) else {}


def num_waiting(blocks: "gradio.Blocks") -> int:
    """Return how many requests to a page wait for their turn, which gradio's own address tells those who are let in."""
    return len(blocks._queue)
