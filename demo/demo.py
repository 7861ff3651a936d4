#!/usr/bin/env python
"""Segments pictures, a video or a webcam's into words of yours.

python demo/demo.py --input photos/*.jpg --classes "red apple, wooden table" --background --output output/demo
python demo/demo.py --config-file configs/eval/official.yaml --input photos --classes words.txt
find photos -name '*.png' | python demo/demo.py --input - --classes zeroshot_voc_val
"""

import argparse
import glob
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from tcl_d2 import load_config, visualization
from tcl_d2.errors import one_message
from tcl_d2.modeling.text import dataset_vocabulary
from tcl_d2.predictor import TCLPredictor, split_words

CONFIG = Path(__file__).resolve().parent.parent / "configs/shapes/trained.yaml"  # from any folder
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def find_inputs(inputs: list[str]) -> list[Path]:
    """The files that are meant: files, globs, folders (all images below), or - for a list on the standard input."""
    lines = [line for one in inputs for line in (sys.stdin.read().splitlines() if one == "-" else [one]) if line]
    paths = []
    for line in lines:
        if Path(line).is_dir():
            paths += sorted(path for path in Path(line).rglob("*") if path.suffix.lower() in SUFFIXES)
        else:
            paths += [Path(path) for path in sorted(glob.glob(line))] or [Path(line)]
    return paths


def read_classes(text: str) -> tuple[list[str], bool]:
    """Class words of "a, b", a file (a word a line) or a benchmark's name, and whether that has a background."""
    if Path(text).is_file():
        return [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()], False
    if text in MetadataCatalog.list() and "stuff_classes" in MetadataCatalog.get(text).as_dict():
        return dataset_vocabulary(text)
    return split_words(text), False


def output_names(paths: list[Path]) -> list[str]:
    """A name for each file's results: its stem, numbered where several have the same."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}_{stems[: i + 1].count(stem)}" for i, stem in enumerate(stems)]


def segment_files(predictor: TCLPredictor, args: argparse.Namespace, words: list[str], background: bool) -> int:
    """Segments every file, past those that are broken -> how many those are."""
    paths, broken = find_inputs(args.input), 0
    for path, name in zip(tqdm(paths, unit="image"), output_names(paths)):
        try:
            found = predictor(path, words, background)
        except (OSError, ValueError) as error:
            broken += 1
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue
        visualization.save(found, args.output, name, args.heat_maps)
        largest = sorted(found.areas().items(), key=lambda item: -item[1])[:4]
        tqdm.write(f"{path}: " + ", ".join(f"{word} {100 * area:.0f} %" for word, area in largest if area > 0))
    print(f"{len(paths) - broken} of {len(paths)} images segmented, in {args.output}")
    return broken


def frames(capture) -> Iterator[np.ndarray]:
    while True:
        more, frame = capture.read()
        if not more:
            return
        yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's are BGR


def segment_video(predictor: TCLPredictor, args: argparse.Namespace, words: list[str], background: bool) -> None:
    """Writes the overlays of a video's frames as an mp4 file, or shows a webcam's until q is pressed."""
    try:
        import cv2
    except ImportError as error:
        package = "opencv-python" if args.webcam else "opencv-python-headless"
        sys.exit(f"error: this needs OpenCV ({error}): pip install {package}")
    capture = cv2.VideoCapture(0 if args.webcam else args.video_input)
    if not capture.isOpened():
        sys.exit(f"error: cannot open {'the webcam' if args.webcam else args.video_input}")
    count = None if args.webcam else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    found = (predictor(frame, words, background) for frame in tqdm(frames(capture), total=count, unit="frame"))
    pictures = (visualization.draw_overlay(one, shares=False)[..., ::-1] for one in found)
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
    """Writes BGR pictures uint8 [H, W, 3] of one size; Ctrl-C ends the video there."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder")
    parser.add_argument("--classes", required=True, help='"a, b", a file with a word a line, or a benchmark\'s name')
    parser.add_argument("--background", action="store_true", help="pixels that no word fits are background")
    parser.add_argument("--refine", choices=("on", "off"), help="PAMR; default: as the config says")
    parser.add_argument("--heat-maps", action="store_true", help="also a picture of each class's scores")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    words, background = read_classes(args.classes)
    background |= args.background
    options = [*args.opts]
    if args.refine:
        options += ["TEST.ZERO_SHOT.PAMR.ENABLED", args.refine == "on"]
    with one_message():
        predictor = TCLPredictor(load_config(args.config_file, options))
        predictor.model.embed_vocabulary(words, predictor.model.templates)  # words that do not work are said at once
    if args.input:
        sys.exit(1 if segment_files(predictor, args, words, background) else 0)
    segment_video(predictor, args, words, background)


if __name__ == "__main__":
    main()
