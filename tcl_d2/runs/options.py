"""The options of a run: Detectron2's, without its imports, and more."""

import argparse

from ..utils.imports import add_import_argument

_OPTS = """
Modify config options at the end of the command. For Yacs configs, use
space-separated "PATH.KEY VALUE" pairs.
For python-based LazyConfig, use "path.key=value".
"""


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of Detectron2's options, and of --num-processes and --import."""
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    # As of detectron2.engine.default_argument_parser, whose import takes seconds
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    resume = "Whether to attempt to resume from the checkpoint directory. "
    resume += "See documentation of `DefaultTrainer.resume_or_load()` for what it means."
    parser.add_argument("--resume", action="store_true", help=resume)
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    machine_rank = "the rank of this machine (unique per machine)"
    parser.add_argument("--machine-rank", type=int, default=0, help=machine_rank)
    dist_url = "initialization URL for pytorch distributed backend. See "
    dist_url += "https://pytorch.org/docs/stable/distributed.html for details."
    parser.add_argument("--dist-url", default="auto", help=dist_url)  # a free port: several runs do not meet
    parser.add_argument("opts", default=None, nargs=argparse.REMAINDER, help=_OPTS.strip())

    add_import_argument(parser)
    parser.add_argument("--num-processes", type=int, default=1, help="number of processes on the CPU *per machine*")
    return parser
