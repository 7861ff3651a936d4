"""The cache of ReCo's reference embeddings, in memory and in files."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ...utils.tensors import UnreadableFile, keep_tensors, read_tensors


def digest_texts(*facts: object) -> str:
    """Return a digest of texts, and of tensors to the precision of fp16."""
    digest = hashlib.blake2b(digest_size=16)
    for fact in facts:
        content = fact.half().cpu().numpy().tobytes() if isinstance(fact, Tensor) else str(fact).encode()
        digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()


class ReferenceCache:
    """Reference embeddings by a digest of all that they depend on."""

    def __init__(self, folder: Path | None = None):
        """Begin with an empty memory; with a folder, references are kept there too."""
        self.folder = folder
        self._references: dict[str, Tensor] = {}

    def get_all(
        self, keys: list[str], compute: Callable[[list[int]], Iterable[Tensor]], device: torch.device
    ) -> Tensor:
        """Return the references [W, C] of W digests; those that are missing are computed, and kept one by one.

        Args:
            compute: positions of the missing keys, at least one -> their references [C].
        """
        missing = [number for number, key in enumerate(keys) if not self._has(key)]
        if missing:
            for number, reference in zip(missing, compute(missing)):
                self._put(keys[number], reference.cpu())
        return torch.stack([self._references[key] for key in keys]).to(device)

    def _has(self, key: str) -> bool:
        if key not in self._references and self.folder is not None:
            with suppress(FileNotFoundError, UnreadableFile):
                self._references[key] = read_tensors(_file(self.folder, key))["reference"]
        return key in self._references

    def _put(self, key: str, reference: Tensor) -> None:
        self._references[key] = reference
        if self.folder is not None and not keep_tensors(_file(self.folder, key), {"reference": reference}):
            self.folder = None  # the warning comes once


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"
