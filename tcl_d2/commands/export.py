"""Export a model, or the text embeddings of a vocabulary."""

import argparse
from importlib.util import find_spec

from ..deploy.card import EmbeddingsCard
from ..export import (
    CropLabels,
    CropScores,
    check_exportable,
    embed_vocabulary,
    make_card,
    save_embeddings,
    save_onnx,
    save_program,
)
from ..export.cards import digest_text_encoder
from ..modeling.segmentor.score_rules import ScoreSettings
from ..predictor import TCLPredictor
from ..utils.errors import one_message
from ..utils.files import check_output
from .model_options import read_model, with_method
from .options.export import SUFFIXES
from .segment_request import read_words


def check_arguments(args: argparse.Namespace) -> None:
    """Check that the arguments go together, and that the packages are there; ValueError says what does not."""
    suffix = args.output.suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"the output's name must end in {', '.join(SUFFIXES)}, not '{suffix}'")
    if not args.classes and (args.labels or args.background or suffix == ".npz"):
        raise ValueError("--labels, --background and an .npz file need --classes")
    if suffix == ".npz" and args.labels or suffix != ".onnx" and args.int8:
        raise ValueError(f"a {suffix} file goes without --labels and --int8")

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if suffix == ".onnx" and missing:
        raise ValueError(f"an .onnx file needs {', '.join(missing)}: pip install {' '.join(missing)}")


def export(predictor: TCLPredictor, args: argparse.Namespace) -> None:
    """Write the model, or text embeddings."""
    model = predictor.model
    check_exportable(model)

    # Embed the classes
    vocabulary = None
    if args.classes:
        vocabulary = embed_vocabulary(model, read_words(args.classes, args.background))
    if args.output.suffix == ".npz":
        if vocabulary.background_words is not None:
            raise ValueError("this model finds the background itself, in a graph with its classes: give an .onnx file")
        save_embeddings(args.output, vocabulary.text, EmbeddingsCard(digest_text_encoder(model), vocabulary.card))
        return

    # Make the module
    module = CropScores(model, vocabulary and vocabulary.text, vocabulary and vocabulary.background_words)
    if args.labels:
        background_score = 0.0 if model.has_background_map else model.background_score
        settings = ScoreSettings(background_score, model.logit_scale, model.area_threshold)
        module = CropLabels(module, vocabulary.subset, settings)

    # Write it
    card = make_card(model, predictor.cfg, "labels" if args.labels else "scores", vocabulary and vocabulary.card)
    if args.output.suffix == ".onnx":
        save_onnx(module, args.output, card, args.int8)
    else:
        save_program(module, args.output, card)


def main(args: argparse.Namespace) -> None:
    """Export, and print the size of the file."""
    with one_message():
        check_arguments(args)
        check_output(args.output)
        predictor = with_method(read_model(args, "MODEL.DEVICE", "cpu")(), args.method)
        export(predictor, args)
        print(f"{args.output}: {args.output.stat().st_size / 1e6:,.1f} MB")
