"""Segment pictures with an exported model, on ONNX Runtime: torch and Detectron2 need not be installed.

tcl-d2 segment photos/*.jpg --onnx model.onnx --output output/demo
tcl-d2 segment photos --onnx model.onnx --embeddings words.npz    # a model that was exported without classes
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..deploy import OnnxSegmentor
from ..utils.errors import one_message
from ..utils.locks import locked_folder
from .inputs import find_inputs
from .result_folder import PURPOSE, ResultFolder, Source


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="images, globs or folders; - reads a list from the standard input")
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE", help="an exported model, with its settings")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help="text embeddings, for a model without classes")
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for the results")
    parser.add_argument("--heat-maps", action="store_true", help="also a picture of each class's scores")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; default: as many as cores")
    return parser


def segment_files(segmentor: OnnxSegmentor, sources: Sequence[Source], output: Path, heat_maps: bool) -> None:
    """Segment files one after another, and say which could not be read."""
    for number, source in enumerate(sources, 1):
        try:
            segmentation = segmentor(source.path, labels_only=not heat_maps)
        except (OSError, ValueError) as error:
            print(f"left out: {error}", file=sys.stderr)
            continue

        path, *_ = segmentation.save(output, source.name, heat_maps, state=source.state)
        print(f"{number} of {len(sources)}: {source.path} -> {path}: {segmentation.describe_areas()}")


def main(args: argparse.Namespace) -> None:
    """Segment, and exit with 1 if a file could not be read."""
    # File names need not be UTF-8
    sys.stdin.reconfigure(errors="surrogateescape")

    with one_message(OSError, ValueError, ImportError):
        files = find_inputs(args.inputs, args.output)
        segmentor = OnnxSegmentor(args.onnx, args.embeddings, num_threads=args.threads)
        folder = ResultFolder(args.output, files, segmentor.vocabulary.names if args.heat_maps else ())

        with locked_folder(args.output, PURPOSE, "--output"):
            sources = folder.begin({"--onnx": str(args.onnx), "--heat-maps": args.heat_maps})
            segment_files(segmentor, sources, args.output, args.heat_maps)
            folder.finish()
