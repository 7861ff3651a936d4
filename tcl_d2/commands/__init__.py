"""The command line: `tcl-d2 COMMAND`, a module each, with `main(args)`; its `argument_parser()` is in `options`."""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module

from ..utils.errors import one_message
from ..utils.imports import import_lazily
from ..utils.installation import require_detectron2
from ..version import __version__
from .options.prepare.releases import RELEASES

COMMANDS = {
    "segment": "segment pictures, a video or a webcam's frames into words of yours",
    "app": "serve a web page: a picture and words in, masks out",
    "train": "train on image-caption pairs",
    "evaluate": "evaluate on benchmarks (train --eval-only)",
    "reproduce": "download a released model and PASCAL VOC 2012, evaluate, compare with the published figure",
    "compare": "compare several configurations on several benchmarks",
    "analyze-model": "count and measure what models cost",
    "convert": "describe, convert and compare checkpoints",
    "export": "write a model as ONNX or by torch.export, to run without torch or Detectron2",
    "prepare": "bring a dataset into place, or draw COCO instances as labels",
    "keys": "list config keys, those of your own code too, with their ranges and meanings",
    "index": "make the index of an image archive, for ReCo",
    "features": "make the features of images and captions on which Talk2DINO is trained",
}
DATASETS = {
    "shapes": "the small world, a synthetic dataset that is drawn here",
    "voc": "PASCAL VOC 2012",
    "context": "PASCAL Context",
    "context459": "PASCAL Context, all 459 classes",
    "coco": "COCO-Object and COCO-Stuff",
    "cityscapes": "Cityscapes",
    "ade20k": "ADE20K, 150 classes",
    "ade847": "the full ADE20K, 847 classes",
    "lvis": "LVIS v1",
    "labels": "label maps to train on, from COCO instance annotations of yours",
}
FIGURES = {
    "tcl": "TCL's official checkpoint, with PAMR",
    "maskclip": "MaskCLIP on OpenAI's CLIP ViT-B/16",
    "groupvit": "GroupViT (YFCC) from the Hugging Face hub",
}
_KEY = re.compile(r"[A-Z][A-Z_]*(\.[A-Z0-9_]+)*$")  # a config key's name
# How often a thread of torch's OpenMP (libgomp, read when torch is loaded) looks for work before it sleeps. By its own
# 300,000 a thread that waits for another keeps a core busy, which another program may need: docs/performance.md.
SPINS = "10000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first words name, with the other words as its arguments."""
    # Find the command
    name, *words = _choose("tcl-d2", COMMANDS, sys.argv[1:] if argv is None else argv)
    prog = f"tcl-d2 {name}"
    if name == "prepare":
        dataset, *words = _choose(prog, DATASETS, words)
        name, prog = f"prepare.{dataset}", f"{prog} {dataset}"
    elif name == "reproduce":
        figure, *words = _choose(prog, FIGURES, words)
        words, prog = ["--config-file", f"reproduce/{figure}.yaml", *words], f"{prog} {figure}"
    elif name == "evaluate":
        name, words = "train", ["--eval-only", *words]

    # An exported model runs without Detectron2
    if name == "segment" and any(word.startswith("--onnx") for word in words):
        name = "segment_exported"
    else:
        with one_message(ModuleNotFoundError):
            require_detectron2()

    # Read its options
    module = name.replace("-", "_")
    parser = _argument_parser(module)
    parser.prog = prog
    args, others = parser.parse_known_args(words)
    if others:
        hint = "; KEY VALUE pairs come last, behind --opts" if _KEY.match(others[0]) and hasattr(args, "opts") else ""
        parser.error(f"unrecognized arguments: {' '.join(others)}{hint}")

    # Run it; only its own module is imported
    import_lazily("wandb")  # by timm, for a function that is not called here
    command = import_module(f".{module}", __name__)
    command = getattr(command, "PREPARATION", command)
    if name in ("train", "features"):
        from ..engine import launch

        launch(command.main, args)
    else:
        command.main(args)


def _argument_parser(module: str) -> argparse.ArgumentParser:
    """Return the parser of a command's options, without the imports of its work."""
    name = module.removeprefix("prepare.")
    if name in RELEASES:
        return RELEASES[name].argument_parser()
    if module == "segment_exported":  # which has its options beside its work
        return import_module(f".{module}", __name__).argument_parser()
    return import_module(f".options.{module}", __name__).argument_parser()


def _choose(prog: str, summaries: Mapping[str, str], words: Sequence[str]) -> list[str]:
    """Check that the first word is a name in `summaries`, and return the words; answer --help and --version."""
    width = max(map(len, summaries))
    lines = [f"  {name:{width}}  {summary}" for name, summary in summaries.items()]
    parser = argparse.ArgumentParser(
        prog,
        usage=f"{prog} NAME [--help] ...",
        description="\n".join(["NAME is one of", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tcl_d2 {__version__}")
    parser.add_argument("name", help=argparse.SUPPRESS)
    name = parser.parse_args(words[:1] or ["--help"]).name

    if name not in summaries:
        nearest = get_close_matches(name, summaries, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(summaries)}"
        sys.exit(f"error: {prog} has no '{name}': {hint}")
    return list(words)
