"""Segment shards of pictures over a cluster of Ray."""

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from ..predictor import TCLPredictor
from ..ray.results import Result, ShardResults
from ..ray.segmenter import segment_images
from ..ray.shards import Shard, group_files, is_shard, list_shards, read_shard
from ..runs.ray_cluster import joined_actors
from ..utils.errors import list_problems
from ..utils.files import remove_unfinished, replacing
from ..utils.http_stream import UnreadableAddress
from ..utils.locks import locked_folder
from ..words.words import Words
from .inputs import find_inputs
from .model_options import with_method
from .result_folder import PURPOSE, SETTINGS, check_apart, check_settings, digest_settings, result_names
from .segment_request import read_request, result_settings

_MAX_LOST = 5  # workers that a shard may cost, for Ray gives it to the next one without end
_ALONE = ("video_input", "webcam", "heat_maps", "boxes", "save", "regions")  # options that are not of --ray


# ------------------------------------------------------------------------------------------- in the actors


class ShardSegmenter:
    """Segments shards: what each actor makes once, and calls."""

    def __init__(self, args: argparse.Namespace, settings: str):
        """Build the model.

        Args:
            settings: the digest of what results depend on; ValueError where it is another, as with other weights.
        """
        self.args = args
        self.predictor, self.words, text = build_model(args)
        if digest_settings(text) != settings:
            raise ValueError(
                "the model has other weights, settings or versions on this node than where --ray was given"
            )
        self.results = ShardResults(args.output, args.format, settings)

    def __call__(self, shard: Shard) -> dict:
        """Segment a shard, unless another worker that was lost then has done it."""
        results = segment_shard(self.predictor, shard, self.words, self.args.columns, self.args.format == "parquet")
        if self.results.count_lost(shard) >= _MAX_LOST:
            return _undone(f"{shard.name}: {_MAX_LOST} workers were lost at it, as where memory runs out")
        try:
            record = self.results.read(shard) or self.results.write(shard, results)
        except UnreadableAddress as error:
            return _undone(str(error))
        return {"images": record["images"], "broken": len(record["broken"]), "undone": ""}


def _undone(problem: str) -> dict:
    return {"images": 0, "broken": 0, "undone": problem}


def build_model(args: argparse.Namespace) -> tuple[TCLPredictor, Words, str]:
    """Return the predictor, the words, and the text of all that results depend on beside the pictures."""
    build_predictor, words = read_request(args)
    predictor = with_method(build_predictor(), args.method)
    predictor.model.set_vocabulary(words)  # raises at once for unusable words
    settings = {**result_settings(predictor, args, words), "--format": args.format, "--columns": args.columns}
    return predictor, words, json.dumps(settings, indent=1, default=str)


def segment_shard(
    predictor: TCLPredictor, shard: Shard, words: Words, columns: Sequence[str], label_scores: bool
) -> Iterator[Result]:
    """Yield the name of each picture of a shard, and its segmentation or what is wrong with it."""
    names: deque[str] = deque()

    def images() -> Iterator:
        for name, image in read_shard(shard, columns):
            names.append(name)
            yield image

    for result in segment_images(predictor, images(), words, label_scores):
        yield names.popleft(), result


# ------------------------------------------------------------------------------------------- the command


def segment_on_ray(args: argparse.Namespace) -> NoReturn:
    """Segment all shards, or those that are left, and exit with 1 if a picture or a shard could not be read."""
    _check_options(args)
    shards = _find_shards(args)
    with locked_folder(args.output, PURPOSE, "--output"):
        *_, settings = build_model(args)  # says all that is wrong with it before the cluster is there
        results = ShardResults(args.output, args.format, digest_settings(settings))
        left = _begin(args, shards, results, settings)
        undone = _segment(args, left, digest_settings(settings)) if left else []
        remove_unfinished(args.output)  # of workers that were lost
        records = [results.read(shard) for shard in shards]

    # Say what there is
    done = [record for record in records if record]
    broken = sum(len(record["broken"]) for record in done)
    print(f"{sum(record['images'] for record in done)} images segmented, in {len(done)} of {len(shards)} shards")
    if broken:
        print(f"{broken} images left out: each shard's JSON has their names under 'broken'")
    if undone:
        print(f"shards that are not done, for --resume to try again:\n{list_problems(undone)}")
    sys.exit(1 if broken or len(done) < len(shards) else 0)


def _check_options(args: argparse.Namespace) -> None:
    """Check that the options go together, and set the defaults of --ray's own."""
    for name in _ALONE:
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} is not of --ray, which writes labels and areas alone")
    if max(args.num_gpus, args.num_processes) > 1:
        raise ValueError("--num-gpus and --num-processes are of one machine: --ray has --ray-workers and --ray-gpus")
    args.output = args.output.absolute()
    args.no_overlay = True
    args.format = args.format or "png"
    args.columns = args.columns or ["image"]
    args.shard_size = 1000 if args.shard_size is None else args.shard_size
    if args.shard_size < 1 or len(args.columns) > 2:
        raise ValueError("--shard-size is at least 1, and --columns has one name or two")


def _find_shards(args: argparse.Namespace) -> list[Shard]:
    """List the shards of the inputs, none of which may lie where results go."""
    inputs = args.inputs or args.input
    patterns = [name for name in inputs if is_shard(name)]
    others = [name for name in inputs if not is_shard(name)]
    files = find_inputs(others, args.output) if others else {}
    shards = list_shards(patterns, args.columns) + group_files(result_names(files), args.shard_size)
    check_apart((Path(file) for shard in shards if not shard.names for file in shard.files), [args.output])
    return shards


def _begin(args: argparse.Namespace, shards: list[Shard], results: ShardResults, settings: str) -> list[Shard]:
    """Write the settings of a run, remove earlier results that it replaces, and return the shards left to do."""
    path = args.output / SETTINGS
    check_settings(path, json.loads(settings), args.resume)
    if not path.exists():
        results.check_free(shards)

    left = [shard for shard in shards if not (args.resume and results.read(shard))]
    for shard in left:
        results.remove(shard)
    with replacing(path) as unfinished:
        unfinished.write_text(settings)
    if len(left) < len(shards):
        print(f"{len(shards) - len(left)} of {len(shards)} shards were done before")
    return left


def _segment(args: argparse.Namespace, shards: list[Shard], settings: str) -> list[str]:
    """Segment shards over the cluster; return what is said of those that could not be done."""
    undone, counts = [], {"images": 0, "broken": 0}
    with (
        joined_actors(args, args.output, ShardSegmenter, args, settings) as segment,
        tqdm(total=len(shards), unit="shard", smoothing=0) as bar,
    ):
        for row in segment(shards):
            undone += filter(None, [row["undone"]])
            counts = {name: count + row[name] for name, count in counts.items()}
            bar.set_postfix(counts, refresh=False)
            bar.update()
    return undone
