"""Segment pictures, a video or a webcam's frames into words of yours.

tcl-d2 segment photos/*.jpg --classes "red apple, wooden table" --background --model official --output output/demo
tcl-d2 segment photos --classes words.txt --model official --background "sky, wall"
tcl-d2 segment photos --classes "car, not: shadow" --model official  # pixels that "shadow" fits best are of no class
tcl-d2 segment photos --classes words.txt --model official --method sclip
tcl-d2 segment photos --classes "dog, cat" --background --model official --boxes
tcl-d2 segment photos --classes "dog, cat" --model official --save coco cvat labelme  # labels to correct in a tool
tcl-d2 segment photos --classes "dog, cat" --model official --regions sam  # sam/NAME.json or .png of each photo
find photos -name '*.png' | tcl-d2 segment - --classes zeroshot_voc_val --model official
tcl-d2 segment photos --onnx model.onnx        # an exported model; with --help, its own options
tcl-d2 segment photos --classes words.txt --model official --no-overlay --num-gpus 8 --resume   # skips what is done
"""

import argparse
import glob
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TextIO

from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from tqdm import tqdm

from ..data.benchmarks import benchmark_classes
from ..engine import launch
from ..evaluation.evaluation_pass import evaluation_settings
from ..predictor import TCLPredictor
from ..runs.processes import is_first_process
from ..segmentation import Segmentation
from ..segmentation.objects import check_opencv
from ..segmentation.region_files import check_region_files
from ..segmentation.tool_files import WRITERS
from ..utils.errors import one_message
from ..utils.locks import locked_folder
from ..utils.tensors import digest_weights
from ..utils.threads import map_ahead
from ..words.files import read_class_words
from ..words.parsing import BACKGROUND, as_vocabulary, class_names, split_background_words, split_words
from ..words.specificity import SPECIFICITIES, at_specificity
from ..words.words import Words
from .inputs import SUFFIXES, find_inputs
from .model_options import add_model_options, read_model, with_method
from .result_folder import PURPOSE, ResultFolder, Source, check_apart
from .tool_folders import ToolFolders
from .video import segment_video

TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".names")

# ------------------------------------------------------------------------------------------- words


def read_background(text: str) -> list[str]:
    """Read the words of --background; argparse.ArgumentTypeError for none, or for an input in their place."""
    words = split_background_words(text)
    is_input = "," not in text and (os.path.lexists(text) or glob.has_magic(text) or text == "-")
    if is_input or any("/" in word or Path(word).suffix.lower() in SUFFIXES for word in words):
        raise argparse.ArgumentTypeError(
            f"'{text}' looks like an input, but follows --background as its words: give inputs before --background, or "
            "another option between. A word of that name needs a comma: 'photos,'"
        )
    if not words:
        raise argparse.ArgumentTypeError("no words: give some, 'sky, wall', or --background alone")
    return words


def read_words(text: str, background: bool | list[str] = False, specificity: str = "synonyms") -> Words:
    """Read the words of --classes, --background and --specificity.

    Args:
        text: words such as "a, b" (see split_words), a file with a class a line, or the name of a benchmark. A first
            line "background, sky, wall" of a file is the background, with its words if it has any.
        background: its words stand over those of a file.

    Raises:
        FileNotFoundError: a word looks like the name of a file, or of a benchmark, and there is none.
        ValueError: a dataset without class words, or a file that cannot be used.
    """
    classes, background_of_text = _read_classes(text)
    if not isinstance(background, list):
        background = background_of_text or background
    return Words.read(at_specificity(classes, specificity), background)


def _read_classes(text: str) -> tuple[list[str | list[str]], bool | list[str]]:
    if os.path.isfile(text):  # unlike Path's is_file, it accepts a text that is too long for a name
        class_words = read_class_words(text)
        if class_words[0][0] != BACKGROUND:
            return as_vocabulary(class_words), False
        return as_vocabulary(class_words[1:]), class_words[0][1:] or True

    if text in DatasetCatalog.list():
        return benchmark_classes(text)

    similar = get_close_matches(text, DatasetCatalog.list(), n=1, cutoff=0.8) if "_" in text else []
    if similar:
        raise FileNotFoundError(
            f"--classes: no benchmark '{text}'; did you mean '{similar[0]}'? A class word is written with spaces"
        )
    words = split_words(text)
    for word in class_names(words):
        if "/" in word or word.lower().endswith(TEXT_SUFFIXES):
            raise FileNotFoundError(
                f"--classes: no file '{word}'. If it is a class word, give the words in a file, a class a line"
            )
    return words, False


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


def result_settings(predictor: TCLPredictor, args: argparse.Namespace, words: Words) -> dict:
    """Return the settings that results depend on, by name: of the model, the words, and the files to write."""
    settings = evaluation_settings(predictor.cfg.clone())
    # Results do not depend on these, but on the weights themselves
    for key, name in (("MODEL", "DEVICE"), ("MODEL", "WEIGHTS"), ("TEST.ZERO_SHOT", "IMS_PER_BATCH")):
        settings[key].pop(name)
    request = {"weights": digest_weights(predictor.model), **vars(words)}
    if args.boxes:
        request["--boxes"] = predictor.model.components._asdict()
    return {**settings, **request, "--heat-maps": args.heat_maps, "--no-overlay": args.no_overlay}


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


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    # Files
    source = parser.add_mutually_exclusive_group(required=True)
    inputs = {"metavar": "INPUT", "help": "images, globs or folders; - reads a list from the standard input"}
    source.add_argument("inputs", nargs="*", default=[], **inputs)
    source.add_argument("--input", nargs="+", **inputs)
    source.add_argument("--video-input", help="a video file")
    source.add_argument("--webcam", action="store_true", help="the first camera, in a window")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/demo"),
        help="folder for the results, in which no input may lie; results of an earlier run there are replaced",
    )

    # Words
    parser.add_argument(
        "--classes",
        required=True,
        help='"a | synonym of a, b, not: c", a file with a class a line, or a benchmark\'s name; '
        "pixels that c fits best belong to no class",
    )
    parser.add_argument(
        "--specificity",
        choices=SPECIFICITIES,
        default="synonyms",
        help="of 'dog | puppy < animal', dog alone, dog and puppy (default), or a class 'animal' of all three",
    )
    add_background_option(parser)

    # Results
    parser.add_argument(
        "--refine",
        help="none, pamr, densecrf, lposs, lposs_plus, lposs_pixels or a refiner of yours, in place of the config's "
        "TEST.ZERO_SHOT.REFINE",
    )
    parser.add_argument(
        "--regions",
        type=Path,
        metavar="FOLDER",
        help="folder of region files (PNG, or JSON of SAM's tools) named after the images; each region gets one class",
    )
    parser.add_argument("--heat-maps", action="store_true", help="also a picture of each class's scores")
    parser.add_argument(
        "--boxes",
        action="store_true",
        help="also boxes of objects, connected components of a class's mask, drawn with words and scores and as JSON",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        action="extend",
        default=[],
        choices=tuple(WRITERS),
        metavar="FORMAT",
        help="also the labels of all images for annotation tools, in a folder of that name: coco (with what --boxes "
        "writes), cvat, labelme",
    )
    parser.add_argument("--no-overlay", action="store_true", help="labels and areas alone, which take less time")

    # How a long list is processed
    parser.add_argument("--resume", action="store_true", help="leave out the images that are done, as settings were")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs, each with a share of the images")
    parser.add_argument("--num-processes", type=int, default=1, help="number of processes on the CPU, likewise")
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="auto")
    add_model_options(parser)
    return parser


def add_background_option(parser: argparse.ArgumentParser) -> None:
    """Add --background, alone or with words."""
    parser.add_argument(
        "--background",
        nargs="?",
        const=True,
        default=False,
        type=read_background,
        metavar="WORDS",
        help="pixels that no word fits are background; with words, such as 'sky, wall', also those that one of these "
        "fits best. Give inputs before it, or with another option between",
    )


def main(args: argparse.Namespace) -> None:
    """Segment, and exit with 1 if a file could not be read."""
    # File names need not be UTF-8
    sys.stdin.reconfigure(errors="surrogateescape")

    with ExitStack() as stack:
        # Check what the user gave before the model is built
        stack.enter_context(one_message())
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


def read_request(args: argparse.Namespace) -> tuple[Callable[[], TCLPredictor], Words]:
    """Return a function that builds the model (see read_model), and the words."""
    options = ["TEST.ZERO_SHOT.REFINE", args.refine] if args.refine else []
    if args.regions:
        options += ["TEST.ZERO_SHOT.REGIONS.FOLDER", str(args.regions)]
    build_predictor = read_model(args, *options)  # which registers the user's benchmarks
    return build_predictor, read_words(args.classes, args.background, args.specificity)


def check_options(args: argparse.Namespace) -> None:
    """Check that the options go together, and that GPUs and packages are there."""
    is_video = args.webcam or args.video_input
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
