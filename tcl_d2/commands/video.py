"""Videos and a webcam's frames: segmented one by one, written as a video or shown in a window."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from ..predictor import TCLPredictor
from ..utils.imports import import_optional
from ..words.words import Words


def segment_video(predictor: TCLPredictor, args: argparse.Namespace, words: Words) -> None:
    """Write the overlays of a video's frames as an mp4 file, or show a webcam's until q is pressed."""
    package = "opencv-python" if args.webcam else "opencv-python-headless"
    cv2 = import_optional("cv2", "--webcam or --video-input with OpenCV", package)

    # Open the video
    capture = cv2.VideoCapture(0 if args.webcam else _file_name(args.video_input))
    if not capture.isOpened():
        sys.exit(f"error: cannot open {'the webcam' if args.webcam else args.video_input}")
    count = None if args.webcam else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))

    # Segment frame by frame
    images = tqdm(read_frames(capture), total=count, unit="frame")
    segmentations = (predictor(image, words, labels_only=True) for image in images)
    pictures = (segmentation.draw_overlay(shares=False)[..., ::-1] for segmentation in segmentations)
    if args.webcam:
        show(cv2, pictures)
    else:
        rate = capture.get(cv2.CAP_PROP_FPS) or 25
        write_video(cv2, pictures, rate, args.output / f"{Path(args.video_input).stem}.mp4")


def read_frames(capture: Any) -> Iterator[np.ndarray]:
    """Yield the frames of an OpenCV video, RGB uint8 [H, W, 3]."""
    while True:
        has_frame, frame = capture.read()
        if not has_frame:
            return
        yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV's are BGR


def show(cv2: ModuleType, pictures: Iterator[np.ndarray]) -> None:
    """Show BGR pictures uint8 [H, W, 3] in a window until q is pressed."""
    for picture in pictures:
        cv2.imshow("q ends", picture)
        if cv2.waitKey(1) == ord("q"):
            return


def write_video(cv2: ModuleType, pictures: Iterator[np.ndarray], rate: float, path: Path) -> None:
    """Write BGR pictures uint8 [H, W, 3] of one size as an mp4 file, `rate` a second; Ctrl-C ends it there."""
    unfinished = path.with_name(f".{path.name}.tmp.mp4")  # OpenCV takes the format from the name's end
    writer = None
    try:
        for picture in pictures:
            if writer is None:
                size = picture.shape[1::-1]
                writer = cv2.VideoWriter(_file_name(unfinished), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
            writer.write(picture)
    except KeyboardInterrupt:
        print("stopped")

    if writer is None:
        sys.exit(f"error: no frames for {path}")
    writer.release()
    unfinished.replace(path)
    print(path)


def _file_name(path: str | Path) -> str | bytes:
    """Return a path as OpenCV takes it: text, or where it is no UTF-8 its bytes, which OpenCV takes since version 5."""
    name = os.fsencode(path)
    with suppress(UnicodeDecodeError):
        return name.decode()
    return name
