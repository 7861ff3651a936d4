"""Features of images and their captions on disk, which Talk2DINO's projection is trained from.

They are a folder of files 00000-of-00021.safetensors, one for each shard, or for so many images of other datasets:

    heads      of n images by each head of the class token's attention, [n, heads, C]
    text       of c captions, [c, D]
    image      number of each caption's image in the file, int64 [c]
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision.transforms.functional as TF
from detectron2.config import CfgNode
from detectron2.utils import comm
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

from ..modeling import Talk2DINO
from ..utils.images import BrokenSample, read_image
from ..utils.tensors import digest_weights, read_metadata, save_tensors
from ..utils.threads import map_ahead
from .pairs.mapper import read_caption
from .pairs.shard_samples import BROKEN_TAR, read_samples
from .pairs.shards import open_shard
from .pairs.stream import read_dataset

logger = logging.getLogger(__name__)
COUNTS = ("images", "captions", "broken")
_IMAGES_PER_PART = 1024  # of datasets without shards; a stopped run goes on after the last part that is whole
_IMAGES_AT_ONCE = 32
_CAPTIONS_AT_ONCE = 256


class Pair(NamedTuple):
    """An image as a model sees it, uint8 [3, size, size], and its captions."""

    image: Tensor
    captions: list[str]


# --------------------------------------------------------------------------------------------- parts and facts


def list_parts(names: Sequence[str]) -> list[list[dict]]:
    """List the rows of image-text datasets in the parts that are made one by one; errors as read_dataset's."""
    parts = []
    for name in names:
        rows = read_dataset(name)
        size = 1 if "shard" in rows[0] else _IMAGES_PER_PART
        parts += [rows[first : first + size] for first in range(0, len(rows), size)]
    return parts


def part_path(folder: Path, number: int, count: int) -> Path:
    """Return the path of one of the files."""
    return folder / f"{number:05d}-of-{count:05d}.safetensors"


def feature_facts(cfg: CfgNode) -> dict[str, str]:
    """Return what features must be of, to train a configuration's projection on them: texts by config key."""
    talk2dino, clip = cfg.MODEL.TALK2DINO, cfg.MODEL.CLIP
    return {
        "MODEL.TALK2DINO.NAME": talk2dino.NAME,
        "MODEL.TALK2DINO.PRETRAINED": Path(talk2dino.PRETRAINED).name,
        "MODEL.TALK2DINO.IMAGE_SIZE": str(talk2dino.IMAGE_SIZE),
        "MODEL.CLIP.NAME": Path(clip.NAME).name,
        "MODEL.CLIP.PRETRAINED": Path(clip.PRETRAINED).name,
        "DATASETS.TRAIN": ", ".join(cfg.DATASETS.TRAIN),
    }


def check_part(path: Path, facts: dict[str, str]) -> dict[str, str]:
    """Return the metadata of a file; ValueError if it is damaged, or of other facts."""
    metadata = read_metadata(path)
    for name, value in facts.items():
        if metadata.get(name) != value:
            raise ValueError(
                f"'{path}' is of another {name} ({metadata.get(name, 'unknown')}; here {value}): make features in "
                "another folder (MODEL.TALK2DINO.FEATURES), or remove that one"
            )
    return metadata


# --------------------------------------------------------------------------------------------- making them


def make_features(
    model: Talk2DINO,
    cfg: CfgNode,
    folder: Path,
    half: bool = False,
    num_threads: int = 0,
    spread: Callable[[list[tuple]], Iterable] | None = None,
) -> dict[str, int]:
    """Make the features of DATASETS.TRAIN, or the rest of them; each process makes a share of the files.

    Args:
        half: whether they are written as fp16, half as large.
        num_threads: threads that read images; 0 for none.
        spread: calls `make_part` elsewhere, with the path, rows and facts of each part, and yields when one is made.

    Returns:
        the numbers of images, captions and broken samples, which are left out, of all files.

    Raises:
        ValueError: the folder has features of another model or of other data; or there are no captions.
    """
    facts = {**feature_facts(cfg), "weights": digest_models(model), "precision": "fp16" if half else "fp32"}
    parts = list_parts(cfg.DATASETS.TRAIN)
    paths = [part_path(folder, number, len(parts)) for number in range(len(parts))]
    others = set(folder.glob("*.safetensors")) - set(paths)
    if others:
        raise ValueError(f"'{folder}' has files of other features, such as {min(others).name}: give another folder")
    for path in filter(Path.exists, paths):
        check_part(path, facts)

    # Each process makes every N-th
    mine = [(path, rows, facts) for path, rows in zip(paths, parts)][comm.get_rank() :: comm.get_world_size()]
    left = [part for part in mine if not part[0].exists()]
    made = spread(left) if spread else (make_part(*part, model, num_threads) for part in left)
    for _ in tqdm(made, "features", len(left), unit="part", disable=not comm.is_main_process()):
        pass
    comm.synchronize()

    metadata = [check_part(path, facts) for path in paths]
    return {name: sum(int(part[name]) for part in metadata) for name in COUNTS}


def digest_models(model: Talk2DINO) -> str:
    """Return a digest of the weights that features depend on."""
    weights = f"{model.vision.digest()} {digest_weights(model.clip.model, model.clip.text_weights())}"
    return hashlib.blake2b(weights.encode(), digest_size=16).hexdigest()


def make_part(path: Path, rows: list[dict], facts: dict[str, str], model: Talk2DINO, num_threads: int = 0) -> None:
    """Make one of the files."""
    counts, heads, captions, image_of_caption = Counter(), [], [], []
    pairs = _read_pairs(rows, model.image_size, counts, num_threads)
    progress = tqdm(pairs, desc=path.stem, unit="image", leave=False, disable=not comm.is_main_process())
    for batch in _batches(progress, _IMAGES_AT_ONCE):
        heads.append(model.encode_squares(torch.stack([pair.image for pair in batch])).cpu())
        for pair in batch:
            captions += pair.captions
            image_of_caption += [counts["images"]] * len(pair.captions)
            counts["images"] += 1

    # A shard may have no pair that can be read
    text = [model.encode_captions(batch).cpu() for batch in _batches(captions, _CAPTIONS_AT_ONCE)]
    counts["captions"] = len(captions)
    dtype = torch.float16 if facts["precision"] == "fp16" else torch.float32
    tensors = {
        name: (torch.cat(x) if x else torch.empty(0)).to(dtype) for name, x in (("heads", heads), ("text", text))
    }
    tensors["image"] = torch.tensor(image_of_caption, dtype=torch.int64)
    save_tensors(path, tensors, {**facts, **{name: str(counts[name]) for name in COUNTS}})


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


# --------------------------------------------------------------------------------------------- reading pairs


def _read_pairs(rows: list[dict], size: int, counts: Counter, num_threads: int) -> Iterator[Pair]:
    """Yield the pairs of rows; broken ones are counted as "broken", and left out with a warning."""
    for pair in map_ahead(partial(_read_pair, size=size), _list_samples(rows, counts), num_threads):
        if isinstance(pair, BrokenSample):
            _count_broken(counts, pair)
        else:
            yield pair


def _list_samples(rows: list[dict], counts: Counter) -> Iterator[dict]:
    """Yield samples as ImageTextDatasetMapper takes them; a shard that breaks off counts once."""
    if "shard" not in rows[0]:
        yield from rows
        return
    for row in rows:
        try:
            with open_shard(row["shard"]) as tar:
                for sample in read_samples(tar, row["shard"]):
                    try:
                        yield sample.to_pair()
                    except BrokenSample as error:
                        _count_broken(counts, error)
        except BROKEN_TAR as error:
            _count_broken(counts, f"unreadable shard: {row['shard']} ({error})")


def _count_broken(counts: Counter, problem: object) -> None:
    counts["broken"] += 1
    logger.warning("Left out: %s", problem)


def _read_pair(sample: dict, size: int) -> Pair | BrokenSample:
    name = sample.get("key") or sample.get("file_name", "")
    try:
        captions = [read_caption(caption, name) for caption in sample.get("captions") or ()]
        if not captions:
            raise BrokenSample("no caption", name)
        return Pair(
            read_square(read_image(sample.get("image_bytes") or sample.get("file_name", ""), name), size), captions
        )
    except BrokenSample as error:
        return error


def read_square(image: Image.Image, size: int) -> Tensor:
    """Resize a PIL image by its short side, bicubic, and cut the center out: uint8 [3, size, size]."""
    image = TF.resize(image, size, InterpolationMode.BICUBIC)
    return TF.pil_to_tensor(TF.center_crop(image, [size, size]))
