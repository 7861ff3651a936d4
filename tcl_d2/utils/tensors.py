"""Reading files of tensors from anywhere without running code from them, and writing safetensors.

It reads torch's own files (the zip format and the older one, with plain values or settings beside the tensors),
safetensors, and TorchScript archives.
"""

import hashlib
import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, safe_open, save
from torch import Tensor

from .files import is_web_page, replacing
from .torchscript import StandIn, read_torchscript

logger = logging.getLogger(__name__)

# Settings that training checkpoints carry beside the weights. They are not needed: a stand-in takes their place, and
# nothing of them is imported or called.
_SETTINGS = re.compile(
    r"(omegaconf\.|yacs\.config\.|detectron2\.config\.config\.|mmcv\.utils\.config\.|addict\.|argparse\.Namespace$|"
    r"pathlib\.|typing\.|collections\.(defaultdict|OrderedDict)$|builtins\.(list|dict|int|float|str|bool|tuple|set)$)"
)


class UnreadableFile(ValueError):
    """A file whose tensors cannot be read; the message says why, after the file's name."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file, whole or not at all.

    Args:
        path: of the file.
        tensors: contiguous, by name.
        metadata: texts beside them, by name.
    """
    with replacing(path) as unfinished:
        # safetensors' own save_file makes files that only their owner can read.
        unfinished.write_bytes(save(dict(tensors), metadata))


def keep_tensors(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Write a file of a cache as save_tensors; where it cannot be written, a warning says so.

    Returns:
        whether it was written; if not, what it would hold is computed again another time.
    """
    try:
        save_tensors(path, tensors)
    except OSError as error:
        logger.warning("Nothing is kept in the cache %s, which cannot be written: %s", path.parent, error.strerror)
        return False
    return True


def read_tensors(path: str | Path) -> Any:
    """Read what torch.save or safetensors wrote: tensors on the CPU, and plain values around them.

    Large files are mapped, not read: the tensors take memory as they are used, and must not be written to.

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
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnreadableFile:
        raise
    except pickle.UnpicklingError as error:
        raise UnreadableFile(f"'{path}' {_reason(error)}") from None
    except Exception as error:  # a wrong byte can make torch's reader raise any type
        first = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise UnreadableFile(f"'{path}' is cut off, damaged, or no file of tensors ({first}): get it again") from None


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the texts that a safetensors file carries beside its tensors; UnreadableFile where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UnreadableFile(f"'{path}' is cut off, damaged, or no file of tensors ({error}): get it again") from None


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Look for NaN and Inf in the weights of a file: a model with them gives nonsense without an error.

    Raises:
        ValueError: names the file, how many of its weights are bad, and the first.
    """
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if bad:
        raise ValueError(
            f"'{path}' is of no use: {len(bad)} of its {len(tensors)} weights have NaN or Inf, such as {bad[0]}. The "
            "training that wrote it went wrong, or the file is damaged: take an earlier checkpoint"
        )


def digest_weights(model: torch.nn.Module) -> str:
    """Return a digest of all weights of a model."""
    return digest_tensors(model.state_dict())


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors and their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()))
    return digest.hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    # The extremes are NaN or Inf if any value is. One pass without a copy: four times as fast as isfinite().all().
    return not tensor.numel() or all(extreme.isfinite() for extreme in torch.aminmax(tensor))


def _refuse_text(path: Path) -> None:
    """Raise UnreadableFile for an empty file and for a web page."""
    if not path.stat().st_size:
        raise UnreadableFile(f"'{path}' is empty: get it again")
    with path.open("rb") as file:
        is_page = is_web_page(file)
    if is_page:
        raise UnreadableFile(f"'{path}' is a web page, not weights: the download went to a page of the site")


def _reason(error: pickle.UnpicklingError) -> str:
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    if name is None:
        return "is damaged, or no file of tensors that torch.save wrote: get it again"
    return (
        f"carries code ({name[1]}), which is not run: expected only tensors and plain values. If you trust its source, "
        "load it there and save its state dict"
    )


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        # Check the records
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        for name, info in records.items():
            # torch never compresses: such a record could unfold to any size, and mapped it would be garbage.
            if info.compress_type != zipfile.ZIP_STORED and (name == "data.pkl" or name.startswith("data/")):
                raise UnreadableFile(f"'{path}' has compressed records ({name}), which torch never writes: refused")
        if "data.pkl" not in records:
            raise UnreadableFile(f"'{path}' is a zip archive without tensors: expected a file that torch.save wrote")

        if "constants.pkl" in records:
            return read_torchscript(archive, records)

    # Put stand-ins in the place of settings; of the types that may be filled like dicts, torch's reader knows only
    # OrderedDict, and yacs' nodes are filled so
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    settings = [name for name in unknown if _SETTINGS.match(name)]
    stand_ins = [(OrderedDict if name.endswith("CfgNode") else StandIn, name) for name in settings]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
