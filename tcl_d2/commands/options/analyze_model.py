"""Count what models cost: parameters, FLOPs and activations; and measure their speed and memory.

tcl-d2 analyze-model --config-file configs/tcl.yaml
tcl-d2 analyze-model --config-file configs/tcl.yaml configs/unified/naclip.yaml     # a table in Markdown
tcl-d2 analyze-model --config-file configs/tcl.yaml --tasks speed memory

Weights are random, since they cost the same; nothing is downloaded. All figures are of one image. A FLOP is a
multiplication with its addition, as Detectron2 counts. Each model is measured in a process of its own; the memory is
the GPU's, or on a CPU all that the process holds.
"""

import argparse

TASKS = ("parameter", "flop", "activation", "structure", "speed", "memory")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", nargs="+", required=True, help="configs; of several, one table")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS[:3], help=f"default: {' '.join(TASKS[:3])}")
    parser.add_argument("--image-size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--words", type=int, default=20, help="words that are looked for; default: %(default)s")
    parser.add_argument("-n", "--num-inputs", type=int, default=5, help="images to measure; default: %(default)s")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs over each config's, last")
    return parser
