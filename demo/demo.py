#!/usr/bin/env python
"""Segment pictures, a video or a webcam's into words of yours.

python demo/demo.py --input photos/*.jpg --classes "red apple, wooden table" --background --output output/demo
python demo/demo.py --config-file configs/eval/official.yaml --input photos --classes words.txt
find photos -name '*.png' | python demo/demo.py --input - --classes zeroshot_voc_val
"""

import argparse
import glob
import itertools
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from tcl_d2.data.benchmarks import BACKGROUND
from tcl_d2.data.words import read_words
from tcl_d2.modeling.text import dataset_vocabulary
from tcl_d2.predictor import TCLPredictor, class_words, split_words
from tcl_d2.segmentation import result_paths, shorten
from tcl_d2.utils.errors import one_message
from tcl_d2.utils.files import remove_unfinished

CONFIG = Path(__file__).resolve().parent.parent / "configs/shapes/trained.yaml"  # from any folder
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".names")


def find_inputs(inputs: list[str], output: Path) -> list[Path]:
    """List the files that are meant.

    Args:
        inputs: files, globs, folders (all images below, but those in `output`), or - for a list on the standard input.

    Raises:
        FileNotFoundError: a folder has no images, a glob matches nothing, or the list is empty.
    """
    lines = [line for entry in inputs for line in (sys.stdin.read().splitlines() if entry == "-" else [entry]) if line]
    if not lines:
        raise FileNotFoundError("--input - found no names of files on the standard input")

    paths, empty = [], []
    for line in lines:
        # A name that has a glob's letters may be that of a file; one that is missing is said when its turn comes.
        is_plain = os.path.lexists(line) or not glob.has_magic(line)
        matches = [line] if is_plain else sorted(glob.glob(line, recursive=True))
        files = [path for match in matches for path in _images_below(Path(match), output)]
        paths += files
        if not files:
            empty.append(line)
    if empty:
        raise FileNotFoundError(f"no images in --input {', '.join(empty)}; images end in {', '.join(sorted(SUFFIXES))}")
    return paths


def _images_below(path: Path, output: Path) -> list[Path]:
    """List the images below a folder, without results of an earlier run; of any other path, itself."""
    if not os.path.isdir(path):
        return [path]
    images = sorted(image for image in path.rglob("*") if image.suffix.lower() in SUFFIXES)
    if path.resolve() in output.resolve().parents:
        images = [image for image in images if output.resolve() not in image.resolve().parents]
    return images


def prepare_output(output: Path, inputs: Iterable[Path]) -> None:
    """Make the folder for the results, and remove the unfinished files of a run that was killed.

    Raises:
        OSError: there is a file of that name, or the folder cannot be made.
        ValueError: an input lies in the folder, where a result might replace it.
    """
    folder = output.resolve()
    for path in inputs:
        if folder in (path.parent.resolve(), path.resolve().parent):
            raise ValueError(f"{path} lies in --output {output}, where results might replace it: give another folder")

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--output {output} cannot be the folder of the results: {error.strerror}") from None
    remove_unfinished(output)


def read_classes(text: str) -> tuple[list[str], bool]:
    """Read class words of "a, b", a file (a word a line) or a benchmark's name.

    Returns:
        the words, and whether the benchmark has a background before them.

    Raises:
        FileNotFoundError: a word looks like the name of a file, and there is none.
        ValueError: a data set without class words, or a file that is unfit.
    """
    if os.path.isfile(text):  # unlike Path's is_file, it bears a text that is too long for a name
        return read_words(text), False

    if text in DatasetCatalog.list():
        if "stuff_classes" not in MetadataCatalog.get(text).as_dict():
            raise ValueError(f"--classes: the data set '{text}' has no class words; benchmarks have, as shapes_val")
        return dataset_vocabulary(text)

    words = split_words(text)
    for word in words:
        if "/" in word or word.lower().endswith(TEXT_SUFFIXES):
            raise FileNotFoundError(
                f"--classes: no file '{word}'. If it is a class word, give the words in a file, a word a line"
            )
    return words, False


def result_names(paths: list[Path], heat_maps: Sequence[str]) -> list[str]:
    """Choose a name for each file's results: its stem, with a number where a result would replace another file's.

    Args:
        heat_maps: class words that heat maps are drawn of.
    """
    stems = [shorten(path.stem) for path in paths]
    counts = Counter(stems)
    numbers = defaultdict(lambda: itertools.count(1))
    names, taken = [""] * len(paths), set()

    # A stem that no other file has comes first, so that it stays as it is.
    for i in sorted(range(len(paths)), key=lambda i: counts[stems[i]] > 1):
        stem = stems[i]
        numbered = (f"{stem}_{number}" for number in numbers[stem])
        for name in numbered if counts[stem] > 1 else itertools.chain([stem], numbered):
            files = {path.name.casefold() for path in result_paths(Path(), name, heat_maps)}
            if taken.isdisjoint(files):
                names[i] = name
                taken |= files
                break
    return names


def segment_files(
    predictor: TCLPredictor, args: argparse.Namespace, paths: list[Path], words: list[str], background: bool
) -> int:
    """Segment every file, past those that are broken; return how many those are."""
    broken = 0
    classes = [BACKGROUND, *words] if background else words
    names = result_names(paths, classes if args.heat_maps else ())

    for path, name in zip(tqdm(paths, unit="image"), names):
        try:
            segmentation = predictor(path, words, background, labels_only=not args.heat_maps)
        except (OSError, ValueError) as error:
            broken += 1
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue

        overlay, *_ = segmentation.save(args.output, name, args.heat_maps)
        largest = sorted(segmentation.areas().items(), key=lambda item: -item[1])[:4]
        shares = ", ".join(f"{word} {100 * area:.0f} %" for word, area in largest if area > 0)
        tqdm.write(f"{path} -> {overlay}: {shares}")

    print(f"{len(paths) - broken} of {len(paths)} images segmented, in {args.output}")
    return broken


def frames(capture) -> Iterator[np.ndarray]:
    while True:
        more, frame = capture.read()
        if not more:
            return
        yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's are BGR


def segment_video(predictor: TCLPredictor, args: argparse.Namespace, words: list[str], background: bool) -> None:
    """Write the overlays of a video's frames as an mp4 file, or show a webcam's until q is pressed."""
    try:
        import cv2
    except ImportError as error:
        package = "opencv-python" if args.webcam else "opencv-python-headless"
        sys.exit(f"error: this needs OpenCV ({error}): pip install {package}")
    capture = cv2.VideoCapture(0 if args.webcam else args.video_input)
    if not capture.isOpened():
        sys.exit(f"error: cannot open {'the webcam' if args.webcam else args.video_input}")
    count = None if args.webcam else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    images = tqdm(frames(capture), total=count, unit="frame")
    segmentations = (predictor(image, words, background, labels_only=True) for image in images)
    pictures = (segmentation.draw_overlay(shares=False)[..., ::-1] for segmentation in segmentations)
    if args.webcam:
        return show(cv2, pictures)
    rate = capture.get(cv2.CAP_PROP_FPS) or 25
    write_video(cv2, pictures, rate, args.output / f"{Path(args.video_input).stem}.mp4")


def show(cv2: ModuleType, pictures: Iterator[np.ndarray]) -> None:
    for picture in pictures:
        cv2.imshow("q ends", picture)
        if cv2.waitKey(1) == ord("q"):
            return


def write_video(cv2: ModuleType, pictures: Iterator[np.ndarray], rate: float, path: Path) -> None:
    """Write BGR pictures uint8 [H, W, 3] of one size; Ctrl-C ends the video there."""
    unfinished, writer = path.with_name(f".{path.name}.tmp.mp4"), None  # OpenCV goes by how the name ends
    try:
        for picture in pictures:
            if writer is None:
                size = picture.shape[1::-1]
                writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
            writer.write(picture)
    except KeyboardInterrupt:
        print("stopped")
    if writer is None:
        sys.exit(f"error: no frames for {path}")
    writer.release()
    unfinished.replace(path)
    print(path)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=CONFIG, help="default: the small world's model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, globs or folders; - reads a list from the standard input")
    source.add_argument("--video-input", help="a video file")
    source.add_argument("--webcam", action="store_true", help="the first camera, in a window")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/demo"),
        help="folder for the results, in which no input may lie; results of an earlier run there are replaced",
    )
    parser.add_argument("--classes", required=True, help='"a, b", a file with a word a line, or a benchmark\'s name')
    parser.add_argument("--background", action="store_true", help="pixels that no word fits are background")
    parser.add_argument("--refine", choices=("on", "off"), help="PAMR; default: as the config says")
    parser.add_argument("--heat-maps", action="store_true", help="also a picture of each class's scores")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    # Names of files may be no UTF-8.
    sys.stdin.reconfigure(errors="surrogateescape")
    sys.stdout.reconfigure(errors="backslashreplace")

    with one_message():
        # What the user gave is looked at before the model is built.
        paths = find_inputs(args.input, args.output) if args.input else []
        if not args.webcam:
            prepare_output(args.output, paths or [Path(args.video_input)])
        words, background = read_classes(args.classes)
        background |= args.background
        words = class_words(words, background)

        options = [*args.opts]
        if args.refine:
            options += ["TEST.ZERO_SHOT.PAMR.ENABLED", args.refine == "on"]
        predictor = TCLPredictor(args.config_file, *options)
        predictor.model.embed_vocabulary(words, predictor.model.templates)  # words that do not work are said at once

        if args.input:
            sys.exit(1 if segment_files(predictor, args, paths, words, background) else 0)
        segment_video(predictor, args, words, background)


if __name__ == "__main__":
    main()
