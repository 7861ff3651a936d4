"""Index an image archive."""

import argparse
from pathlib import Path

from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from ..checkpoint import TCLCheckpointer
from ..config import load_config
from ..data.archive import index_archive, list_archive
from ..modeling.checks import check_device, check_meta_architecture
from ..modeling.reco.index import ImageEmbedder
from ..utils.errors import expect, one_message
from ..utils.imports import import_code
from ..utils.locks import locked_folder


def main(args: argparse.Namespace) -> None:
    """Make the index, or the rest of it."""
    with one_message():
        # Check all before the model is built
        for name in args.imports:
            import_code(name)
        expect(args.workers >= 0, "--workers", args.workers, "0 (none) or more")
        cfg = load_config(args.config_file, args.opts)
        check_meta_architecture(cfg)
        check_device(cfg.MODEL.DEVICE)
        parts = list_archive(args.archive)
        folder = args.output or Path(cfg.MODEL.RECO.INDEX).expanduser()

        with locked_folder(folder, "index", "--output"):
            setup_logger(name="tcl_d2")
            cfg.MODEL.META_ARCHITECTURE = "MaskCLIP"  # CLIP alone is needed, and ReCo needs the index itself
            model = build_model(cfg).eval()
            TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
            counts = index_archive(parts, folder, ImageEmbedder(model), args.workers)

        if not counts["images"]:
            print(f"warning: '{args.archive}' has no image that can be read: ReCo has nothing to retrieve")
        print(f"{folder}: {counts['images']:,} images, {counts['broken']:,} broken ones left out")
