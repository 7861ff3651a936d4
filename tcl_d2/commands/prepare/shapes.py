"""Draw the small world into $DETECTRON2_DATASETS/shapes, in the formats of the real datasets.

    train/00000.tar ...   webdataset shards of image (jpg) + caption (txt), with img2dataset's *_stats.json
    val/images, val/labels   larger scenes (png) and their label maps, for the three benchmarks
    val/instances.json, val/panoptic, val/panoptic.json   their objects, in COCO's formats
    world.json   what it was drawn with; written last, so that it stands for a whole world

Can be repeated and interrupted: what is there is kept, unless it was drawn with other numbers.

    tcl-d2 prepare shapes
"""

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

from ...data.benchmarks import datasets_root
from ...data.shapes import draw_scene
from ...data.shapes_objects import INSTANCES, write_annotations
from ...utils.files import replacing

PER_SHARD = 1000
TRAIN_SIZE, VAL_SIZE = 48, 96  # pixels a side; a larger scene needs a sliding window, as photographs do
VAL_OBJECTS = (3, 6)


def encode(image: np.ndarray, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def write_shard(number: int, folder: Path, count: int, seed: int) -> int:
    """Write a shard of the world `seed`, which has `count` scenes in all; return how many are in the shard."""
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


def write_val(index: int, folder: Path, seed: int) -> None:
    scene = draw_scene(seed, index, VAL_SIZE, objects=VAL_OBJECTS)
    for subfolder, array in (("labels", scene.label), ("images", scene.image)):
        with replacing(folder / subfolder / f"{index:05d}.png") as unfinished:
            unfinished.write_bytes(encode(array, "PNG"))


def start_world(root: Path, world: dict) -> bool:
    """Make the folders for a world, without what is there of another one; return False if the world is whole already.

    Args:
        root: folder of the world.
        world: the numbers that it is drawn with; lie in started.json while it is drawn, and in world.json afterwards.
    """
    started, done = root / "started.json", root / "world.json"
    if done.exists() and json.loads(done.read_text()) == world:
        return False

    is_same_world = started.exists() and json.loads(started.read_text()) == world
    if not is_same_world:
        for folder in ("train", "val"):
            shutil.rmtree(root / folder, ignore_errors=True)
    done.unlink(missing_ok=True)
    for folder in ("train", "val/images", "val/labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    started.write_text(json.dumps(world))
    return True


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=datasets_root() / "shapes")
    parser.add_argument("--train", type=int, default=20_000, help="image-caption pairs")
    parser.add_argument("--val", type=int, default=100, help="images with labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser


def main(args: argparse.Namespace) -> None:
    """Draw the world that is asked for, unless it is there.

    Args:
        args: of `argument_parser`.
    """
    if min(args.train, args.val, args.processes) < 1 or args.seed < 0:
        sys.exit("error: --train, --val and --processes are at least 1, --seed is at least 0")

    world = {"train": args.train, "val": args.val, "seed": args.seed}
    if not start_world(args.root, world):
        if not (args.root / "val" / INSTANCES).exists():  # a world that was drawn before there were annotations
            write_annotations(args.root / "val")
        print(f"{args.root} is ready: {args.train} training pairs, {args.val} validation images")
        return

    # Training draws from an even seed, validation from an odd one: no scene is in both.
    num_shards = math.ceil(args.train / PER_SHARD)
    draw_shard = partial(write_shard, folder=args.root / "train", count=args.train, seed=2 * args.seed)
    draw_val = partial(write_val, folder=args.root / "val", seed=2 * args.seed + 1)
    with Pool(args.processes) as pool, tqdm(total=args.train + args.val, desc="drawing", unit="scene") as progress:
        for count in pool.imap_unordered(draw_shard, range(num_shards)):
            progress.update(count)
        for _ in pool.imap_unordered(draw_val, range(args.val), chunksize=16):
            progress.update(1)

    write_annotations(args.root / "val")
    os.replace(args.root / "started.json", args.root / "world.json")
    print(f"{args.root}: {args.train} training pairs, {args.val} validation images")
