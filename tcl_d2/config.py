"""Every config key that the plugin adds to Detectron2's, with its default (the paper's recipe) and its source."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

from .modeling import ZeroShotSegmentor

# The prompt templates of the paper's published results.
TEMPLATES = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
)


def load_config(path: str | Path | None = None, options: Sequence[object] = ()) -> CN:
    """Return Detectron2's and the plugin's defaults, under the values of a file, under KEY, VALUE pairs.

    Args:
        path: of a YAML file; None: the defaults alone.

    Raises:
        FileNotFoundError: no such file.
        KeyError, ValueError: a key that there is not, a value of another type, no YAML, or a key without a value.
    """
    cfg = get_cfg()
    add_tcl_config(cfg)
    if path is not None:
        _merge(cfg, _read_yaml(path))

    # Of the command line
    flags = [option for option in options if str(option).startswith("--")]
    if flags:
        raise ValueError(f"'{flags[0]}' comes after a KEY VALUE pair: give the options of the command before them")
    if len(options) % 2:
        raise ValueError(
            f"expected pairs of KEY VALUE, but '{options[-1]}' has no value: {' '.join(map(str, options))}"
        )
    for key, value in zip(options[::2], options[1::2]):
        _merge(cfg, reduce(lambda inner, part: {part: inner}, reversed(str(key).split(".")), str(value)))
    return cfg


def _read_yaml(path: str | Path) -> dict:
    try:
        values = CN.load_yaml_with_base(PathManager.get_local_path(str(path)))
    except (yaml.YAMLError, TypeError) as error:  # the latter where it is empty
        raise ValueError(f"Config file '{path}' could not be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"Config file '{path}' holds a {type(values).__name__}; expected keys and values in YAML")
    return values


def _merge(cfg: CN, values: dict) -> None:
    cfg.merge_from_other_cfg(CN(_ints_to_floats(values, cfg)))


def _ints_to_floats(values: dict, defaults: dict) -> dict:
    """Return values with floats for ints where the default is a float: yacs refuses `KP_WEIGHT: 0`."""
    converted = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _ints_to_floats(value, default)
        elif isinstance(default, float) and type(number := CN._decode_cfg_value(value)) is int:
            value = float(number)
        converted[key] = value
    return converted


def check_meta_architecture(cfg: CN) -> None:
    """Look whether a configuration is that of a zero-shot segmentor; Detectron2's defaults alone are not.

    Raises:
        ValueError: MODEL.META_ARCHITECTURE is not registered, or no ZeroShotSegmentor; names those that are.
    """
    segmentors = sorted(name for name, model in META_ARCH_REGISTRY if issubclass(model, ZeroShotSegmentor))
    if cfg.MODEL.META_ARCHITECTURE not in segmentors:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}', which is no zero-shot segmentor; expected "
            f"one of {', '.join(segmentors)}. Give a config file, such as configs/shapes/tcl.yaml (the small world) or "
            "configs/tcl.yaml (the paper's)"
        )


def check_device(name: str) -> None:
    """Look whether torch can compute on a device; ValueError says what to give for MODEL.DEVICE."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE is '{name}', which torch does not know: give cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {name}, but torch finds no GPU here: add MODEL.DEVICE cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE is {name}, but the GPUs here are 0 to {torch.cuda.device_count() - 1}")


def add_tcl_config(cfg: CN) -> None:
    """Adds the keys of TCL to `cfg`, in place; call it before merging a config file.

    Every key has a comment just above it: docs/config.md is made from them.
    """
    # ImageNet's mean, of RGB in 0..255, as the official release normalises (not CLIP's own).
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    # ImageNet's standard deviation, likewise.
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]

    cfg.MODEL.CLIP = CN()
    # The frozen CLIP: a name that open_clip knows, or the path of an open_clip model config (JSON).
    cfg.MODEL.CLIP.NAME = "ViT-B-16"
    # Its weights: an open_clip tag ("openai"), a file in OpenAI's or OpenCLIP's layout, or "" for random ones.
    cfg.MODEL.CLIP.PRETRAINED = "openai"

    # Masks from CLIP's dense similarities s (knowledge preservation, MaskCLIP) are sigmoid((s - shift) * scale): shift.
    cfg.MODEL.CLIP.MASK_SHIFT = 0.25
    # And scale.
    cfg.MODEL.CLIP.MASK_SCALE = 10.0

    cfg.MODEL.TCL = CN()
    # Blocks of the image encoder that are shared and stay frozen; the rest is copied into the grounder (paper: 11).
    cfg.MODEL.TCL.FREEZE = 11
    # Gated decoder blocks; each doubles the resolution of the masks.
    cfg.MODEL.TCL.DECODER_BLOCKS = 2
    # Sim2Mask, logit = w * similarity + b: initial value of the learnable w.
    cfg.MODEL.TCL.SIM_SCALE_INIT = 10.0
    # And of b.
    cfg.MODEL.TCL.SIM_BIAS_INIT = -2.5
    # Temperature of the Gumbel-sigmoid that makes the hard masks of the image-level loss.
    cfg.MODEL.TCL.GUMBEL_TAU = 1.0
    # Iteration at which the copied last blocks begin to train too (second stage); -1: never.
    cfg.MODEL.TCL.UNFREEZE_ITER = 30000
    # Loss heads, by name in TCL_LOSS_REGISTRY; leave one out to train without it.
    cfg.MODEL.TCL.LOSS_HEADS = [
        "ImageTCLLoss",
        "FeatureTCLLoss",
        "PositiveAreaLoss",
        "NegativeAreaLoss",
        "ImageTVLoss",
        "MaskTVLoss",
    ]
    # Loss heads beside those of LOSS_HEADS: adds one without repeating the list.
    cfg.MODEL.TCL.EXTRA_LOSS_HEADS = []
    # Share of the image that the masks of matching pairs should cover; depends on the data (paper: 0.4).
    cfg.MODEL.TCL.AREA_PRIOR = 0.4
    # The same for pairs that do not match.
    cfg.MODEL.TCL.NEGATIVE_AREA_PRIOR = 0.0
    # Whether to compute the frozen encoder's pass over the masked image twice rather than hold its activations.
    cfg.MODEL.TCL.CHECKPOINT_MASKED = False
    cfg.MODEL.TCL.LOSS_WEIGHT = CN()
    # Image-level TCL: contrast of the masked image, seen by CLIP, with the texts.
    cfg.MODEL.TCL.LOSS_WEIGHT.TCL_IMAGE = 0.1
    # Feature-level TCL: contrast of the features pooled under the masks with the texts.
    cfg.MODEL.TCL.LOSS_WEIGHT.TCL_FEATURE = 0.1
    # Area of the masks of matching pairs.
    cfg.MODEL.TCL.LOSS_WEIGHT.AREA_POS = 0.4
    # Area of the masks of pairs that do not match.
    cfg.MODEL.TCL.LOSS_WEIGHT.AREA_NEG = 0.4
    # Total variation of the pixel embeddings.
    cfg.MODEL.TCL.LOSS_WEIGHT.TV_IMAGE = 1.0
    # Total variation of the soft masks.
    cfg.MODEL.TCL.LOSS_WEIGHT.TV_MASK = 1.0
    # Ablation: contrast of the whole image (no masks) with the texts; used by WholeImageLoss alone.
    cfg.MODEL.TCL.LOSS_WEIGHT.WHOLE_IMAGE = 0.1

    # Benchmarks evaluated while training, whose average picks the best checkpoint; () for those of DATASETS.TEST.
    cfg.DATASETS.VAL = ()

    # CLIP's order of channels.
    cfg.INPUT.FORMAT = "RGB"
    # Short side at which images are evaluated (the unified protocol); 0: images keep their size.
    cfg.INPUT.MIN_SIZE_TEST = 448
    # And the most that the long side may have.
    cfg.INPUT.MAX_SIZE_TEST = 2048
    cfg.INPUT.IMAGE_TEXT = CN()
    # Side of the square training crop, in pixels.
    cfg.INPUT.IMAGE_TEXT.SIZE = 224
    # Random resized crop: share of the image's area.
    cfg.INPUT.IMAGE_TEXT.CROP_SCALE = [0.08, 1.0]
    # And aspect ratio, width / height.
    cfg.INPUT.IMAGE_TEXT.CROP_RATIO = [3 / 4, 4 / 3]
    # Probability of a horizontal flip.
    cfg.INPUT.IMAGE_TEXT.FLIP_PROB = 0.5
    # RandAugment policy in timm's notation; "" for none.
    cfg.INPUT.IMAGE_TEXT.RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
    # Probability of random erasing (timm's pixel mode).
    cfg.INPUT.IMAGE_TEXT.ERASING_PROB = 0.25

    # Samples that each loader worker holds to draw from, so that neighbours in a shard are not neighbours in a batch.
    cfg.DATALOADER.SHUFFLE_BUFFER = 1000

    # Images a process whose activations are held at once; losses are those of the whole batch. 0: all of the batch.
    cfg.SOLVER.IMS_PER_MICRO_BATCH = 0
    # Steps in a row that may be left out since a loss or the gradient is NaN or Inf; one more ends the training.
    cfg.SOLVER.MAX_SKIPPED = 10
    # AdamW's decay rates of the two moments.
    cfg.SOLVER.BETAS = [0.9, 0.999]
    # And its epsilon.
    cfg.SOLVER.EPS = 1e-6
    # Low precision of autocast where SOLVER.AMP.ENABLED: "float16" (CUDA, with loss scaling) or "bfloat16" (also CPU).
    cfg.SOLVER.AMP.DTYPE = "float16"

    cfg.TEST.ZERO_SHOT = CN()
    # Sliding window: side of the square crops, in pixels of the resized image.
    cfg.TEST.ZERO_SHOT.CROP_SIZE = 448
    # And their step.
    cfg.TEST.ZERO_SHOT.STRIDE = 224
    # Constant score of the background where a data set has one (paper: 0.4 with PAMR, 0.5 without).
    cfg.TEST.ZERO_SHOT.BACKGROUND_SCORE = 0.4
    # Knowledge preservation: weight of frozen CLIP's own masks in the mixture; 0 for none.
    cfg.TEST.ZERO_SHOT.KP_WEIGHT = 0.3
    # Images of each benchmark that are evaluated, evenly spaced, for a quick look; 0 for all.
    cfg.TEST.ZERO_SHOT.MAX_IMAGES = 0
    # Whether to save predicted labels as palette PNGs below OUTPUT_DIR/inference.
    cfg.TEST.ZERO_SHOT.SAVE_PREDICTIONS = False
    # Whether images that are broken, or whose labels are, are left out and counted; otherwise they are an error.
    cfg.TEST.ZERO_SHOT.SKIP_BROKEN = False
    # Precision of autocast in evaluation: "float32" (none), "bfloat16", or, on CUDA, "float16".
    cfg.TEST.ZERO_SHOT.PRECISION = "float32"
    # Folder that keeps text embeddings, by CLIP's weights and prompts; "" for none.
    cfg.TEST.ZERO_SHOT.TEXT_CACHE = "~/.cache/tcl_d2/text"
    # Prompt templates; a class embedding is the mean over them.
    cfg.TEST.ZERO_SHOT.TEMPLATES = list(TEMPLATES)
    # Refine masks by the image's own edges (PAMR, Araslanov & Roth, CVPR 2020).
    cfg.TEST.ZERO_SHOT.PAMR = CN()
    cfg.TEST.ZERO_SHOT.PAMR.ENABLED = True
    # How often a mask is averaged over its neighbours.
    cfg.TEST.ZERO_SHOT.PAMR.ITERS = 10
    # Distances of the 8 neighbours, in pixels of the mask.
    cfg.TEST.ZERO_SHOT.PAMR.DILATIONS = [1, 2, 4, 8, 12, 24]
