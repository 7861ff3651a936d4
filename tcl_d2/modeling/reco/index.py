"""An index of an archive of images: CLIP's embedding of each image, and where the image lies.

It is a folder of files 00000-of-00332.safetensors, one for each shard, or for so many images of a folder:

    features   fp16 [n, D], normalized
    spans      int64 [n, 3]: number of the image's file, its first byte there, its size in bytes (-1: the whole file)
    files      uint8: the files' paths relative to the index, each ended by a zero
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from ...utils.files import open_path
from ...utils.images import BrokenSample, read_image
from ...utils.tensors import digest_weights, read_metadata, read_tensors, save_tensors
from ..encoders.clip import FrozenCLIP
from ..functional import normalize
from ..segmentor.base import ZeroShotSegmentor

_ROWS_AT_ONCE = 16384  # of an index that are compared with texts at once
_PARTS = "[0-9]*-of-[0-9]*.safetensors"


# --------------------------------------------------------------------------------------------- images


class ImageRecord(NamedTuple):
    """Where an image of an archive lies."""

    file: str  # the image's own, or the .tar that it is in
    start: int = 0  # its first byte there
    size: int = -1  # in bytes; -1 for the whole file

    def read(self) -> Image.Image:
        """Read the image as RGB; BrokenSample if it cannot be read."""
        name = self.file if self.size < 0 else f"{self.file} at byte {self.start}"
        try:
            with open_path(self.file) as file:
                file.seek(self.start)
                content = file.read(self.size)
        except OSError as error:
            raise BrokenSample("unreadable image", name, error) from None
        return read_image(content, name)


class ArchiveImages(Dataset):
    """Squares of images, uint8 [3, size, size]: resized by the short side, cropped at the center.

    In place of an image that cannot be read, there is a text that says why.
    """

    def __init__(self, records: Sequence[ImageRecord], size: int, interpolation: InterpolationMode):
        self.records = records
        self._cut_square = Compose([Resize(size, interpolation), CenterCrop(size), PILToTensor()])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return cast(Tensor, self._cut_square(self.records[index].read()))
        except BrokenSample as error:
            return str(error)


def iterate_images(images: ArchiveImages, batch_size: int, num_workers: int = 0) -> Iterator[list[Tensor | str]]:
    """Yield images in their order, in batches, with texts in place of those that cannot be read."""
    return iter(DataLoader(images, batch_size, num_workers=num_workers, collate_fn=list))


class ImageEmbedder:
    """Embeds images for an index by the CLIP of a segmentor."""

    def __init__(self, model: ZeroShotSegmentor):
        self.model = model
        self.clip = cast(FrozenCLIP, model.clip)
        self.size: int = self.clip.visual.image_size[0]

    @torch.no_grad()
    def __call__(self, images: list[Tensor]) -> Tensor:
        """Embed images uint8 [3, size, size] -> features fp32 [n, D], normalized."""
        return normalize(self.clip.encode_image(self.model.normalize_images(images)), 1)

    def digest(self) -> str:
        """Return a digest of what embeddings depend on: all of CLIP's weights, and the normalization."""
        normalization = [values.flatten().tolist() for values in (self.model.pixel_mean, self.model.pixel_std)]
        facts = f"{digest_weights(self.clip)} {normalization}"
        return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


# --------------------------------------------------------------------------------------------- the index


def part_path(folder: Path, number: int, count: int) -> Path:
    """Return the path of one of an index's files."""
    return folder / f"{number:05d}-of-{count:05d}.safetensors"


def save_part(path: Path, records: Sequence[ImageRecord], features: Tensor, metadata: Mapping[str, str]) -> None:
    """Write a file of an index, whole or not at all.

    Args:
        features: of n images, [n, D], normalized.
        metadata: "clip", the digest of ImageEmbedder, "archive", a digest of the archive, and more.
    """
    numbers = {file: number for number, file in enumerate(dict.fromkeys(record.file for record in records))}
    folder = path.parent.resolve()
    names = [os.path.relpath(Path(file).resolve(), folder) for file in numbers]
    tensors = {
        "features": features.half().cpu(),
        "spans": torch.tensor([(numbers[file], *span) for file, *span in records], dtype=torch.int64).view(-1, 3),
        "files": torch.tensor(list(b"".join(os.fsencode(name) + b"\0" for name in names)), dtype=torch.uint8),
    }
    save_tensors(path, tensors, {"images": str(len(records)), **metadata})


def read_parts(folder: Path, **expected: str) -> dict[Path, dict[str, str]]:
    """Read the metadata of an index's files by path, in the order of the images.

    Raises:
        ValueError: metadata differ from those expected, as of another CLIP or archive; UnreadableFile: a damaged file.
    """
    parts = {path: read_metadata(path) for path in sorted(folder.glob(_PARTS))}
    for path, metadata in parts.items():
        for key, value in expected.items():
            if metadata.get(key) != value:
                other = {"clip": "CLIP, or another normalization of images", "archive": "archive"}[key]
                raise ValueError(
                    f"'{path}' is of the index of another {other}: make an index in another folder (tcl-d2 index "
                    "--output FOLDER), or remove that one"
                )
    return parts


def find_index(folder: Path) -> list[Path]:
    """Return the files of a finished index, in the order of its images; FileNotFoundError or ValueError if none is."""
    paths = sorted(folder.glob(_PARTS))
    if not paths:
        raise FileNotFoundError(
            f"MODEL.RECO.INDEX: there is no index of an archive in '{folder}': make one with tcl-d2 index ARCHIVE "
            f"--config-file CONFIG --output '{folder}'"
        )
    count = int(paths[0].stem.rpartition("-")[2])
    if paths != [part_path(folder, number, count) for number in range(count)]:
        raise ValueError(
            f"MODEL.RECO.INDEX: the index in '{folder}' has {len(paths)} of {count} files: the command that made them "
            "(tcl-d2 index) goes on from there"
        )
    return paths


class ImageIndex:
    """A finished index, searched by text. Files are mapped one after the other; none is held.

    Attributes:
        digest: of its archive and its CLIP.
    """

    def __init__(self, folder: Path, clip: str):
        """Check an index; `clip` is the digest of the ImageEmbedder whose CLIP embeds the texts.

        Raises:
            FileNotFoundError, ValueError: there is no index, or it is not finished, damaged, or of another CLIP.
        """
        find_index(folder)
        parts = read_parts(folder, clip=clip)
        self.folder = folder.resolve()
        self._sizes = {path: int(metadata["images"]) for path, metadata in parts.items()}
        self.digest = f"{next(iter(parts.values()))['archive']} {clip}"

    def __len__(self) -> int:
        return sum(self._sizes.values())

    def search(self, text: Tensor, count: int) -> list[list[ImageRecord]]:
        """Find the `count` images most similar to each text, by exact search, the most similar first.

        Args:
            text: text features fp32 [W, D], normalized.
        """
        scores = text.new_empty(len(text), 0)
        rows = torch.empty(len(text), 0, dtype=torch.int64, device=text.device)
        first = 0
        for features in self.iterate_features():
            # Merge the best of this chunk with the best so far
            similarity = text @ features.to(text).T
            chunk_scores, chunk_rows = similarity.topk(min(count, len(features)))
            scores = torch.cat([scores, chunk_scores], dim=1)
            rows = torch.cat([rows, chunk_rows + first], dim=1)
            scores, order = scores.topk(min(count, scores.shape[1]))
            rows = rows.gather(1, order)
            first += len(features)

        records = self._read_records(rows.unique().tolist())
        return [[records[row] for row in rows_of_text] for rows_of_text in rows.tolist()]

    def iterate_features(self) -> Iterator[Tensor]:
        """Yield the features of all images, fp16, in chunks [n, D] of mapped files."""
        for path in self._sizes:
            chunks = read_tensors(path)["features"].split(_ROWS_AT_ONCE)
            yield from (chunk for chunk in chunks if len(chunk))

    def _read_records(self, rows: Sequence[int]) -> dict[int, ImageRecord]:
        """Return the records of images by number, given in ascending order."""
        # Group them by file
        rows_by_path = defaultdict(list)
        paths, end = iter(self._sizes.items()), 0
        for row in rows:
            while row >= end:
                path, size = next(paths)
                end += size
            rows_by_path[path].append((row, row - end + size))

        records = {}
        for path, places in rows_by_path.items():
            tensors = read_tensors(path)
            files = bytes(tensors["files"].numpy()).split(b"\0")
            for row, place in places:
                number, start, size = tensors["spans"][place].tolist()
                file = os.path.normpath(self.folder / os.fsdecode(files[number]))
                records[row] = ImageRecord(file, start, size)
        return records
