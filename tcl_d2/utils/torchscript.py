"""Reading the tensors of a TorchScript archive, such as OpenAI's CLIP weights, without running its code.

torch.jit.load would also load the archive's code, and is deprecated.
"""

import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
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


class StandIn(dict):
    """Stands for an object of another library: keeps its attributes, and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "StandIn":
        return dict.__new__(cls)

    def __init__(self, *args: object, **kwargs: object):
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.update(state if isinstance(state, dict) else {})


def read_torchscript(archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo]) -> dict[str, Tensor]:
    """Return the state dict of an open TorchScript archive; `records` are its entries without the top folder.

    Raises:
        pickle.UnpicklingError: the archive calls a function, or a record has another size than stated.
    """
    with archive.open(records["data.pkl"]) as file:
        root = _Unpickler(file, archive, records).load()
    tensors = {}

    def collect(value: object, prefix: str) -> None:
        if isinstance(value, Tensor):
            tensors[prefix[:-1]] = value
        elif isinstance(value, StandIn):
            for name, attribute in value.items():
                collect(attribute, f"{prefix}{name}.")

    collect(root, "")
    return tensors


class _Unpickler(pickle.Unpickler):
    """Rebuilds tensors; objects of other classes become stand-ins, and functions are refused."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo]):
        super().__init__(file)
        self.archive = archive
        self.records = records

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if module.startswith("__torch__"):
            return StandIn
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, key: tuple) -> Tensor:
        _, dtype, name, _, count = key
        data = self.archive.read(self.records[f"data/{name}"])
        if len(data) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"record {name} has another size than the archive says")
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)
