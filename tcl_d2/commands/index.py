"""Index an image archive."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from ..checkpoint import TCLCheckpointer
from ..config import load_config
from ..data.archive import index_archive, index_part, list_archive
from ..modeling.checks import check_device, check_meta_architecture
from ..modeling.reco.index import ImageEmbedder
from ..runs.ray_cluster import joined_actors
from ..utils.errors import expect, one_message
from ..utils.locks import locked_folder
from ..utils.tensors import read_metadata


class PartIndexer:
    """Indexes parts of an archive: what each actor of --ray makes once, and calls."""

    def __init__(self, args: argparse.Namespace):
        """Build the model."""
        self.embed = build_embedder(load_config(args.config_file, args.opts, args.imports))

    def __call__(self, part: tuple[Path, list[str], dict]) -> dict:
        """Index a part, unless another worker that was lost then has done it; return its counts."""
        path, files, facts = part
        expect(self.embed.digest() == facts["clip"], "the CLIP on this node", "another", "that of the command")
        return read_metadata(path) if path.exists() else index_part(path, files, facts, self.embed)


def build_embedder(cfg: CfgNode) -> ImageEmbedder:
    """Build the configuration's CLIP, without the index that its ReCo would need."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "MaskCLIP"
    model = build_model(cfg).eval()
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return ImageEmbedder(model)


def main(args: argparse.Namespace) -> None:
    """Make the index, or the rest of it."""
    with one_message(), ExitStack() as stack:
        # Check all before the model is built
        expect(args.workers >= 0, "--workers", args.workers, "0 (none) or more")
        cfg = load_config(args.config_file, args.opts, args.imports)
        check_meta_architecture(cfg)
        check_device(cfg.MODEL.DEVICE)
        parts = list_archive(args.archive)
        folder = (args.output or Path(cfg.MODEL.RECO.INDEX).expanduser()).absolute()

        stack.enter_context(locked_folder(folder, "index", "--output"))
        setup_logger(name="tcl_d2")
        embed = build_embedder(cfg)
        spread = stack.enter_context(joined_actors(args, folder, PartIndexer, args)) if args.ray else None
        counts = index_archive(parts, folder, embed, args.workers, spread)

        if not counts["images"]:
            print(f"warning: '{args.archive}' has no image that can be read: ReCo has nothing to retrieve")
        print(f"{folder}: {counts['images']:,} images, {counts['broken']:,} broken ones left out")
