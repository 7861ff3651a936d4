"""An archive of images without labels (a folder, shards, or a registered dataset), and the making of its index."""

import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog
from torch import Tensor
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

from ..modeling.reco.index import (
    ArchiveImages,
    ImageEmbedder,
    ImageRecord,
    iterate_images,
    part_path,
    read_parts,
    save_part,
)
from ..utils.files import stat_file
from ..utils.images import IMAGE_SUFFIXES, is_leftover
from .dataset_files import check_files, walk_files
from .pairs.shard_samples import BROKEN_TAR, StrictTarInfo
from .pairs.shards import expand_shards, is_remote

logger = logging.getLogger(__name__)
IMAGES_PER_PART = 4096  # of a folder; a stopped index goes on after the last part that is whole


# --------------------------------------------------------------------------------------------- its files


def list_archive(name: str) -> list[list[str]]:
    """List the files of an archive in the parts that are indexed one by one: each a shard, or so many images.

    Args:
        name: a registered dataset; or the path of a folder with images or shards, also in folders below it, or of
            shards, with braces or a glob.

    Raises:
        FileNotFoundError: it is none of these, or files are missing.
        ValueError: shards are on the web, where single images cannot be read again.
    """
    shards, images = [], []
    if name in DatasetCatalog.list():
        rows = DatasetCatalog.get(name)
        shards = [row["shard"] for row in rows if "shard" in row]
        images = [row["file_name"] for row in rows if "shard" not in row]
    elif os.path.isdir(name):
        paths = sorted(map(str, walk_files(Path(os.path.abspath(name)))))
        shards = [path for path in paths if path.lower().endswith(".tar")]
        images = [path for path in paths if path.lower().endswith(IMAGE_SUFFIXES)]
    elif ".tar" in name.lower():
        shards = expand_shards(name, Path())

    if not shards + images and not os.path.isdir(name):
        raise FileNotFoundError(
            f"'{name}' is no archive of images: expected a folder, shards (.tar), or a registered dataset"
        )
    if remote := list(filter(is_remote, shards)):
        raise ValueError(
            f"'{name}' has shards that are not on this disk, such as {remote[0]}: images of an archive are read again "
            "for each word, so download them first"
        )
    check_files(map(Path, shards), f"shards of '{name}'")

    starts = range(0, len(images), IMAGES_PER_PART)
    return [[shard] for shard in shards] + [images[start : start + IMAGES_PER_PART] for start in starts]


def list_records(files: Sequence[str]) -> tuple[list[ImageRecord], list[str]]:
    """List the images in files of an archive, in a broken shard those before the break; and texts on what is broken."""
    records, problems = [], []
    for file in files:
        if not re.search(r"\.tar(\.|$)", file, re.IGNORECASE):
            records.append(ImageRecord(file))
            continue
        try:
            with tarfile.open(file, "r:", tarinfo=StrictTarInfo) as tar:
                for member in tar:
                    is_image = member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES)
                    if is_image and not is_leftover(member.name):
                        records.append(ImageRecord(file, member.offset_data, member.size))
        except BROKEN_TAR as error:
            problems.append(f"unreadable shard: {file} ({error})")
    return records, problems


# --------------------------------------------------------------------------------------------- its index


def index_archive(
    parts: Sequence[Sequence[str]],
    folder: Path,
    embed: ImageEmbedder,
    num_workers: int = 0,
    spread: Callable[[list[tuple]], Iterable[dict]] | None = None,
) -> dict:
    """Make the index of an archive, or the rest of it; return the counts of "images" and "broken", which are left out.

    Args:
        parts: the files of each part, see list_archive.
        folder: for the index, see modeling/reco/index.py.
        num_workers: processes that read images; 0 for none.
        spread: calls `index_part` elsewhere, with the path, files and facts of each part, and yields what it returns.

    Raises:
        ValueError: the folder has the index of another CLIP or another archive.
    """
    parts = parts or [[]]  # an empty archive has an index too
    facts = {"clip": embed.digest(), "archive": _digest_files(parts)}
    done = read_parts(folder, **facts)

    paths = [part_path(folder, number, len(parts)) for number in range(len(parts))]
    left = [(path, files, facts) for path, files in zip(paths, parts) if path not in done]
    made = spread(left) if spread else (index_part(*part, embed, num_workers) for part in left)
    metadata = [*done.values(), *tqdm(made, "indexing", len(parts), initial=len(done), unit="part")]
    return {key: sum(int(part[key]) for part in metadata) for key in ("images", "broken")}


def index_part(path: Path, files: Sequence[str], facts: dict, embed: ImageEmbedder, num_workers: int = 0) -> dict:
    """Make one file of an index; return its counts."""
    records, problems = list_records(files)
    squares = ArchiveImages(records, embed.size, InterpolationMode.BICUBIC)

    # Embed what can be read
    usable, features = [], [torch.empty(0, embed.model.clip.embed_dim, dtype=torch.float32)]
    batches = iterate_images(squares, 64, num_workers)
    for batch in tqdm(batches, total=-(-len(records) // 64), desc=path.stem, unit="batch", leave=False):
        images = [image for image in batch if isinstance(image, Tensor)]
        usable += [isinstance(image, Tensor) for image in batch]
        problems += [image for image in batch if isinstance(image, str)]
        if images:
            features.append(embed(images).cpu())

    for problem in problems:
        logger.warning("Left out: %s", problem)
    records = [record for record, is_usable in zip(records, usable) if is_usable]
    counts = {"images": str(len(records)), "broken": str(len(problems))}
    save_part(path, records, torch.cat(features), {**facts, **counts})
    return counts


def _digest_files(parts: Sequence[Sequence[str]]) -> str:
    """Return a digest of the relative names and the sizes of an archive's files."""
    root = os.path.commonpath([os.path.dirname(file) for part in parts for file in part] or ["."])
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for file in part:
            size, _ = stat_file(file) or (-1, 0)  # a broken link is counted where it is read
            digest.update(os.fsencode(os.path.relpath(file, root)) + b"\0%d\0" % size)
        digest.update(b"\n")
    return digest.hexdigest()
