"""What a request to segment asks for: its words, its model, and all that the results depend on."""

import argparse
import os
from collections.abc import Callable
from difflib import get_close_matches

from detectron2.data import DatasetCatalog

from ..data.benchmarks import benchmark_classes
from ..evaluation.evaluation_pass import evaluation_settings
from ..predictor import TCLPredictor
from ..utils.tensors import digest_weights
from ..words.files import read_class_words
from ..words.parsing import BACKGROUND, as_vocabulary, class_names, split_words
from ..words.specificity import at_specificity
from ..words.words import Words
from .model_options import read_model

TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".names")


def read_request(args: argparse.Namespace) -> tuple[Callable[[], TCLPredictor], Words]:
    """Return a function that builds the model (see read_model), and the words."""
    options = ["TEST.ZERO_SHOT.REFINE", args.refine] if args.refine else []
    if args.regions:
        options += ["TEST.ZERO_SHOT.REGIONS.FOLDER", str(args.regions)]
    build_predictor = read_model(args, *options)  # which registers the user's benchmarks
    return build_predictor, read_words(args.classes, args.background, args.specificity)


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
