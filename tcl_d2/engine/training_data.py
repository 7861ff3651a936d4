"""Whether what a configuration trains on is what its losses are of."""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from ..data import is_labeled
from ..data.labeled import check_num_absent, split_batch
from ..modeling import TCL, GroupViT, build_losses
from ..modeling.losses import SemSegBCELoss, SemSegDiceLoss, takes_labels
from ..modeling.vocabulary import dataset_vocabulary
from .dataset_settings import build_identify


def check_training_data(cfg: CfgNode) -> None:
    """Check that captions and labels come to losses that take them, before anything costly is built.

    Args:
        cfg: the configuration. What a meta-architecture of the user's takes is not known, and not checked.

    Raises:
        ValueError: DATASETS.TRAIN does not fit to DATALOADER.LABELED_RATIO, or to the losses, or a number is out of
            its range; names the config key.
    """
    check_num_absent(cfg.INPUT.SEM_SEG.NUM_ABSENT)
    labeled = [name for name in cfg.DATASETS.TRAIN if is_labeled(name)]
    has_captions = len(labeled) < len(cfg.DATASETS.TRAIN)
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    split_batch(batch_size, cfg.DATALOADER.LABELED_RATIO, has_captions, bool(labeled))

    if labeled:
        _check_sizes(cfg)
        _check_words(cfg, labeled)
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if issubclass(model, GroupViT) and cfg.SOLVER.IMS_PER_BATCH == 1:
        raise ValueError("SOLVER.IMS_PER_BATCH is 1, but GroupViT contrasts the pairs of a batch; expected at least 2")
    if issubclass(model, TCL):
        _check_heads(cfg, labeled, has_captions)
    elif issubclass(model, GroupViT) and labeled:
        raise ValueError(
            f"DATASETS.TRAIN names the labeled dataset '{labeled[0]}', but {model.__name__} learns from captions alone."
        )


def _check_sizes(cfg: CfgNode) -> None:
    """Raise a ValueError for sizes to which no labeled image can be resized."""
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    is_range = len(sizes) == 2 and sizes[0] <= sizes[1]
    if not sizes or min(sizes) < 0 or (sampling == "range" and not is_range):
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}; expected the least and the greatest short side in pixels, or any number "
            'of them with INPUT.MIN_SIZE_TRAIN_SAMPLING "choice"'
        )
    if cfg.INPUT.MAX_SIZE_TRAIN < 1:
        raise ValueError(f"INPUT.MAX_SIZE_TRAIN is {cfg.INPUT.MAX_SIZE_TRAIN}; expected at least 1 pixel")


def _check_words(cfg: CfgNode, labeled: list[str]) -> None:
    """Raise a ValueError for a labeled dataset with two classes that are one text for the model."""
    identify = build_identify(cfg)
    for name in labeled:
        try:
            dataset_vocabulary(name, identify=identify)
        except ValueError as error:
            raise ValueError(f"Dataset '{name}': {error}") from None


def _check_heads(cfg: CfgNode, labeled: list[str], has_captions: bool) -> None:
    """Raise a ValueError where loss heads have nothing to learn from, or labels no loss head."""
    heads = build_losses(cfg)
    of_labels = [type(head).__name__ for head in heads if takes_labels(head)]
    of_captions = [type(head).__name__ for head in heads if not takes_labels(head)]

    if of_labels and not labeled:
        raise ValueError(
            f"MODEL.TCL.LOSS_HEADS has {of_labels[0]}, which needs labels, but DATASETS.TRAIN names no labeled dataset."
        )
    if labeled and not of_labels:
        raise ValueError(
            f"DATASETS.TRAIN names the labeled dataset '{labeled[0]}', but no loss head takes labels: add "
            f"{SemSegBCELoss.__name__} and {SemSegDiceLoss.__name__} to MODEL.TCL.EXTRA_LOSS_HEADS."
        )
    if of_captions and not has_captions:
        raise ValueError(
            f"MODEL.TCL.LOSS_HEADS has {of_captions[0]}, which needs captions, but DATASETS.TRAIN names labeled "
            "datasets alone: name an image-text dataset too, or only loss heads that take labels."
        )
    if has_captions and not of_captions:
        raise ValueError(
            "DATASETS.TRAIN names an image-text dataset, but no head of MODEL.TCL.LOSS_HEADS takes captions: add one, "
            "or name labeled datasets alone."
        )
