"""Segment pictures, a video or a webcam's frames into words of yours.

tcl-d2 segment photos/*.jpg --classes "red apple, wooden table" --background --output output/demo
tcl-d2 segment photos --classes words.txt --model official --background "sky, wall"
tcl-d2 segment photos --classes words.txt --model official --method sclip
find photos -name '*.png' | tcl-d2 segment - --classes zeroshot_voc_val
tcl-d2 segment photos --onnx model.onnx        # an exported model, see tools/deploy/export_model.py
"""

import argparse
import glob
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from ..segmentation import Segmentation, result_paths, shorten
from ..utils.errors import one_message
from ..utils.files import remove_unfinished
from ..utils.progress import tqdm
from ..utils.words import BACKGROUND, as_vocabulary, class_names, split_background_words, split_words
from .model_options import add_model_options, read_model, with_method

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
Predictor = Callable[..., Segmentation]  # a TCLPredictor, or an OnnxSegmentor
TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".names")


def find_inputs(inputs: list[str], output: Path) -> list[Path]:
    """List the files to segment.

    Args:
        inputs: files, globs, folders (all images below them), or - for a list on the standard input.
        output: folder of the results, whose images are left out.

    Raises:
        FileNotFoundError: a folder has no images, a glob matches nothing, or the list is empty.
    """
    # Read the list on the standard input
    lines = []
    for entry in inputs:
        lines += sys.stdin.read().splitlines() if entry == "-" else [entry]
    lines = [line for line in lines if line]
    if not lines:
        raise FileNotFoundError("- found no names of files on the standard input")

    # Expand globs and folders
    paths, empty = [], []
    for line in lines:
        # A file's name may have the letters of a glob. A file that is missing is said when its turn comes.
        is_plain = os.path.lexists(line) or not glob.has_magic(line)
        matches = [line] if is_plain else sorted(glob.glob(line, recursive=True))
        files = [path for match in matches for path in _images_below(Path(match), output)]
        paths += files
        if not files:
            empty.append(line)
    if empty:
        raise FileNotFoundError(f"no images in {', '.join(empty)}; images end in {', '.join(sorted(SUFFIXES))}")
    return paths


def _images_below(path: Path, output: Path) -> list[Path]:
    """Return the images below a folder, without results of an earlier run; for any other path, the path itself."""
    if not os.path.isdir(path):
        return [path]
    images = sorted(image for image in path.rglob("*") if image.suffix.lower() in SUFFIXES)
    if path.resolve() in output.resolve().parents:
        images = [image for image in images if output.resolve() not in image.resolve().parents]
    return images


def prepare_output(output: Path, inputs: Iterable[Path]) -> None:
    """Make the folder for the results, and remove the unfinished files of a run that was killed.

    Args:
        output: the folder.
        inputs: files that are going to be read.

    Raises:
        OSError: the folder cannot be made, or there is a file of that name.
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


def read_background(text: str) -> list[str]:
    """Read the words of --background.

    Raises:
        argparse.ArgumentTypeError: no words; or an input, which stood after --background.
    """
    words = split_background_words(text)
    is_input = "," not in text and (os.path.lexists(text) or glob.has_magic(text) or text == "-")
    if is_input or any("/" in word or Path(word).suffix.lower() in SUFFIXES for word in words):
        raise argparse.ArgumentTypeError(
            f"'{text}' looks like an input, and stands where words of the background may stand: give inputs before "
            "--background, or another option between. A word of that name needs a comma: 'photos,'"
        )
    if not words:
        raise argparse.ArgumentTypeError("no words: give some, 'sky, wall', or --background alone")
    return words


def read_classes(text: str) -> tuple[list[str | list[str]], bool | list[str]]:
    """Read class words.

    Args:
        text: words such as "a, b" (see split_words), a file with a class a line, or the name of a benchmark. A first
            line "background, sky, wall" of a file is the background, with its words if it has any.

    Returns:
        the words, and whether there is a background besides, or its words.

    Raises:
        FileNotFoundError: a word looks like the name of a file, and there is none.
        ValueError: a dataset without class words, or a file that cannot be used.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from ..data.words import read_class_words
    from ..modeling.vocabulary import dataset_classes

    if os.path.isfile(text):  # unlike Path's is_file, it bears a text that is too long for a name
        class_words = read_class_words(text)
        if class_words[0][0] != BACKGROUND:
            return as_vocabulary(class_words), False
        return as_vocabulary(class_words[1:]), class_words[0][1:] or True

    if text in DatasetCatalog.list():
        if "stuff_classes" not in MetadataCatalog.get(text).as_dict():
            raise ValueError(f"--classes: the dataset '{text}' has no class words; benchmarks such as shapes_val have")
        return dataset_classes(text)

    words = split_words(text)
    for word in class_names(words):
        if "/" in word or word.lower().endswith(TEXT_SUFFIXES):
            raise FileNotFoundError(
                f"--classes: no file '{word}'. If it is a class word, give the words in a file, a class a line"
            )
    return words, False


def result_names(paths: list[Path], heat_maps: Sequence[str]) -> list[str]:
    """Choose a name for each file's results: its stem, with a number where a result would replace another file's.

    Args:
        paths: the files.
        heat_maps: class words that heat maps are drawn of.
    """
    stems = [shorten(path.stem) for path in paths]
    counts = Counter(stems)
    candidates = {stem: _candidates(stem, is_unique=counts[stem] == 1) for stem in counts}
    names, taken = [""] * len(paths), set()

    # Name files with unique stems first, so that they keep their stems
    for index in sorted(range(len(paths)), key=lambda index: counts[stems[index]] > 1):
        for name in candidates[stems[index]]:
            files = {path.name.casefold() for path in result_paths(Path(), name, heat_maps)}
            if taken.isdisjoint(files):
                names[index] = name
                taken |= files
                break
    return names


def _candidates(stem: str, is_unique: bool) -> Iterator[str]:
    """Yield names to try for files of a stem: the stem itself if it is unique, then with numbers."""
    if is_unique:
        yield stem
    for number in itertools.count(1):
        yield f"{stem}_{number}"


def segment_files(
    predictor: Predictor,
    args: argparse.Namespace,
    paths: list[Path],
    words: list[str | list[str]],
    background: bool | list[str],
) -> int:
    """Segment every file and write its results; return the number of files that could not be read."""
    num_broken = 0
    classes = [BACKGROUND, *class_names(words)] if background else class_names(words)
    names = result_names(paths, classes if args.heat_maps else ())

    for path, name in zip(tqdm(paths, unit="image"), names):
        try:
            segmentation = predictor(path, words, background, labels_only=not args.heat_maps)
        except (OSError, ValueError) as error:
            num_broken += 1
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue

        # Write the results, and say the largest areas
        overlay, *_ = segmentation.save(args.output, name, args.heat_maps)
        largest = sorted(segmentation.areas().items(), key=lambda item: -item[1])[:4]
        shares = ", ".join(f"{word} {100 * area:.0f} %" for word, area in largest if area > 0)
        tqdm.write(f"{path} -> {overlay}: {shares}")

    print(f"{len(paths) - num_broken} of {len(paths)} images segmented, in {args.output}")
    return num_broken


def read_frames(capture) -> Iterator[np.ndarray]:
    """Yield the frames of an OpenCV video, RGB uint8 [H, W, 3]."""
    while True:
        has_frame, frame = capture.read()
        if not has_frame:
            return
        yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's are BGR


def segment_video(
    predictor: Predictor, args: argparse.Namespace, words: list[str | list[str]], background: bool | list[str]
) -> None:
    """Write the overlays of a video's frames as an mp4 file, or show a webcam's until q is pressed."""
    try:
        import cv2
    except ImportError as error:
        package = "opencv-python" if args.webcam else "opencv-python-headless"
        sys.exit(f"error: this needs OpenCV ({error}): pip install {package}")

    # Open the video
    capture = cv2.VideoCapture(0 if args.webcam else args.video_input)
    if not capture.isOpened():
        sys.exit(f"error: cannot open {'the webcam' if args.webcam else args.video_input}")
    count = None if args.webcam else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))

    # Segment frame by frame
    images = tqdm(read_frames(capture), total=count, unit="frame")
    segmentations = (predictor(image, words, background, labels_only=True) for image in images)
    pictures = (segmentation.draw_overlay(shares=False)[..., ::-1] for segmentation in segmentations)
    if args.webcam:
        show(cv2, pictures)
    else:
        rate = capture.get(cv2.CAP_PROP_FPS) or 25
        write_video(cv2, pictures, rate, args.output / f"{Path(args.video_input).stem}.mp4")


def show(cv2: ModuleType, pictures: Iterator[np.ndarray]) -> None:
    """Show BGR pictures uint8 [H, W, 3] in a window until q is pressed."""
    for picture in pictures:
        cv2.imshow("q ends", picture)
        if cv2.waitKey(1) == ord("q"):
            return


def write_video(cv2: ModuleType, pictures: Iterator[np.ndarray], rate: float, path: Path) -> None:
    """Write BGR pictures uint8 [H, W, 3] of one size; Ctrl-C ends the video there."""
    unfinished = path.with_name(f".{path.name}.tmp.mp4")  # OpenCV takes the format from the name's end
    writer = None
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


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    # Input and output
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

    # Classes and settings
    parser.add_argument(
        "--classes",
        help='"a | synonym of a, b", a file with a class a line, or a benchmark\'s name; an exported model has its own',
    )
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
    parser.add_argument("--refine", choices=("on", "off"), help="PAMR; default: as the config says")
    parser.add_argument("--heat-maps", action="store_true", help="also a picture of each class's scores")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="an exported model, with its classes and settings")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help="its text embeddings, if they are its input")
    add_model_options(parser)
    return parser


def load_model(args: argparse.Namespace) -> tuple[Predictor, list[str | list[str]], bool | list[str]]:
    """Build the predictor; return it with its class words, and whether there is a background besides, or its words.

    Args:
        args: of `argument_parser`.
    """
    if args.onnx is not None:
        return load_exported(args)
    if args.classes is None or args.embeddings is not None:
        raise ValueError("give --classes WORDS, without --embeddings; or give an exported model, --onnx FILE")
    from ..predictor import class_words

    # Check what the user gave before the model is built
    options = ["TEST.ZERO_SHOT.PAMR.ENABLED", args.refine == "on"] if args.refine else []
    build_predictor = read_model(args, *options)
    words, background = read_classes(args.classes)
    if not isinstance(background, list) or isinstance(args.background, list):
        background = args.background or background
    words = class_words(words, bool(background))

    # Build the model
    predictor = with_method(build_predictor(), args.method)
    predictor.model.set_vocabulary(words, background)  # words that do not work are said at once
    return predictor, words, background


def load_exported(args: argparse.Namespace) -> tuple[Predictor, list[str | list[str]], bool | list[str]]:
    """Do what `load_model` does for an exported model, whose file holds all settings."""
    given = [f"--{name}" for name in ("classes", "background", "refine", "opts") if getattr(args, name)]
    if given:
        raise ValueError(f"{given[0]}: an exported model has its classes and settings in its file: export another one")
    from ..deploy import OnnxSegmentor

    segmentor = OnnxSegmentor(args.onnx, args.embeddings)
    return segmentor, segmentor.words, segmentor.background


def main(args: argparse.Namespace) -> None:
    """Segment, and exit with 1 if a file could not be read.

    Args:
        args: of `argument_parser`.
    """
    # File names need not be UTF-8
    sys.stdin.reconfigure(errors="surrogateescape")
    sys.stdout.reconfigure(errors="backslashreplace")

    with one_message():
        # Check what the user gave before the model is built
        inputs = args.inputs or args.input
        paths = find_inputs(inputs, args.output) if inputs else []
        if not args.webcam:
            prepare_output(args.output, paths or [Path(args.video_input)])
        predictor, words, background = load_model(args)

        # Segment
        if inputs:
            sys.exit(1 if segment_files(predictor, args, paths, words, background) else 0)
        segment_video(predictor, args, words, background)
