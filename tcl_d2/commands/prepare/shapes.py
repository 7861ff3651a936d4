"""Draw the small world into $DETECTRON2_DATASETS/shapes, in the formats of the real datasets."""

import argparse
import io
import json
import math
import os
import shutil
import sys
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image
from tqdm import tqdm

from ...data.dataset_files import datasets_root
from ...data.preparation import SHARED_MEMORY
from ...data.shapes import INSTANCES, draw_scene, write_annotations
from ...utils.errors import one_message
from ...utils.files import check_shared_memory, replacing
from ...utils.locks import locked_folder

PER_SHARD = 1000
TRAIN_SIZE, VAL_SIZE = 48, 96  # pixels a side; a larger scene needs a sliding window, as photographs do
VAL_OBJECTS = (3, 6)
FOLDERS = ("train", "labeled", "val")


def encode(image: np.ndarray, format: str, **options) -> bytes:
    """Encode a picture as a file's content."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def write_shard(number: int, folder: Path, count: int, seed: int) -> int:
    """Write shard `number` of `count` training scenes, unless it is there; return its number of scenes."""
    indices = range(number * PER_SHARD, min(count, (number + 1) * PER_SHARD))
    path = folder / f"{number:05d}.tar"
    if path.exists():
        return len(indices)

    stats = folder / f"{number:05d}_stats.json"
    stats.write_text(json.dumps({"count": len(indices), "successes": len(indices)}))
    with replacing(path) as unfinished, wds.TarWriter(str(unfinished)) as tar:
        for index in indices:
            scene = draw_scene(seed, index, TRAIN_SIZE)
            # No chroma subsampling: it would blur patterns of a few pixels.
            picture = encode(scene.image, "JPEG", quality=95, subsampling=0)
            tar.write({"__key__": f"{index:09d}", "jpg": picture, "txt": scene.caption.encode()})
    return len(indices)


def write_labeled(index: int, folder: Path, seed: int, **options) -> None:
    """Write scene `index` and its label map into the folder's images and labels."""
    scene = draw_scene(seed, index, **options)
    for subfolder, array in (("labels", scene.label), ("images", scene.image)):
        with replacing(folder / subfolder / f"{index:05d}.png") as unfinished:
            unfinished.write_bytes(encode(array, "PNG"))


def start_world(root: Path, world: dict) -> bool:
    """Make a world's folders, removing those of another world; return False if the world is complete.

    Args:
        world: the numbers that it is drawn with: the scenes of each folder, and the seed. They lie in started.json
            while it is drawn, and in world.json afterwards.
    """
    started, done = root / "started.json", root / "world.json"
    if done.exists() and json.loads(done.read_text()) == world:
        return False

    # Keep the folders that were drawn with the same numbers
    if done.exists():
        os.replace(done, started)
    previous = json.loads(started.read_text()) if started.exists() else {}
    for folder in FOLDERS:
        if (previous.get(folder), previous.get("seed")) != (world[folder], world["seed"]):
            shutil.rmtree(root / folder, ignore_errors=True)

    for folder in ("train", "labeled/images", "labeled/labels", "val/images", "val/labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with replacing(started) as unfinished:
        unfinished.write_text(json.dumps(world))
    return True


def main(args: argparse.Namespace) -> None:
    """Draw the requested world, unless it is there."""
    if min(args.train, args.labeled, args.val, args.processes) < 1 or args.seed < 0:
        sys.exit("error: --train, --labeled, --val and --processes are at least 1, --seed is at least 0")
    args.root = args.root or datasets_root() / "shapes"
    with one_message(), locked_folder(args.root, "preparation", "--root"):
        draw_world(args)


def draw_world(args: argparse.Namespace) -> None:
    """Draw the world, or the rest of it."""
    check_shared_memory(SHARED_MEMORY)
    world = {"train": args.train, "labeled": args.labeled, "val": args.val, "seed": args.seed}
    content = f"{args.train} training pairs, {args.labeled} labeled scenes, {args.val} validation images"
    if not start_world(args.root, world):
        if not (args.root / "val" / INSTANCES).exists():  # a world that was drawn before there were annotations
            write_annotations(args.root / "val")
        print(f"{args.root} is ready: {content}")
        return

    # Training draws from an even seed, validation from an odd one: no scene is in both.
    num_shards = math.ceil(args.train / PER_SHARD)
    draw_shard = partial(write_shard, folder=args.root / "train", count=args.train, seed=2 * args.seed)
    draw_labeled = partial(write_labeled, folder=args.root / "labeled", seed=2 * args.seed, size=TRAIN_SIZE)
    val = {"size": VAL_SIZE, "objects": VAL_OBJECTS}
    draw_val = partial(write_labeled, folder=args.root / "val", seed=2 * args.seed + 1, **val)
    total = args.train + args.labeled + args.val
    with Pool(args.processes) as pool, tqdm(total=total, desc="drawing", unit="scene") as progress:
        for count in pool.imap_unordered(draw_shard, range(num_shards)):
            progress.update(count)
        for draw, count in ((draw_labeled, args.labeled), (draw_val, args.val)):
            for _ in pool.imap_unordered(draw, range(count), chunksize=16):
                progress.update(1)

    write_annotations(args.root / "val")
    os.replace(args.root / "started.json", args.root / "world.json")
    print(f"{args.root}: {content}")
