"""Check that the training data fit the losses."""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from ..config.ranges import check_ranges
from ..data.feature_loader import find_features
from ..data.labeled import is_labeled, split_batch
from ..data.unlabeled import check_object_masks
from ..evaluation.dataset_settings import build_reader, make_identify
from ..modeling import TCL, DenseCLIP, GroupViT, Talk2DINO, build_losses
from ..modeling.dense_clip.teachers import check_teacher
from ..modeling.encoders.clip_loading import image_tower
from ..modeling.tcl.losses import SemSegBCELoss, SemSegDiceLoss, takes_labels
from ..utils.errors import expect, named
from ..words.vocabulary import dataset_vocabulary


def takes_captions(cfg: CfgNode) -> bool:
    """Return whether a configuration's model learns from captions or labels: a dense CLIP takes images alone."""
    return not issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), DenseCLIP)


def check_training_data(cfg: CfgNode) -> None:
    """Check that captions and labels have losses that take them, before anything costly is built.

    A meta-architecture of the user's may take anything. A ValueError names the config key that does not fit.
    """
    check_ranges(cfg)
    labeled = [name for name in cfg.DATASETS.TRAIN if is_labeled(name)]
    has_captions = len(labeled) < len(cfg.DATASETS.TRAIN)
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    split_batch(batch_size, cfg.DATALOADER.LABELED_RATIO, has_captions, bool(labeled))

    if labeled:
        _check_sizes(cfg)
        _check_words(cfg, labeled)
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if issubclass(model, TCL):
        _check_heads(cfg, labeled, has_captions)
    elif issubclass(model, GroupViT):
        size = cfg.SOLVER.IMS_PER_BATCH
        expect(size > 1, "SOLVER.IMS_PER_BATCH", size, "at least 2: GroupViT contrasts the pairs of a batch")
        expect(not labeled, "DATASETS.TRAIN", labeled, f"captions alone, which {model.__name__} learns from")
    elif issubclass(model, Talk2DINO):
        size = cfg.SOLVER.IMS_PER_BATCH
        expect(size > 1, "SOLVER.IMS_PER_BATCH", size, "at least 2: Talk2DINO contrasts the captions of a batch")
        expect(not labeled, "DATASETS.TRAIN", labeled, f"captions alone, which {model.__name__} learns from")
        find_features(cfg)
    elif issubclass(model, DenseCLIP):
        expect(not labeled, "DATASETS.TRAIN", labeled, "images without labels, which a dense head learns from")
        _check_dense_head(cfg)


def _check_sizes(cfg: CfgNode) -> None:
    """Raise a ValueError for sizes to which no labeled image can be resized."""
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    is_range = len(sizes) == 2 and sizes[0] <= sizes[1]
    expected = "the least and the greatest short side in pixels, or any with INPUT.MIN_SIZE_TRAIN_SAMPLING choice"
    expect(sampling != "range" or is_range, "INPUT.MIN_SIZE_TRAIN", sizes, expected)


def _check_words(cfg: CfgNode, labeled: list[str]) -> None:
    """Raise a ValueError for a labeled dataset with two classes that are one text for the model."""
    identify = make_identify(cfg, build_reader(cfg))
    for name in labeled:
        with named(f"Dataset '{name}'"):
            dataset_vocabulary(name, identify=identify)


def _check_dense_head(cfg: CfgNode) -> None:
    """Raise a ValueError or OSError if CLIP-DINOiser cannot be trained as configured; other heads are not known."""
    if cfg.MODEL.DENSE_CLIP.HEAD != "clip_dinoiser":
        return
    check_teacher(cfg)
    size, patch_size = cfg.INPUT.IMAGE_TEXT.SIZE, image_tower(cfg.MODEL.CLIP.NAME).patch_size
    expect(size % patch_size == 0, "INPUT.IMAGE_TEXT.SIZE", size, f"a multiple of CLIP's patches, {patch_size} pixels")

    if cfg.MODEL.DENSE_CLIP.DINOISER.FIND_OBJECTS:
        for name in cfg.DATASETS.TRAIN:
            check_object_masks(cfg.MODEL.DENSE_CLIP.DINOISER.OBJECT_MASKS, name)


def _check_heads(cfg: CfgNode, labeled: list[str], has_captions: bool) -> None:
    """Raise a ValueError if loss heads have nothing to learn from, or labels no loss head."""
    heads = build_losses(cfg)
    for kind, data, has_data, is_one in (
        ("labeled", "labels", bool(labeled), takes_labels),
        ("image-text", "captions", has_captions, lambda head: not takes_labels(head)),
    ):
        names = [type(head).__name__ for head in heads if is_one(head)]
        if names and not has_data:
            raise ValueError(
                f"MODEL.TCL.LOSS_HEADS has {names[0]}, which needs {data}, but DATASETS.TRAIN names no {kind} dataset."
            )

        if has_data and not names:
            examples = f" (as {SemSegBCELoss.__name__} and {SemSegDiceLoss.__name__} do)" if data == "labels" else ""
            raise ValueError(
                f"DATASETS.TRAIN names {kind} datasets, but no loss head takes {data}{examples}: add one to "
                "MODEL.TCL.EXTRA_LOSS_HEADS, or leave these datasets out."
            )
