"""Reading files of tensors without running code from them, and writing safetensors.

It reads torch's own files (the zip format and the older one, with plain values or settings beside the tensors),
safetensors, TorchScript archives, and NumPy's .npz.
"""

import hashlib
import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save
from torch import Tensor, nn

from .files import replacing
from .http_stream import is_web_page
from .torchscript import StandIn, read_torchscript
from .upstream import changes_in_place, own_weights

logger = logging.getLogger(__name__)

# Settings that training checkpoints carry beside the weights. They are not needed: a stand-in takes their place, and
# nothing of them is imported or called.
_SETTINGS = re.compile(
    r"(omegaconf\.|yacs\.config\.|detectron2\.config\.config\.|mmcv\.utils\.config\.|addict\.|argparse\.Namespace$|"
    r"numpy\.|_codecs\.encode$|"  # numbers and arrays of numpy
    r"pathlib\.|typing\.|collections\.(defaultdict|OrderedDict)$|builtins\.(list|dict|int|float|str|bool|tuple|set)$)"
)
_STATES = ("model", "state_dict", "model_state_dict")  # under which files have their state dict
# What DistributedDataParallel and torch.compile put before the names of weights
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")


class UnreadableFile(ValueError):
    """A file whose tensors cannot be read; the message says why, after the file's name."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors and texts beside them as a .safetensors file, whole or not at all."""
    with replacing(path) as unfinished:
        # safetensors' own save_file makes files that only their owner can read.
        unfinished.write_bytes(save(dict(tensors), metadata))


def keep_tensors(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Write a file of a cache as save_tensors; return False, with a warning, if it cannot be written."""
    try:
        save_tensors(path, tensors)
    except OSError as error:
        logger.warning("Nothing is kept in the cache %s, which cannot be written: %s", path.parent, error.strerror)
        return False
    return True


def read_tensors(path: str | Path) -> Any:
    """Read a file of torch.save, safetensors or numpy.savez: tensors on the CPU, and plain values around them.

    Large files are memory-mapped; their tensors must not be written to.

    Raises:
        FileNotFoundError: no such file.
        UnreadableFile: empty, cut off, a web page, code in it, compressed, or no file of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    _refuse_text(path)

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        is_zip = zipfile.is_zipfile(path)
        state = _read_torchscript(path) if is_zip else None
        return _read_pickled(path, mmap=is_zip) if state is None else state
    except UnreadableFile:
        raise
    except pickle.UnpicklingError as error:
        raise UnreadableFile(f"'{path}' {_reason(error)}") from None
    except Exception as error:  # a wrong byte can make torch's reader raise any type
        first = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise UnreadableFile(f"'{path}' is cut off, damaged, or no file of tensors ({first}): get it again") from None


def split_checkpoint(loaded: Any, path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the content of a file into a state dict and the rest.

    The state dict is under "model", "state_dict" or "model_state_dict", or all tensors of the file. Its names come
    without the prefixes of DistributedDataParallel and torch.compile.

    Raises:
        ValueError: there is no state dict, or two of its weights have one name; names `path`.
    """
    content = loaded if isinstance(loaded, dict) else {}
    keys = [key for key in _STATES if isinstance(content.get(key), dict)]
    if keys:
        state, beside = content[keys[0]], {name: value for name, value in content.items() if name != keys[0]}
    else:
        state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        beside = {name: value for name, value in content.items() if name not in state}

    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        given = f"the names {list(state or content)[:3]}" if content else f"a {type(loaded).__name__}"
        raise ValueError(
            f"'{path}' holds no model: expected a state dict, or a dict with a state dict under "
            f"{', '.join(map(repr, _STATES))}; it has {given}"
        )
    unwrapped = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    if len(unwrapped) < len(state):
        raise ValueError(f"'{path}' has two weights with one name, but for 'module.' and '_orig_mod.'")
    return unwrapped, beside


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the texts beside a safetensors file's tensors; UnreadableFile if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UnreadableFile(f"'{path}' is cut off, damaged, or no file of tensors ({error}): get it again") from None


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a ValueError for NaN and Inf in a file's weights: such a model gives nonsense without an error."""
    # The extremes are NaN or Inf if any value is. One pass without a copy: four times as fast as isfinite().all().
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    bad = [name for name, x in floats.items() if not all(extreme.isfinite() for extreme in torch.aminmax(x))]
    if bad:
        raise ValueError(
            f"'{path}' is of no use: {len(bad)} of its {len(tensors)} weights have NaN or Inf, such as {bad[0]}. The "
            "training that wrote it went wrong, or the file is damaged: take an earlier checkpoint"
        )


class LastValue:
    """The value that was computed last, kept while its key stays the same."""

    def __init__(self):
        self._last: tuple[object, Any] | None = None

    def __call__(self, key: object, compute: Callable[[], Any]) -> Any:
        last = self._last  # another thread may replace it
        if last is None or last[0] != key:
            last = self._last = key, compute()
        return last[1]


def weights_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return what a model's state dict has, in its order, in the middle of a forward too.

    For a state dict, fully_shard would shard the model again.
    """
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, tensor in own_weights(module).items()
    }


def weights_version(tensors: Iterable[Tensor]) -> list[tuple]:
    """Return a value that changes when weights are loaded, trained in place, replaced or moved; a cheap digest."""
    return [(x.device, x.dtype, x.data_ptr(), changes_in_place(x)) for x in tensors]


def have_equal_weights(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two modules on one device have the same weights under the same names."""
    weights, others = weights_by_name(first), weights_by_name(second)
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def digest_weights(model: nn.Module, names: Container[str] | None = None) -> str:
    """Return a digest of a model's weights, or of the named ones, and of its activations."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in weights_by_name(model).items():
        if names is None or name in names:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()))

    # QuickGELU goes unsaid, so that the index of an archive stays that of OpenAI's CLIP, which has made it
    digest.update(b"GELU" * sum(isinstance(module, nn.GELU) for module in model.modules()))
    return digest.hexdigest()


def _refuse_text(path: Path) -> None:
    """Raise UnreadableFile for an empty file or a web page."""
    if not path.stat().st_size:
        raise UnreadableFile(f"'{path}' is empty: get it again")
    with path.open("rb") as file:
        if is_web_page(file):
            raise UnreadableFile(f"'{path}' is a web page, not weights: the download went to a page of the site")


def _unsafe_name(error: pickle.UnpicklingError) -> str:
    """Return the name that torch's reader, or ours, refused to import; "" for other errors."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    if match is None:
        return ""
    return match[1] if "." in match[1] else f"builtins.{match[1]}"


def _reason(error: pickle.UnpicklingError) -> str:
    name = _unsafe_name(error)
    if not name:
        return "is damaged, or no file of tensors that torch.save wrote: get it again"
    return (
        f"carries code ({name}), which is not run: expected only tensors and plain values. If you trust its source, "
        "load it there and save its state dict"
    )


def _read_torchscript(path: Path) -> dict[str, Tensor] | None:
    """Read a zip archive if it is TorchScript's; UnreadableFile unless it, or torch.save, made the archive."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        for name, info in records.items():
            # torch never compresses: such a record could unfold to any size, and mapped it would be garbage.
            if info.compress_type != zipfile.ZIP_STORED and (name == "data.pkl" or name.startswith("data/")):
                raise UnreadableFile(f"'{path}' has compressed records ({name}), which torch never writes: refused")
        if "data.pkl" not in records:
            raise UnreadableFile(f"'{path}' is a zip archive without tensors: expected a file that torch.save wrote")
        return read_torchscript(archive, records) if "constants.pkl" in records else None


def _read_pickled(path: Path, mmap: bool) -> Any:
    """Read a file of torch.save, with stand-ins for settings, which the reader names one by one."""
    stand_ins: dict[str, type] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            name = _unsafe_name(error)
            if name in stand_ins or not _SETTINGS.match(name):
                raise
            # Of the types that may be filled like dicts, torch's reader knows only OrderedDict; yacs' nodes are so
            stand_ins[name] = OrderedDict if name.endswith("CfgNode") else StandIn
