"""Files of tensors: reading those from anywhere, without running code from them, and writing safetensors.

torch's own files (zip, with or without other plain values, and the older format), safetensors, and TorchScript archives
such as OpenAI distributes CLIP's weights in.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save
from torch import Tensor

from .files import replacing

# Settings that training checkpoints carry beside the weights. They are not needed: a stand-in takes their place, and
# nothing of theirs is imported or called.
_SETTINGS = re.compile(
    r"(omegaconf\.|yacs\.config\.|detectron2\.config\.config\.|mmcv\.utils\.config\.|addict\.|argparse\.Namespace$|"
    r"pathlib\.|typing\.|collections\.(defaultdict|OrderedDict)$|builtins\.(list|dict|int|float|str|bool|tuple|set)$)"
)


class UnreadableFile(ValueError):
    """A file that holds no tensors that can be read; the message says why, after the file's name."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes contiguous tensors as a .safetensors file, whole or not at all."""
    with replacing(path) as unfinished:
        # safetensors' own save_file makes files that their owner alone can read.
        unfinished.write_bytes(save(dict(tensors), metadata))


def read_tensors(path: str | Path) -> Any:
    """What torch.save or safetensors wrote: tensors on the CPU, and plain values around them.

    Large files are mapped, not read: the tensors take memory as they are used, and must not be written to.

    Raises:
        FileNotFoundError: no such file.
        UnreadableFile: empty, cut off, a web page, code in it, compressed, or no file of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    _refuse_what_is_none(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnreadableFile:
        raise
    except pickle.UnpicklingError as error:
        raise UnreadableFile(f"'{path}' {_reason(error)}") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        first = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise UnreadableFile(f"'{path}' is cut off, damaged, or no file of tensors ({first}): get it again") from None


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Look for NaN and Inf in the weights of a file: masks and scores made with them would be no error, but nonsense.

    Raises:
        ValueError: names the file, how many of its weights are bad, and the first.
    """
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if bad:
        raise ValueError(
            f"'{path}' is of no use: {len(bad)} of its {len(tensors)} weights have NaN or Inf, such as {bad[0]}. The "
            "training that wrote it went wrong, or the file is damaged: take an earlier checkpoint"
        )


def _is_finite(tensor: Tensor) -> bool:
    # The extremes are NaN or Inf if any value is. One pass without a copy: four times as fast as isfinite().all().
    return not tensor.numel() or all(extreme.isfinite() for extreme in torch.aminmax(tensor))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _refuse_what_is_none(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise UnreadableFile(f"'{path}' is empty: get it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnreadableFile(f"'{path}' is a web page, not weights: the download went to a page of the site")


def _reason(error: pickle.UnpicklingError) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None:
        return "is damaged, or no file of tensors that torch.save wrote: get it again"
    return (
        f"carries code ({named[1]}), which is not run: expected tensors and plain values alone. If you trust where it "
        "comes from, load it there and save its state dict"
    )


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        for name, info in infos.items():
            # torch stores its records as they are; a compressed one could unfold to any size, and mapped it is garbage.
            if info.compress_type != zipfile.ZIP_STORED and (name == "data.pkl" or name.startswith("data/")):
                raise UnreadableFile(f"'{path}' has compressed records ({name}), which torch never writes: refused")
        if "data.pkl" not in infos:
            raise UnreadableFile(f"'{path}' is a zip archive without tensors: expected a file that torch.save wrote")
        if "constants.pkl" in infos:
            return _read_torchscript(archive, infos)
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    settings = [name for name in unknown if _SETTINGS.match(name)]
    # yacs' nodes are filled like dicts, which torch's reader allows for the type itself alone.
    stand_ins = [(OrderedDict if name.endswith("CfgNode") else _StandIn, name) for name in settings]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


class _StandIn(dict):
    """In place of an object of another library: takes what it is given, and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "_StandIn":
        return dict.__new__(cls)

    def __init__(self, *args: object, **kwargs: object):
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.update(state if isinstance(state, dict) else {})


# -------------------------------------------------------------------------------------------------- TorchScript


def _read_torchscript(archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> dict[str, Tensor]:
    """The state dict of a TorchScript archive. torch.jit.load would also run code of it, and is deprecated."""
    with archive.open(infos["data.pkl"]) as file:
        root = _TorchScriptUnpickler(file, archive, infos).load()
    tensors = {}

    def walk(value: object, prefix: str) -> None:
        if isinstance(value, Tensor):
            tensors[prefix[:-1]] = value
        elif isinstance(value, _StandIn):
            for name, inner in value.items():
                walk(inner, f"{prefix}{name}.")

    walk(root, "")
    return tensors


_KINDS = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


class _TorchScriptUnpickler(pickle.Unpickler):
    """Rebuilds tensors; every other class becomes a stand-in for its attributes, and functions are refused."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]):
        super().__init__(file)
        self.archive = archive
        self.infos = infos

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _KINDS:
            return _KINDS[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if module.startswith("__torch__"):
            return _StandIn
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, key: tuple) -> Tensor:
        _, kind, name, _, count = key
        data = self.archive.read(self.infos[f"data/{name}"])
        if len(data) != count * kind.itemsize:
            raise pickle.UnpicklingError("a record's size differs from what is said of it")
        return torch.frombuffer(bytearray(data), dtype=kind) if data else torch.empty(0, dtype=kind)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)
