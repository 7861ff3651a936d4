"""The choice of prompt templates without labels: for each class those that make its pixels surest.

FLOSS (arXiv 2504.10487) segments unlabeled images with each template alone, and takes for a class the templates under
which the pixels that become this class have the lowest mean entropy.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from tqdm import tqdm

from ..data.benchmarks import BenchmarkMapper
from ..modeling.segmentor.base import ZeroShotSegmentor
from ..runs.signals import SignalCatcher
from ..utils.errors import expect
from ..utils.files import replacing
from ..utils.tensors import digest_weights
from ..words.datasets import dataset_metadata, is_of_objects
from ..words.parsing import as_lists, as_vocabulary, join_templates, without_templates
from ..words.vocabulary import dataset_classes
from .dataset_settings import words_from_config
from .evaluation_pass import evaluation_settings
from .progress import EvaluationProgress, fingerprint, stat_files

logger = logging.getLogger(__name__)
SCALE = 100.0  # CLIP's own: of cosines, for methods that have no scale


def words_to_choose_for(cfg: CfgNode, dataset_name: str) -> list[list[str]]:
    """Return the words, without templates, of each class of a dataset; first the background's, where it has any.

    Raises:
        ValueError: a word stands for several classes; or see words_from_config.
    """
    if dataset_metadata(dataset_name).get("shared_words", False):
        raise ValueError(f"'{dataset_name}' has words that stand for several classes; expected a benchmark without.")
    classes, background = dataset_classes(dataset_name, words_from_config(cfg, dataset_name))
    first = [background] if isinstance(background, list) and not is_of_objects(dataset_name) else []
    return [[*dict.fromkeys(map(without_templates, words))] for words in [*first, *as_lists(classes)]]


def measure_entropies(
    cfg: CfgNode,
    model: ZeroShotSegmentor,
    class_words: Sequence[Sequence[str]],
    templates: Sequence[str],
    rows: Sequence[dict],
    folder: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how sure a model is of each class's pixels under each template alone.

    Probabilities are a softmax over the classes of scores times TEST.ZERO_SHOT.LOGIT_SCALE or, where that is 0, SCALE;
    scores are not refined. A run that is stopped goes on from `folder`.

    Returns:
        mean entropies of each class's pixels in nats, nan where it has none, float64 [T, K]; their numbers, int64.
    """
    facts = {"settings": evaluation_settings(cfg), "words": class_words, "templates": list(templates)}
    mark = fingerprint(digest_weights(model), **facts, data=[row["file_name"] for row in rows], files=stat_files(rows))
    progress = _open_progress(folder, mark, (len(templates), len(class_words)))
    sums, done = progress.statistics, set(progress.done)

    mapper, vocabulary = BenchmarkMapper(cfg), _without_twins(class_words)
    scale = cfg.TEST.ZERO_SHOT.LOGIT_SCALE or SCALE
    with model.keep_settings(), SignalCatcher() as catcher:
        for row in tqdm([row for row in rows if row["file_name"] not in done], unit="image"):
            inputs = mapper(row)
            if "error" in inputs:
                logger.warning("Image left out: %s", inputs["error"])
                continue
            _add_image(model, inputs["image"], vocabulary, templates, scale, sums)
            progress.done.append(row["file_name"])
            if progress.is_due or catcher.number:
                progress.save(sums, progress.done)
            if catcher.number:
                print("stopped, and what is done is saved: the same command goes on from it", file=sys.stderr)
                sys.exit(128 + catcher.number)
    progress.save(sums, progress.done)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan
        return sums["entropies"] / sums["pixels"], sums["pixels"]


def _open_progress(folder: Path, mark: str, shape: tuple[int, int]) -> EvaluationProgress:
    progress = EvaluationProgress(folder, mark, resume=True)
    progress.restore({"entropies": np.zeros(shape), "pixels": np.zeros(shape, np.int64)})
    return progress


def _without_twins(class_words: Sequence[Sequence[str]]) -> list[str | list[str]]:
    """Return classes of different words: the background's, which come first, may be words of other classes too."""
    others = {word for words in class_words[1:] for word in words}
    first = [word for word in class_words[0] if word not in others] or class_words[0]
    return as_vocabulary([first, *class_words[1:]])


@torch.no_grad()
def _add_image(
    model: ZeroShotSegmentor,
    image: Tensor,
    vocabulary: Sequence[str | list[str]],
    templates: Sequence[str],
    scale: float,
    sums: Mapping[str, np.ndarray],
) -> None:
    """Add an image's entropies and pixels to the sums, in place; the image is encoded once."""
    plain = {"refiner": None, "logit_scale": 0.0, "area_threshold": 0.0, "background_score": 0.0}
    kept_crops = []
    for index, template in enumerate(templates):
        model.set_protocol(**{**model.protocol, **plain, "templates": [template]})
        scores = model([{"image": image, "vocabulary": vocabulary, "kept_crops": kept_crops}])[0]["sem_seg"]
        entropies, pixels = entropy_by_class(scores, scale)
        sums["entropies"][index] += entropies.cpu().numpy()
        sums["pixels"][index] += pixels.cpu().numpy()


def entropy_by_class(scores: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Sum the entropies of the pixels of each class: scores [K, H, W] -> float64 [K], and their number, int64 [K]."""
    log_probabilities = (scale * scores.double()).log_softmax(0)
    entropies = -(log_probabilities.exp() * log_probabilities).sum(0)
    labels, count = scores.argmax(0).flatten(), len(scores)
    return (
        torch.bincount(labels, weights=entropies.flatten(), minlength=count),
        torch.bincount(labels, minlength=count),
    )


def choose_templates(entropies: np.ndarray, count: int) -> list[list[int]]:
    """Return the templates of each class with the lowest entropy, the lowest first; none where it has no pixel.

    Args:
        entropies: [T, K], nan where a class has no pixel under a template.
        count: how many a class gets at most.
    """
    orders = np.argsort(entropies, axis=0, kind="stable").T  # nan comes last
    return [order[np.isfinite(column[order])][:count].tolist() for order, column in zip(orders, entropies.T)]


def write_words(path: Path, class_words: Sequence[Sequence[str]], templates: Sequence[Sequence[str]]) -> None:
    """Write a file of words, see read_class_words, in which the words of each class have templates of their own.

    ValueError for a template with a comma or a semicolon, which separate words.
    """
    for template in {template for chosen in templates for template in chosen}:
        expect(not set(",;") & set(template), "a prompt template", f"'{template}'", "none with a comma or a semicolon")
    lines = [
        ", ".join(join_templates(word, chosen) if chosen else word for word in words)
        for words, chosen in zip(class_words, templates, strict=True)
    ]
    with replacing(path) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
