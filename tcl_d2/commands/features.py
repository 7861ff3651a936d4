"""Make the features on which Talk2DINO's projection is trained."""

import argparse
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
from ..utils.errors import expect, one_message
from ..utils.imports import import_code


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
