#!/usr/bin/env python
"""Compare how a model runs: torch, torch.export with torch.compile, and ONNX Runtime, in fp32 and with fewer bits.

    python tools/deploy/compare_runtimes.py                    # the small world's model; a few minutes
    python tools/deploy/compare_runtimes.py --threads 1 --images 20 --skip program

Prints a table: the median seconds for an image, measured by turns; mIoU over the images; the share of pixels whose
label is torch's; and the size of what is run. A runtime with fewer bits shows what they cost.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from tcl_d2.commands.model_options import read_model, with_method
from tcl_d2.commands.options.model import add_model_options
from tcl_d2.deploy import OnnxSegmentor
from tcl_d2.evaluation import build_evaluator
from tcl_d2.export import CropScores, embed_vocabulary, make_card, make_program, save_onnx
from tcl_d2.predictor import TCLPredictor
from tcl_d2.segmentation import Segmentation
from tcl_d2.utils.errors import one_message
from tcl_d2.words.vocabulary import dataset_classes

Runtime = Callable[[str], Segmentation]  # from an image's path


def torch_runtime(predictor: TCLPredictor, dataset_name: str) -> Runtime:
    """Return the predictor with a dataset's classes, for labels alone."""
    classes, background = dataset_classes(dataset_name)
    return lambda path: predictor(path, classes, background, labels_only=True)


def exported_runtimes(predictor: TCLPredictor, dataset_name: str, folder: Path, args: argparse.Namespace) -> dict:
    """Export the model, and return its runtimes by name, each with the bytes of its file (0 for none)."""
    vocabulary = embed_vocabulary(predictor.model, *dataset_classes(dataset_name))
    card = make_card(predictor.model, predictor.cfg, vocabulary=vocabulary.card)
    module = CropScores(predictor.model, vocabulary.text)

    # ONNX Runtime
    runtimes = {}
    for name, int8 in (("ONNX Runtime fp32", False), ("ONNX Runtime int8", True)):
        path = folder / f"{'int8' if int8 else 'fp32'}.onnx"
        save_onnx(module, path, card, int8)
        segmentor = OnnxSegmentor(path, num_threads=args.threads)
        runtimes[name] = (_labels(segmentor), path.stat().st_size)

    # The same windows and averages around the compiled program
    if args.skip != "program":
        program = torch.compile(make_program(module, card).module())
        segmentor = OnnxSegmentor(folder / "fp32.onnx", num_threads=args.threads)
        segmentor.predict = _predict_by(program)
        runtimes["torch.export + compile fp32"] = (_labels(segmentor), 0)
    return runtimes


def _labels(segmentor: OnnxSegmentor) -> Runtime:
    return lambda path: segmentor(path, labels_only=True)


def _predict_by(program: Callable) -> Callable[[np.ndarray], np.ndarray]:
    def predict(crops: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(crops)).numpy()

    return predict


def measure(runtimes: dict[str, tuple[Runtime, int]], cfg, dataset_name: str, num_images: int) -> list[list]:
    """Run every image on each runtime in turn; return rows of the table, the first runtime's labels as reference."""
    rows = DatasetCatalog.get(dataset_name)[:num_images]
    evaluators = {name: build_evaluator(cfg, dataset_name) for name in runtimes}
    seconds = {name: [] for name in runtimes}
    equal = {name: [] for name in runtimes}

    for runtime, _ in runtimes.values():  # compile and allocate before the clock starts
        runtime(rows[0]["file_name"])
    for row in rows:
        reference = None
        for name, (runtime, _) in runtimes.items():
            start = time.perf_counter()
            labels = runtime(row["file_name"]).labels
            seconds[name].append(time.perf_counter() - start)
            reference = labels if reference is None else reference
            equal[name].append(np.mean(labels == reference))
            evaluators[name].process([row], [{"sem_seg_labels": torch.from_numpy(labels)}])

    table = []
    for name, (_, size) in runtimes.items():
        miou = evaluators[name].evaluate()["sem_seg"]["mIoU"]
        table.append([name, np.median(seconds[name]), miou, 100 * np.mean(equal[name]), size / 1e6 or None])
    return table


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="shapes_val", help="a benchmark, whose classes and images are used")
    parser.add_argument("--images", type=int, default=100, help="how many of its images")
    parser.add_argument("--threads", type=int, default=1, help="threads of each runtime")
    parser.add_argument("--skip", choices=("program",), help="leave out torch.export, which compiles for minutes")
    add_model_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure, and print the table."""
    torch.set_num_threads(args.threads)
    with one_message(), TemporaryDirectory() as folder:
        build = read_model(args, "MODEL.DEVICE", "cpu")
        predictor = with_method(build(), args.method)
        runtimes = {"torch fp32": (torch_runtime(predictor, args.dataset), 0)}
        runtimes |= exported_runtimes(predictor, args.dataset, Path(folder), args)

        build = read_model(args, "MODEL.DEVICE", "cpu", "TEST.ZERO_SHOT.PRECISION", "bfloat16")
        halved = with_method(build(), args.method)
        runtimes["torch bfloat16"] = (torch_runtime(halved, args.dataset), 0)
        table = measure(runtimes, predictor.cfg, args.dataset, args.images)
    print(tabulate(table, ["runtime", "s an image", "mIoU", "labels equal (%)", "file (MB)"], "github", floatfmt=".3f"))


if __name__ == "__main__":
    main(argument_parser().parse_args())
