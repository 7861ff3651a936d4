"""The options of a run: Detectron2's, without its imports, and more."""

import argparse

from ..utils.imports import add_import_argument


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of Detectron2's options, and of --num-processes and --import."""
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    # As of detectron2.engine.default_argument_parser, whose import takes seconds
    parser.add_argument("--config-file", default="", metavar="FILE", help="a config")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of each machine")
    parser.add_argument("--num-machines", type=int, default=1, help="machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0 on")
    # A free port: several runs do not meet
    parser.add_argument("--dist-url", default="auto", help="where machines meet, such as tcp://HOST:PORT")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config's, at the end")

    add_import_argument(parser)
    parser.add_argument("--num-processes", type=int, default=1, help="processes of each machine on the CPU")
    return parser
