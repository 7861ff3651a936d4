"""Make the features on which Talk2DINO's projection is trained."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint import TCLCheckpointer
from ..config import load_config
from ..data import check_datasets
from ..data.features import digest_models, make_features, make_part
from ..modeling import Talk2DINO
from ..modeling.checks import check_device, check_meta_architecture
from ..runs.output_folder import output_folder
from ..runs.ray_cluster import joined_actors
from ..utils.errors import expect, one_message


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


class FeatureMaker:
    """Makes features of parts: what each actor of --ray makes once, and calls."""

    def __init__(self, args: argparse.Namespace):
        """Build the model."""
        self.model = build(load_config(args.config_file or None, args.opts, args.imports))
        self.threads = args.threads
        self.weights = digest_models(self.model)

    def __call__(self, part: tuple[Path, list[dict], dict]) -> None:
        """Make the features of a part, unless another worker that was lost then has made them."""
        path, rows, facts = part
        expect(self.weights == facts["weights"], "the model on this node", "another", "that of the command")
        if not path.exists():
            make_part(path, rows, facts, self.model, self.threads)


def build(cfg: CfgNode) -> Talk2DINO:
    """Build the model of a configuration, with its weights."""
    model = build_model(cfg).eval()
    TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def main(args: argparse.Namespace) -> None:
    """Make the features, or the rest of them."""
    with one_message(), ExitStack() as stack:
        expect(args.threads >= 0, "--threads", args.threads, "0 (none) or more")
        expect(
            not args.ray or comm.get_world_size() == 1, "--ray", "given to several processes", "one, of no --num-gpus"
        )
        cfg = load_config(args.config_file or None, args.opts, args.imports)
        check(cfg)

        folder = Path(cfg.MODEL.TALK2DINO.FEATURES).expanduser().absolute()
        stack.enter_context(output_folder(str(folder), "features"))
        setup_logger(distributed_rank=comm.get_rank(), name="tcl_d2")
        model = build(cfg)
        spread = stack.enter_context(joined_actors(args, folder, FeatureMaker, args)) if args.ray else None
        counts = make_features(model, cfg, folder, args.half, args.threads, spread)
        if comm.is_main_process():
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
            print(
                f"{folder}: {counts['captions']:,} captions of {counts['images']:,} images, {size:,.1f} MB; "
                f"{counts['broken']:,} broken ones left out"
            )
