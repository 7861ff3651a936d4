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
tcl-d2 segment 'shards/{00000..00331}.tar' --classes words.txt --model official --ray 10.0.0.1:6379 --ray-gpus 0.5
"""

import argparse
import glob
import os
from pathlib import Path

from ...words.parsing import split_background_words
from ...words.specificity import SPECIFICITIES
from ..inputs import SUFFIXES
from .model import add_model_options
from .ray import add_ray_options

FORMATS = ("coco", "cvat", "labelme")  # of annotation tools


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
        choices=FORMATS,
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
    add_ray_options(parser)
    parser.add_argument("--format", choices=("png", "parquet"), help="with --ray: labels as PNG (default), or RLE")
    parser.add_argument("--shard-size", type=int, metavar="N", help="with --ray: images of a shard; default: 1000")
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME",
        help="with --ray: a parquet file's column of images (bytes or addresses; default: image), and of their names",
    )
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
