"""Registering the plugin with Detectron2: each part as soon as the part of Detectron2 that it adds to is imported.

Importing them takes seconds, which nobody who uses other parts alone, or asks for --help, need wait for.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType

from .utils.imports import find_by_others

_METHODS = ("tcl", "dense_clip", "groupvit", "reco", "talk2dino", "tips")
_SEM_SEG_EVALUATION = "detectron2.evaluation.sem_seg_evaluation"


@contextmanager
def without_warnings() -> Iterator[None]:
    """Leave out torch's warnings of `torch.jit.script`, which Detectron2 uses and the user does not."""
    import torch  # noqa: F401  (adds filters of its own, which stay)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit.script. is", FutureWarning)
        yield


def register() -> None:
    """Register each part when Detectron2's is imported, or now if it was."""
    for name in ("fvcore.nn", "detectron2.layers"):
        _after_import(name, tuple)  # without their warnings, also if this project imports them first
    _after_import("detectron2.utils.file_io", partial(import_module, "tcl_d2.assets"))
    _after_import("detectron2.data", partial(import_module, "tcl_d2.data.builtin"))
    _after_import("detectron2.modeling", _register_models)
    _after_import(_SEM_SEG_EVALUATION, _read_labels_under_numpy_2)


def _after_import(name: str, function: Callable[[], None]) -> None:
    """Call a function when a module has been imported, or now."""
    if name in sys.modules:
        function()
    elif not any(isinstance(finder, _AfterImport) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(name, function))


def _register_models() -> None:
    for name in _METHODS:
        import_module(f"tcl_d2.modeling.{name}.model")


def _read_labels_under_numpy_2() -> None:
    """Let Detectron2's SemSegEvaluator read labels by its default function under NumPy 2.

    The function passes copy=False together with another dtype, which NumPy 2 refuses. None copies there where that is
    needed, as False did before, which has no None.
    """
    if version("numpy").startswith("1."):
        return
    read = getattr(sys.modules[_SEM_SEG_EVALUATION], "load_image_into_numpy_array", None)
    if getattr(read, "__defaults__", None) == (False, None):  # copy, dtype; not mended by Detectron2 itself
        read.__defaults__ = (None, None)


class _AfterImport(MetaPathFinder):
    """Calls a function when a module has been imported."""

    def __init__(self, name: str, function: Callable[[], None]):
        self.name = name
        self.function = function

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        spec = find_by_others(self, name, path, target)
        if spec is not None:
            spec.loader.exec_module = partial(self._execute, spec.loader.exec_module)
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        with without_warnings():
            execute(module)
        sys.meta_path.remove(self)  # only now: a module may be looked for without being imported
        self.function()
