"""Importing optional packages, and users' code, which registers datasets, models or losses."""

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import LazyLoader
from pathlib import Path
from types import ModuleType


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add --import to a command's options; its values are a list, `imports`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE",
        help="import a module or a .py file of yours first, which registers datasets, models or losses; repeatable",
    )


def import_code(name: str) -> None:
    """Import a module, found as by `python -m`, or a file that ends in .py; once in a process.

    Raises:
        ValueError: there is no such module or file, or its code raises an error; says where.
    """
    try:
        if name.endswith(".py"):
            _import_file(Path(name).resolve())
        else:
            _search_in(os.getcwd())
            importlib.import_module(name)
    except Exception as error:
        message = f"'{name}' (--import or IMPORTS) could not be imported: {type(error).__name__}: {error}"
        raise ValueError(message + _place_of(error)) from error


def import_lazily(name: str) -> None:
    """Let the first `import NAME` load nothing until an attribute is asked for, by Python's own LazyLoader.

    It is for what a library imports at its top and few of its users need.
    """
    is_lazy = any(isinstance(finder, _LazyFinder) and finder.name == name for finder in sys.meta_path)
    if name not in sys.modules and not is_lazy:
        sys.meta_path.insert(0, _LazyFinder(name))


def find_by_others(finder: MetaPathFinder, name: str, path: object, target: object) -> ModuleSpec | None:
    """Return the spec that the finders besides this one give a module."""
    found = (other.find_spec(name, path, target) for other in sys.meta_path if other is not finder)
    return next(filter(None, found), None)


class _LazyFinder(MetaPathFinder):
    def __init__(self, name: str):
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        spec = find_by_others(self, name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def import_optional(name: str, needed_by: str, package: str = "") -> ModuleType:
    """Import an optional package; RuntimeError names what needs it, and the package to install if its name differs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"{needed_by} needs {name}, which cannot be imported ({error}): pip install {package or name}"
        ) from None


def _import_file(path: Path) -> None:
    """Import a file with its whole path as name, which no other module has."""
    name = str(path)
    if name in sys.modules:
        return
    _search_in(str(path.parent))  # for the modules beside it, as when Python runs it
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)

    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _search_in(folder: str) -> None:
    """Let modules be found in a folder, after all others, so that a file there hides none."""
    if folder not in sys.path:
        sys.path.append(folder)


def _place_of(error: Exception) -> str:
    """Return the line of the imported code that raised an error; "" if none of it ran."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    return f" ({frames[0].filename}, line {frames[0].lineno})" if frames else ""
