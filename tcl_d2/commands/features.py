"""Make the features of DATASETS.TRAIN, images and captions, from which Talk2DINO's projection is trained.

They go to MODEL.TALK2DINO.FEATURES. After Ctrl-C, the same command goes on where it stopped.

    tcl-d2 features --config-file talk2dino/train_vitb.yaml --num-gpus 4
    tcl-d2 features --config-file shapes/talk2dino.yaml --half MODEL.TALK2DINO.FEATURES output/features
"""

import argparse
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint import TCLCheckpointer
from ..config import load_config
from ..data import check_datasets
from ..data.features import make_features
from ..modeling import Talk2DINO
from ..modeling.checks import check_device, check_meta_architecture
from ..runs.output_folder import output_folder
from ..runs.processes import argument_parser as processes_parser
from ..utils.errors import expect, one_message
from ..utils.imports import import_code


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = processes_parser(epilog=__doc__)
    parser.add_argument("--half", action="store_true", help="write fp16, half as large")
    threads = min(8, os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=threads, help="threads of each process that read images")
    return parser


def check(cfg: CfgNode) -> None:
    """Check the model, the device and the data before anything costly is built."""
    check_meta_architecture(cfg)
    name = cfg.MODEL.META_ARCHITECTURE
    is_right = issubclass(META_ARCH_REGISTRY.get(name), Talk2DINO)
    expect(is_right, "MODEL.META_ARCHITECTURE", name, "Talk2DINO, whose projection is trained from features")
    expect(bool(cfg.DATASETS.TRAIN), "DATASETS.TRAIN", "empty", "datasets of images and captions")
    check_device(cfg.MODEL.DEVICE)
    check_datasets(train=cfg.DATASETS.TRAIN)
    META_ARCH_REGISTRY.get(name).check_encoder(cfg)


def main(args: argparse.Namespace) -> None:
    """Make the features, or the rest of them."""
    with one_message():
        for name in args.imports:
            import_code(name)
        expect(args.threads >= 0, "--threads", args.threads, "0 (none) or more")
        cfg = load_config(args.config_file or None, args.opts)
        check(cfg)

        folder = Path(cfg.MODEL.TALK2DINO.FEATURES).expanduser()
        with output_folder(str(folder), "features"):
            setup_logger(distributed_rank=comm.get_rank(), name="tcl_d2")
            model = build_model(cfg).eval()
            TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
            counts = make_features(model, cfg, folder, args.half, args.threads)
        if comm.is_main_process():
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
            print(
                f"{folder}: {counts['captions']:,} captions of {counts['images']:,} images, {size:,.1f} MB; "
                f"{counts['broken']:,} broken ones left out"
            )
