"""Segment pictures in batches, over one process or several, or a video's frames."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TextIO

from detectron2.utils import comm
from tqdm import tqdm

from ..predictor import TCLPredictor
from ..runs.processes import is_first_process, launch
from ..segmentation import Segmentation
from ..segmentation.objects import check_opencv
from ..segmentation.region_files import check_region_files
from ..utils.errors import one_message
from ..utils.locks import locked_folder
from ..utils.threads import map_ahead
from ..words.words import Words
from .inputs import find_inputs
from .model_options import with_method
from .result_folder import PURPOSE, ResultFolder, Source, check_apart
from .segment_request import read_request, result_settings
from .tool_folders import ToolFolders
from .video import segment_video

# ------------------------------------------------------------------------------------------- files


def segment_share(args: argparse.Namespace, folder: ResultFolder) -> None:
    """Segment this process's share of the files that are left of a run."""
    with one_message():
        build_predictor, words = read_request(args)
        predictor = with_method(build_predictor(), args.method)
        predictor.model.set_vocabulary(words)  # raises at once for unusable words

        # Every n-th of the files that are left
        sources = None
        if comm.is_main_process():
            sources = folder.begin(result_settings(predictor, args, words), args.resume)
            if len(sources) < len(folder.sources):
                print(f"{len(folder.sources) - len(sources)} of {len(folder.sources)} images were done before")
        sources = comm.all_gather(sources)[0]
        segment_files(predictor, args, sources[comm.get_rank() :: comm.get_world_size()], words)


def segment_files(predictor: TCLPredictor, args: argparse.Namespace, sources: Sequence[Source], words: Words) -> None:
    """Segment files in batches, while threads read the next ones and write the results of the last ones."""

    def write(source_and_result: tuple[Source, Segmentation | Exception]) -> tuple[str, TextIO]:
        source, segmentation = source_and_result
        if isinstance(segmentation, Exception):
            return f"left out: {segmentation}", sys.stderr

        # Write the results, and say the largest areas
        overlay = not args.no_overlay
        path, *_ = segmentation.save(args.output, source.name, args.heat_maps, overlay, args.boxes, source.state)
        return f"{source.path} -> {path}: {segmentation.describe_areas()}", sys.stdout

    # The bar is that of the first process
    paths = (source.path for source in sources)
    options = {"labels_only": not args.heat_maps, "label_scores": args.boxes, "return_exceptions": True}
    segmentations = predictor.stream(paths, words, **options)
    lines = map_ahead(write, zip(sources, segmentations), predictor.cfg.DATALOADER.NUM_WORKERS)
    bar = {"total": len(sources), "unit": "image", "smoothing": 0, "disable": not comm.is_main_process()}
    for line, file in tqdm(lines, **bar):
        tqdm.write(line, file)


# ------------------------------------------------------------------------------------------- the command


def main(args: argparse.Namespace) -> None:
    """Segment, and exit with 1 if a file could not be read."""
    # File names need not be UTF-8
    sys.stdin.reconfigure(errors="surrogateescape")

    with ExitStack() as stack:
        # Check what the user gave before the model is built
        stack.enter_context(one_message())
        if args.ray:
            from .segment_ray import segment_on_ray  # and with it pyarrow, which others do without

            segment_on_ray(args)
        inputs = args.inputs or args.input
        files = find_inputs(inputs, args.output) if inputs else {}
        check_options(args)
        if args.regions:
            check_region_files(args.regions, map(str, files))
        build_predictor, words = read_request(args)
        if files:
            heat_maps = words.names if args.heat_maps else ()
            folder = ResultFolder(args.output, files, heat_maps, boxes=args.boxes, overlay=not args.no_overlay)
            tool_folders = ToolFolders(args.output, args.save, words, (source.name for source in folder.sources))
        elif args.video_input:
            check_apart([Path(args.video_input)], [args.output])
        if is_first_process() and not args.webcam:
            stack.enter_context(locked_folder(args.output, PURPOSE, "--output"))

        # Segment the files in this process or several, or the frames
        if files:
            launch(partial(segment_share, folder=folder), args)
            comm.synchronize()  # with the processes of torchrun
            if is_first_process():
                tool_folders.write(folder.done())
            folder.finish()
        segment_video(with_method(build_predictor(), args.method), args, words)


def check_options(args: argparse.Namespace) -> None:
    """Check that the options go together, and that GPUs and packages are there."""
    is_video = args.webcam or args.video_input
    if args.format or args.shard_size or args.columns:
        raise ValueError("--format, --shard-size and --columns are of --ray")
    if args.save and is_video:
        raise ValueError("--save is for image files, not for the frames of a video")
    args.boxes |= "coco" in args.save
    if args.boxes:
        if is_video:
            raise ValueError("--boxes are drawn on images, not on the frames of a video")
        check_opencv()
    if args.regions and is_video:
        raise ValueError("--regions are of image files, not of the frames of a video")
    if max(args.num_gpus, args.num_processes) > 1 and is_video:
        raise ValueError("--num-gpus and --num-processes share images, not the frames of a video")
