#!/usr/bin/env python
"""Train and evaluate TCL.

python train_net.py --config-file configs/tcl.yaml --num-gpus 8
python train_net.py --config-file configs/tcl.yaml --eval-only MODEL.WEIGHTS tcl.pth
python train_net.py --config-file configs/shapes/tcl.yaml --resume SOLVER.BASE_LR 0.001

A script of yours is a copy of this one that imports your code, which registers datasets, models or losses. For another
Trainer, copy `main` too.
"""

from tcl_d2.commands.train import main
from tcl_d2.engine import argument_parser, launch

if __name__ == "__main__":
    launch(main, argument_parser(epilog=__doc__).parse_args())
