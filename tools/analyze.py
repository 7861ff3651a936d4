#!/usr/bin/env python
"""Look into an evaluation: classes, confusions, best and worst images, settings, wording, prompt templates.

python train_net.py --config-file configs/shapes/trained.yaml --eval-only TEST.ZERO_SHOT.SAVE_PREDICTIONS True
python tools/analyze.py predictions shapes_val output/shapes/tcl/inference/shapes_val/predictions
python tools/analyze.py settings shapes_val --refiners none pamr
python tools/analyze.py wording shapes_val --words "brick, red brick, brick wall, brick | red brick"
python tools/analyze.py templates shapes_val --images datasets/shapes/train
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

from tcl_d2.commands.inputs import find_inputs
from tcl_d2.data import check_datasets
from tcl_d2.data.benchmarks import BenchmarkMapper, class_legend
from tcl_d2.data.checks import check_have_labels
from tcl_d2.data.dataset_files import subsample
from tcl_d2.data.labels import LabelMapper, read_label
from tcl_d2.evaluation.confusion import check_class_indices, compute_metrics, confusion_matrix, most_confused
from tcl_d2.evaluation.dataset_settings import words_from_config
from tcl_d2.evaluation.template_choice import choose_templates, measure_entropies, words_to_choose_for, write_words
from tcl_d2.evaluation.zero_shot import prediction_path
from tcl_d2.modeling import TCL
from tcl_d2.modeling.refiners.base import Refiner
from tcl_d2.modeling.refiners.build import build_refiner
from tcl_d2.modeling.segmentor.score_rules import ScoreSettings
from tcl_d2.predictor import TCLPredictor
from tcl_d2.segmentation.drawing import draw_overlay
from tcl_d2.utils.errors import one_message
from tcl_d2.utils.files import replacing
from tcl_d2.utils.images import as_array
from tcl_d2.words.parsing import as_lists, class_names, split_words
from tcl_d2.words.templates import get_templates
from tcl_d2.words.vocabulary import dataset_classes, dataset_vocabulary

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

CONFIG = "shapes/trained.yaml"
THRESHOLDS = np.linspace(0, 1, 41)
KP_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def read_labels(data: str, count: int) -> Iterator[tuple[dict, np.ndarray]]:
    """Yield a benchmark's images with their labels; ignored pixels are the number of classes."""
    label_mapper = LabelMapper.of(data)
    for dataset_dict in tqdm(subsample(DatasetCatalog.get(data), count), unit="image"):
        yield dataset_dict, label_mapper.read(dataset_dict["sem_seg_file_name"])


def count_pixels(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix [K, K] of an image; label K is ignored."""
    prediction = torch.from_numpy(prediction.astype(np.int64))
    return confusion_matrix(prediction, torch.from_numpy(label), num_classes)[:, :num_classes].numpy()


def save_figure(figure, path: Path) -> None:
    """Write a figure of matplotlib as a PNG file, and close it."""
    figure.tight_layout()
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)
    plt.close(figure)


def draw_bars(ious: dict[str, float], path: Path) -> None:
    """Draw the IoU in percent of each class, the best above."""
    known = {name: iou for name, iou in ious.items() if np.isfinite(iou)}
    names = sorted(known, key=known.get)
    figure, axis = plt.subplots(figsize=(6, 0.8 + 0.2 * len(known)))
    axis.barh(names, [known[name] for name in names], color="tab:blue")
    axis.set_xlabel("IoU, %")
    axis.set_xlim(0, 100)
    axis.margins(y=0.01)
    save_figure(figure, path)


def draw_sheet(rows: list[tuple[float, dict, np.ndarray, np.ndarray]], data: str, path: Path, count: int = 4) -> None:
    """Draw the images with the best and the worst mIoU, prediction and truth side by side."""
    rows = sorted(rows, key=lambda row: row[0])
    chosen = rows[::-1][:count] + rows[:count][::-1]
    figure, axes = plt.subplots(len(chosen), 2, figsize=(7, 3.6 * len(chosen)), squeeze=False)

    for line, (miou, dataset_dict, prediction, label) in zip(axes, chosen):
        titles = f"{Path(dataset_dict['file_name']).stem}: mIoU {miou:.0f} %", "truth"
        for axis, title, labels in zip(line, titles, (prediction, label)):
            axis.imshow(draw_overlay(as_array(dataset_dict["file_name"]), labels, *class_legend(data)))
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    save_figure(figure, path)


def analyze_predictions(data: str, folder: Path, output: Path, count: int) -> dict:
    """Draw IoU bars and the best and worst images of predictions that an evaluation saved; print confusions.

    An image whose pixels are all ignored counts nowhere, and is neither among the best nor the worst.

    Args:
        data: name of the benchmark.
        folder: palette PNGs, named by image ID.
        output: folder of the pictures.
        count: number of images, evenly spaced; 0 for all.

    Returns:
        `mIoU` in percent, and `most confused`, the list of `most_confused`.

    Raises:
        ValueError: a prediction has another size than its label, or values that are no classes; names it.
    """
    classes = MetadataCatalog.get(data).stuff_classes
    total = np.zeros((len(classes), len(classes)), np.int64)
    rows = []

    # Compare each prediction with its label
    for dataset_dict, label in read_labels(data, count):
        path = prediction_path(folder, dataset_dict)
        prediction = read_label(str(path))
        if prediction.shape != label.shape:
            raise ValueError(
                f"{path} is {prediction.shape}, its label {label.shape}: not a prediction of this dataset."
            )
        check_class_indices(torch.from_numpy(prediction.astype(np.int64)), len(classes), str(path))
        matrix = count_pixels(prediction, label, len(classes))
        if matrix.any():
            total += matrix
            rows.append((compute_metrics(matrix, classes)["mIoU"], dataset_dict, prediction, label))

    # Draw and print
    result = compute_metrics(total, classes)
    draw_bars({name: result[f"IoU-{name}"] for name in classes}, output / "iou.png")
    draw_sheet(rows, data, output / "best_and_worst.png")
    confused = most_confused(total, classes)
    print(tabulate(confused, headers="keys", tablefmt="pipe"))
    return {"mIoU": result["mIoU"], "most confused": confused}


def labels_by_threshold(model: TCL, inputs: dict, thresholds: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield the labels [H, W] of an image with each score of the background, as an evaluation with it gives them."""
    inputs = {**inputs, "labels_only": True, "label_scores": True}
    if model.area_threshold > 0 or model.refines("classes"):  # by which the background's score goes into all others
        for model.background_score in thresholds:
            yield model([inputs])[0]["sem_seg_labels"].cpu().numpy()
        return

    model.background_score = 0.0
    output = model([inputs])[0]
    for threshold in thresholds:
        highest = ScoreSettings(threshold, model.logit_scale).highest_background
        is_background = output["sem_seg_scores"] <= highest if len(thresholds) > 1 else False
        yield torch.where(is_background, 0, output["sem_seg_labels"]).cpu().numpy()


@torch.no_grad()
def analyze_settings(
    data: str, predictor: TCLPredictor, output: Path, count: int, refiners: Sequence[str] = ()
) -> dict:
    """Compute mIoU for each refiner, share of CLIP's own masks and background score, in one pass over the images.

    Args:
        data: name of the benchmark.
        predictor: holds a TCL model.
        output: folder of the pictures.
        count: number of images, evenly spaced; 0 for all.
        refiners: values of TEST.ZERO_SHOT.REFINE; none for that of the configuration.

    Returns:
        the `best` settings, and `mIoU` in percent by the positions in `refiners`, `shares` and `background scores`.

    Raises:
        ValueError: the model is no TCL model, or a refiner is not known.
    """
    if not isinstance(predictor.model, TCL):
        raise ValueError("The effect of settings needs a TCL model.")
    cfg, model, classes = predictor.cfg, predictor.model, MetadataCatalog.get(data).stuff_classes
    mapper, words = BenchmarkMapper(cfg), words_from_config(cfg, data)
    built = build_refiners(cfg, refiners or [cfg.TEST.ZERO_SHOT.REFINE])
    has_background = dataset_vocabulary(data, words, model.identify).background
    thresholds = THRESHOLDS if has_background else [0.0]

    # Count pixels for each triple of settings; what they share of an image is computed once
    totals = np.zeros((len(built), len(KP_WEIGHTS), len(thresholds), len(classes), len(classes)), np.int64)
    with model.keep_settings(), keep_kp_weight(model):
        model.set_dataset(data, class_words={data: words})
        for dataset_dict, label in read_labels(data, count):
            inputs = mapper(dataset_dict)
            with model.clip.results.keep():
                for i, model.refiner in enumerate(built.values()):
                    for j, model.kp_weight in enumerate(KP_WEIGHTS):
                        for k, prediction in enumerate(labels_by_threshold(model, inputs, thresholds)):
                            totals[i, j, k] += count_pixels(prediction, label, len(classes))
    flat = [compute_metrics(matrix, classes)["mIoU"] for matrix in totals.reshape(-1, *totals.shape[-2:])]
    mious = np.reshape(flat, totals.shape[:3])
    draw_settings(thresholds, dict(zip(built, mious)), output / "settings.png")

    # Find the best triple
    i, j, k = np.unravel_index(np.argmax(mious), mious.shape)
    best = {"mIoU": float(mious[i, j, k]), "refiner": list(built)[i], "share of CLIP's masks": KP_WEIGHTS[j]}
    if has_background:
        best["score of the background"] = float(thresholds[k])
    print(f"best on these images: {best}. Results are reported on them: do not choose settings by them.")
    settings = {"refiners": list(built), "shares": KP_WEIGHTS, "background scores": list(thresholds)}
    return {"best": best, **settings, "mIoU": mious.tolist()}


def build_refiners(cfg: CfgNode, names: Sequence[str]) -> dict[str, Refiner | None]:
    """Build the refiners of these names, with the settings of a configuration; errors as build_refiner."""
    refiners = {}
    for name in names:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.ZERO_SHOT.REFINE = name
        refiners[name] = build_refiner(cfg)
        if refiners[name] is not None:
            refiners[name].load()
    return refiners


@contextmanager
def keep_kp_weight(model: TCL) -> Iterator[None]:
    """Restore a model's share of CLIP's own masks at the end of the block."""
    kp_weight = model.kp_weight
    try:
        yield
    finally:
        model.kp_weight = kp_weight


def draw_settings(thresholds: Sequence[float], mious: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw lines of mIoU over the background's score or, without a background, over the share of CLIP's own masks.

    Args:
        thresholds: background scores; a single one where there is no background.
        mious: mIoU in percent by refiner, a row for each share of KP_WEIGHTS, a column for each threshold.
        path: of the picture.
    """
    figure, axes = plt.subplots(1, len(mious), figsize=(6.5 * len(mious), 4), squeeze=False, sharey=True)
    for axis, (refiner, rows) in zip(axes[0], mious.items()):
        axis.set_title(refiner)
        if len(thresholds) > 1:
            for weight, row in zip(KP_WEIGHTS, rows):
                axis.plot(thresholds, row, label=f"CLIP's share {weight}")
            axis.set_xlabel("score of the background")
            axis.legend(fontsize=8)
        else:
            axis.plot(KP_WEIGHTS, rows[:, 0], marker="o")
            axis.set_xlabel("share of CLIP's own masks")

    axes[0, 0].set_ylabel("mIoU, %")
    save_figure(figure, path)


@torch.no_grad()
def analyze_wording(data: str, predictor: TCLPredictor, output: Path, count: int, words: Sequence) -> dict:
    """Compute the IoU in percent of a class under several names for it; the other classes keep theirs.

    Args:
        data: name of the benchmark.
        predictor: holds the model.
        output: folder of the picture.
        count: number of images, evenly spaced; 0 for all.
        words: the class's name, then other words for it, or lists of words that are looked for together. A list may be
            the first too; then its first word is the class's name.

    Returns:
        the IoU of each word, or of several as "a | b".

    Raises:
        ValueError: the first word is no class of the benchmark, or no image has it.
    """
    mapper, classes = BenchmarkMapper(predictor.cfg), MetadataCatalog.get(data).stuff_classes
    vocabulary, background = dataset_classes(data)
    first = len(classes) - len(vocabulary)  # after the background, if there is one
    name = class_names(words)[0]
    if name not in classes[first:]:
        raise ValueError(f"'{name}', the first of the words, must be a class of {data}: {', '.join(classes[first:])}")

    # Count pixels for each word, over the images that have the class
    index = classes.index(name)
    wordings = dict(zip(map(" | ".join, as_lists(words)), words))
    totals = {text: np.zeros((len(classes), len(classes)), np.int64) for text in wordings}
    for dataset_dict, label in read_labels(data, count):
        if not (label == index).any():
            continue
        for text, entry in wordings.items():
            reworded = list(vocabulary)
            reworded[index - first] = entry
            inputs = {**mapper(dataset_dict), "vocabulary": reworded, "background": background, "labels_only": True}
            prediction = predictor.model([inputs])[0]["sem_seg_labels"].cpu().numpy()
            totals[text] += count_pixels(prediction, label, len(classes))
    if not any(matrix.any() for matrix in totals.values()):
        raise ValueError(f"None of the images has '{name}'.")

    # Draw and print
    ious = {text: compute_metrics(matrix, classes)[f"IoU-{name}"] for text, matrix in totals.items()}
    draw_bars(ious, output / "wording.png")
    print(tabulate(ious.items(), headers=("word", f"IoU of '{name}', %"), tablefmt="pipe", floatfmt=".1f"))
    return ious


def analyze_templates(data: str, predictor: TCLPredictor, output: Path, images: list[dict], keep: int) -> dict:
    """Choose each class's prompt templates among OpenAI's 80 without labels, and write them to words.txt.

    Args:
        data: the benchmark of the classes.
        predictor: holds the model.
        output: folder of the file, and of the progress of a run that is stopped.
        images: rows with `file_name`.
        keep: how many templates a class gets.

    Returns:
        for each class, by its first word, its `templates`, the surest first, their `entropies` in nats, and its
        `pixels` under each of them.
    """
    class_words, templates = words_to_choose_for(predictor.cfg, data), get_templates("openai_imagenet")
    folder = output / "templates"
    entropies, pixels = measure_entropies(predictor.cfg, predictor.model, class_words, templates, images, folder)
    chosen = choose_templates(entropies, keep)
    write_words(output / "words.txt", class_words, [[templates[index] for index in indices] for indices in chosen])

    # Print
    missing = [words[0] for words, indices in zip(class_words, chosen) if not indices]
    if missing:
        print(f"no pixel became one of these classes, which keep the model's templates: {', '.join(missing)}")
    print(f"for all methods: TEST.ZERO_SHOT.WORDS {output / 'words.txt'}")
    return {
        words[0]: {
            "templates": [templates[index] for index in indices],
            "entropies": entropies[indices, column].tolist(),
            "pixels": pixels[indices, column].tolist(),
        }
        for column, (words, indices) in enumerate(zip(class_words, chosen))
    }


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("predictions", "settings", "wording", "templates"))
    parser.add_argument("data", help="a benchmark, registered or a folder")
    parser.add_argument("folder", type=Path, nargs="?", help="predictions: palette PNGs, named by image ID")
    parser.add_argument("--config-file", default=CONFIG)
    parser.add_argument("--words", default="", help="wording: a class of the dataset, then other words for it")
    parser.add_argument("--images", nargs="+", help="templates: pictures, folders or globs in place of the benchmark's")
    parser.add_argument("--keep", type=int, default=4, help="templates: how many each class gets")
    parser.add_argument("--refiners", nargs="+", default=[], help="settings: values of TEST.ZERO_SHOT.REFINE")
    parser.add_argument("--count", type=int, default=0, help="number of images, evenly spaced; 0: all")
    parser.add_argument("--output", type=Path, default=Path("output/analysis"), help="folder")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over the config's, last")
    return parser


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    words = split_words(args.words)
    if args.what == "predictions" and args.folder is None:
        parser.error("give the folder of predictions")
    if args.what == "wording" and len(words) < 2:
        parser.error("give --words: a class, and at least one other word for it")
    if args.keep < 1:
        parser.error("--keep is at least 1")

    with one_message():
        check_datasets(test=[args.data])
        if args.what != "templates":
            check_have_labels([args.data])
        if args.what == "predictions":
            result = analyze_predictions(args.data, args.folder, args.output, args.count)
        elif args.what == "templates":
            files = find_inputs(args.images, args.output) if args.images else {}
            rows = [{"file_name": str(path)} for path in files] or DatasetCatalog.get(args.data)
            predictor = TCLPredictor(args.config_file, *args.opts)
            result = analyze_templates(args.data, predictor, args.output, subsample(rows, args.count), args.keep)
        else:
            predictor = TCLPredictor(args.config_file, *args.opts)
            common = args.data, predictor, args.output, args.count
            if args.what == "settings":
                result = analyze_settings(*common, args.refiners)
            else:
                result = analyze_wording(*common, words)

    with replacing(args.output / f"{args.what}.json") as unfinished:
        unfinished.write_text(json.dumps(result, indent=1))
    print(f"pictures and figures in {args.output}")


if __name__ == "__main__":
    main()
