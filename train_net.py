#!/usr/bin/env python
"""Trains and evaluates TCL.

python train_net.py --config-file configs/tcl.yaml --num-gpus 8
python train_net.py --config-file configs/tcl.yaml --eval-only MODEL.WEIGHTS tcl.pth
python train_net.py --config-file configs/shapes/tcl.yaml --resume SOLVER.BASE_LR 0.001
"""

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.data import check_datasets
from tcl_d2.engine import Trainer, argument_parser, launch
from tcl_d2.errors import one_message
from tcl_d2.modeling.clip import check_clip


def check(cfg: CfgNode, data: tuple[str, ...]) -> None:
    """Looks for the GPU, the data and CLIP's weights; one error names all that is missing."""
    problems = []
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        problems.append(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU here: add MODEL.DEVICE cpu")
    for look in (lambda: check_datasets(data), lambda: check_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED)):
        try:
            look()
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(["cannot start:", *problems]))


def setup(args) -> CfgNode:
    """The configuration: defaults, then the file, then KEY VALUE pairs of the command line."""
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    check(cfg, cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + (cfg.DATASETS.VAL or cfg.DATASETS.TEST))
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tcl_d2")
    return cfg


def prepare(args):
    """What there is to do, built: (cfg, model) for evaluation, (cfg, Trainer) for training."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        TCLCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return cfg, model
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return cfg, trainer


def main(args) -> dict | None:
    with one_message():
        cfg, prepared = prepare(args)
    if args.eval_only:
        return Trainer.test(cfg, prepared, resume=args.resume)
    with one_message(OSError, FloatingPointError):  # such as a full disk; the log has the stack of calls
        return prepared.train()


if __name__ == "__main__":
    launch(main, argument_parser(epilog=__doc__).parse_args())
