"""Every config key that the plugin adds to Detectron2's, with its default (the paper's recipe) and its source."""

import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import IO

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.config import BASE_KEY

from .assets import get_config_file, list_configs
from .modeling import ZeroShotSegmentor
from .modeling.dense_clip.heads import check_dense_head
from .modeling.refiners.base import build_refiner
from .modeling.segmentor import check_images
from .utils.downloads import PathManager
from .utils.imports import import_code

# What TEST.ZERO_SHOT.BY_DATASET may change: the beginnings of keys, and those that the model is built with once
_KEYS_BY_DATASET = ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "TEST.DETECTIONS_PER_IMAGE", "TEST.ZERO_SHOT.")
_KEYS_OF_ALL_DATASETS = tuple(
    f"TEST.ZERO_SHOT.{key}"
    for key in ("BY_DATASET", "KP_WEIGHT", "MEASURES", "PRECISION", "SAVE_PREDICTIONS", "SIMILARITY", "TEXT_CACHE")
)


def load_config(path: str | Path | None = None, options: Sequence[object] = ()) -> CN:
    """Return Detectron2's and the plugin's defaults, under the values of a file, under KEY, VALUE pairs.

    What the plugin sets of Detectron2's own keys, such as the order of the channels, is among the defaults here.

    The code that IMPORTS names is imported, so that what it registers can be used.

    Args:
        path: a YAML file, or else a config that comes with the project ("shapes/tcl.yaml"); None: the defaults alone.
            The config of an address may not name code in IMPORTS.
        options: see merge_options.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError, ValueError: the file is no YAML of known keys and values of their types, or names code that may not
            or cannot be imported; or see merge_options.
    """
    cfg = get_cfg()
    add_tcl_config(cfg)
    _merge(cfg, _read_yaml(get_config_file("defaults.yaml")))

    # Merge the file and the options
    if path is not None:
        values = _read_yaml(path)
        if values.get("IMPORTS") and not _is_local(path):
            raise ValueError(
                f"Config file '{path}' was downloaded, and asks to run code, IMPORTS {values['IMPORTS']}: read that "
                "code, then give a copy of the file"
            )
        _merge(cfg, values)
    merge_options(cfg, options)

    # Import the user's code
    for name in cfg.IMPORTS:
        import_code(str(name))
    return cfg


def merge_options(cfg: CN, options: Sequence[object]) -> None:
    """Merge KEY, VALUE pairs, as of a command line, into a configuration.

    Args:
        cfg: the configuration, changed in place.
        options: KEY, VALUE, KEY, VALUE ...; an int is taken where the key's value is a float.

    Raises:
        KeyError, ValueError: an unknown key, a value of another type, or a key without a value.
    """
    # Check that they are pairs
    flags = [option for option in options if str(option).startswith("--")]
    if flags:
        raise ValueError(f"'{flags[0]}' comes after a KEY VALUE pair: give the options of the command before them")
    if len(options) % 2:
        raise ValueError(
            f"expected pairs of KEY VALUE, but '{options[-1]}' has no value: {' '.join(map(str, options))}"
        )

    # Merge each as the nested dict that a file would hold: "A.B" 3 as {"A": {"B": "3"}}
    for key, value in zip(options[::2], options[1::2]):
        nested = str(value)
        for part in reversed(str(key).split(".")):
            nested = {part: nested}
        _merge(cfg, nested)


def dataset_config(cfg: CN, dataset_name: str) -> CN:
    """Return a configuration with TEST.ZERO_SHOT.BY_DATASET's values for a dataset; `cfg` itself stays as it is.

    Raises:
        KeyError, ValueError: an entry is no list of pairs of known keys and fitting values; names the dataset.
    """
    options = cfg.TEST.ZERO_SHOT.BY_DATASET.get(dataset_name, [])
    if not isinstance(options, (list, tuple)):
        raise ValueError(
            f"TEST.ZERO_SHOT.BY_DATASET.{dataset_name} is {options!r}; expected a list of KEY, VALUE pairs, such as "
            "[INPUT.MIN_SIZE_TEST, 336]"
        )
    fixed = [key for key in options[::2] if not str(key).startswith(_KEYS_BY_DATASET) or key in _KEYS_OF_ALL_DATASETS]
    if fixed:
        raise ValueError(
            f"TEST.ZERO_SHOT.BY_DATASET.{dataset_name}: {fixed[0]} is the same for all datasets; expected keys of "
            "INPUT.MIN_SIZE_TEST, INPUT.MAX_SIZE_TEST, TEST.DETECTIONS_PER_IMAGE and TEST.ZERO_SHOT that are not of "
            "the model itself"
        )

    cfg = cfg.clone()
    is_frozen = cfg.is_frozen()
    cfg.defrost()
    try:
        merge_options(cfg, options)
    except (KeyError, ValueError) as error:
        raise ValueError(f"TEST.ZERO_SHOT.BY_DATASET.{dataset_name}: {error.args[0]}") from None
    if is_frozen:
        cfg.freeze()
    return cfg


def dense_head_config(cfg: CN, head: str, options: Sequence[object] = ()) -> CN:
    """Return the configuration of a dense CLIP that has the CLIP, the sizes and the prompts of another model.

    Args:
        cfg: the configuration of the other model, which stays as it is.
        head: see MODEL.DENSE_CLIP.HEAD.
        options: KEY, VALUE pairs over the values of both, see merge_options.
    """
    cfg = cfg.clone()
    cfg.defrost()
    _merge(cfg, _read_yaml(get_config_file("dense_clip/cosine.yaml")))
    merge_options(cfg, [*options, "MODEL.DENSE_CLIP.HEAD", head])
    return cfg


def _is_local(path: str | Path) -> bool:
    return "://" not in str(path)


def find_config_file(path: str | Path) -> str:
    """Return the local path of a config, given as load_config's; FileNotFoundError where there is none."""
    is_shipped = _is_local(path) and not os.path.isfile(path)
    return get_config_file(str(path)) if is_shipped else PathManager.get_local_path(str(path))


def _read_yaml(path: str | Path) -> dict:
    local_path = find_config_file(path)
    if local_path.endswith(".py"):
        raise ValueError(
            f"Config file '{path}' is Python, such as a LazyConfig, which tcl_d2.model_zoo.get_config reads; expected "
            "a YAML file here"
        )

    try:
        values = _ConfigFile.load_yaml_with_base(local_path)
    except TypeError:
        raise ValueError(f"Config file '{path}', or its _BASE_, is empty; expected keys and values in YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Config file '{path}' could not be read: {error}") from None

    if not isinstance(values, dict):
        raise ValueError(f"Config file '{path}' holds a {type(values).__name__}; expected keys and values in YAML")
    return values


class _ConfigFile(CN):
    """A config file whose _BASE_ may name a config that comes with the project, where no such file lies beside it."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        with super()._open_cfg(filename) as file:
            values = yaml.safe_load(file)
        if isinstance(values, dict) and BASE_KEY in values:
            bases = values[BASE_KEY]
            bases = bases if isinstance(bases, list) else [bases]
            values[BASE_KEY] = [cls._find_base(str(base), os.path.dirname(filename)) for base in bases]
        return StringIO(yaml.safe_dump(values))

    @staticmethod
    def _find_base(name: str, folder: str) -> str:
        is_shipped = name in list_configs() and not os.path.isfile(os.path.join(folder, name))
        return get_config_file(name) if is_shipped else name


def _merge(cfg: CN, values: dict) -> None:
    cfg.merge_from_other_cfg(CN(_fit_types(values, cfg)))


def _fit_types(values: dict, defaults: dict) -> dict:
    """Return values of the defaults' types where yacs would refuse them: a float for an int, a list for one text."""
    converted = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(default, dict):
            value = CN._decode_cfg_value(value)  # "{'a': 1}" of a command line
        if isinstance(value, dict) and isinstance(default, dict):
            value = _fit_types(value, default)
        elif isinstance(default, float) and type(number := CN._decode_cfg_value(value)) is int:
            value = float(number)
        elif isinstance(default, (list, tuple)) and value and isinstance(CN._decode_cfg_value(value), str):
            value = type(default)([value])
        converted[key] = value
    return converted


def check_meta_architecture(cfg: CN) -> None:
    """Check that a configuration is for a zero-shot segmentor; Detectron2's defaults alone are for a detector.

    Raises:
        ValueError: MODEL.META_ARCHITECTURE is not registered, or no ZeroShotSegmentor, or there is no such dense head
            or refiner, which lists what there is; or keys of TCL are missing.
        RuntimeError: the refiner needs a package that is not installed.
    """
    segmentors = sorted(name for name, model in META_ARCH_REGISTRY if issubclass(model, ZeroShotSegmentor))
    if cfg.MODEL.META_ARCHITECTURE not in segmentors:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}', which is no zero-shot segmentor; expected "
            f"one of {', '.join(segmentors)}. Give a config file, such as shapes/tcl.yaml (the small world) or "
            "tcl.yaml (the paper's)"
        )

    if missing := missing_keys(cfg):
        raise ValueError(
            f"the configuration has no {missing[0]}: another plugin has replaced what add_tcl_config added. Call "
            "add_tcl_config after it, which adds what is missing"
        )

    check_images(cfg)
    check_dense_head("MODEL.DENSE_CLIP.HEAD", cfg.MODEL.DENSE_CLIP.HEAD)
    check_dense_head("MODEL.TCL.KP_HEAD", cfg.MODEL.TCL.KP_HEAD)
    build_refiner(cfg)


def check_device(name: str) -> None:
    """Check that torch can compute on a device; ValueError says what to give for MODEL.DEVICE."""
    count = num_devices(name)
    if not count:
        raise ValueError(f"MODEL.DEVICE is {name}, but torch finds no GPU for it: add MODEL.DEVICE cpu")
    if (torch.device(name).index or 0) >= count:
        raise ValueError(f"MODEL.DEVICE is {name}, but the devices of its kind are 0 to {count - 1}")


def num_devices(name: str) -> int:
    """Return how many devices there are of the kind of cpu, cuda:1, mps, xpu, ...; ValueError for an unknown one."""
    try:
        module = torch.get_device_module(torch.device(name).type)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE is '{name}', which torch does not know: give cpu, cuda or cuda:N") from None
    is_available = getattr(module, "is_available", lambda: True)  # which torch.mps has not always had
    return module.device_count() if is_available() else 0


def add_tcl_config(cfg: CN) -> None:
    """Add the keys of TCL to `cfg`, in place; call it before merging a config file.

    Keys that are there keep their values: Detectron2's, those of another plugin, and TCL's own in a second call. What
    TCL sets of Detectron2's keys comes with its configs, see configs/defaults.yaml.

    Raises:
        ValueError: another plugin has a value where TCL has keys, or keys where TCL has a value.
    """
    _add_missing(cfg, tcl_keys())
    if not cfg.key_is_renamed("TEST.ZERO_SHOT.PAMR.ENABLED"):
        cfg.register_renamed_key(
            "TEST.ZERO_SHOT.PAMR.ENABLED", "TEST.ZERO_SHOT.REFINE", "True is now pamr, and False is none"
        )


def _add_missing(cfg: CN, keys: CN, prefix: str = "") -> None:
    for name, value in keys.items():
        if name not in cfg:
            setattr(cfg, name, value)
        elif isinstance(value, dict) != isinstance(cfg[name], dict):
            raise ValueError(f"{prefix}{name} is {cfg[name]!r} in this configuration, where TCL has {value!r}.")
        elif isinstance(value, dict):
            _add_missing(cfg[name], value, f"{prefix}{name}.")


def missing_keys(cfg: Mapping, keys: Mapping | None = None) -> list[str]:
    """List the keys of TCL that a configuration does not have."""
    missing = []
    for name, value in (tcl_keys() if keys is None else keys).items():
        if name not in cfg:
            missing.append(name)
        elif isinstance(value, dict):
            missing += [f"{name}.{key}" for key in missing_keys(cfg[name], value)]
    return missing


def tcl_keys() -> CN:
    """Return the keys that TCL adds to Detectron2's, with their defaults.

    Every key has a comment just above it, which stands alone: docs/config.md is made from these comments.
    """
    cfg = CN({name: CN() for name in ("MODEL", "DATASETS", "INPUT", "DATALOADER", "SOLVER", "TEST")})
    cfg.SOLVER.AMP = CN()

    # Modules or .py files to import first, in each process: code of yours that registers datasets, models or losses.
    cfg.IMPORTS = []

    cfg.WANDB = CN()
    # Project of Weights & Biases that gets metrics and pictures of a training, besides TensorBoard; "" for none.
    cfg.WANDB.PROJECT = ""

    cfg.MODEL.CLIP = CN()
    # The frozen CLIP: a name that open_clip knows, or the path of an open_clip model config (JSON).
    cfg.MODEL.CLIP.NAME = "ViT-B-16"
    # Weights of the frozen CLIP: an open_clip tag ("openai"), a file in OpenAI's or OpenCLIP's layout, or "" for random
    # ones.
    cfg.MODEL.CLIP.PRETRAINED = "openai"

    # CLIP's own masks (knowledge preservation, MaskCLIP) are sigmoid((similarity - shift) * scale): the shift.
    cfg.MODEL.CLIP.MASK_SHIFT = 0.25
    # CLIP's own masks (knowledge preservation, MaskCLIP) are sigmoid((similarity - shift) * scale): the scale.
    cfg.MODEL.CLIP.MASK_SCALE = 10.0

    cfg.MODEL.DENSE_CLIP = CN()
    # What CLIP's last block does: clip, maskclip, sclip, clearclip, naclip or proxyclip, or a name of your own in
    # DENSE_HEAD_REGISTRY.
    cfg.MODEL.DENSE_CLIP.HEAD = "maskclip"
    # Scores of words: "mask" for sigmoid((similarity - shift) * scale), see MODEL.CLIP, or "cosine" for similarities.
    cfg.MODEL.DENSE_CLIP.SCORES = "mask"
    # Threshold of MaskCLIP's prompt denoising (its paper: 0.5); 0 for none.
    cfg.MODEL.DENSE_CLIP.PROMPT_DENOISING = 0.0
    # Threshold of MaskCLIP's key smoothing (its paper: 1.0); 0 for none.
    cfg.MODEL.DENSE_CLIP.KEY_SMOOTHING = 0.0
    # Size of NACLIP's neighborhood, a standard deviation in patches.
    cfg.MODEL.DENSE_CLIP.SIGMA = 5.0
    cfg.MODEL.DENSE_CLIP.PROXY = CN()
    # The vision model whose attention ProxyCLIP uses: a VisionTransformer that timm names.
    cfg.MODEL.DENSE_CLIP.PROXY.NAME = "vit_base_patch8_224.dino"
    # Weights of ProxyCLIP's vision model: "timm" for those that timm names, a file of them, or "" for random ones.
    cfg.MODEL.DENSE_CLIP.PROXY.PRETRAINED = "timm"
    # ProxyCLIP leaves out pairs of patches that are less similar than this many times the mean similarity.
    cfg.MODEL.DENSE_CLIP.PROXY.BETA = 1.2
    # Scale of the similarities in ProxyCLIP's attention.
    cfg.MODEL.DENSE_CLIP.PROXY.GAMMA = 3.0

    cfg.MODEL.RECO = CN()
    # Folder of the index of ReCo's image archive, which `tcl-d2 index` makes; "" to build the model without.
    cfg.MODEL.RECO.INDEX = "./output/index"
    # Images of the archive from which ReCo makes the reference embedding of a word (paper: 50).
    cfg.MODEL.RECO.NUM_IMAGES = 50
    # Side of the archive's images in co-segmentation, squares, in pixels.
    cfg.MODEL.RECO.IMAGE_SIZE = 224
    # Whether the dense CLIP guides co-segmentation (language-guided co-segmentation).
    cfg.MODEL.RECO.TEXT_ATTENTION = True
    # Words of what stands around objects, which co-segmentation leaves out (context elimination); [] for none.
    cfg.MODEL.RECO.CONTEXT = ["tree", "sky", "building", "road", "person"]
    # Whether a word's scores are multiplied by the dense CLIP's; otherwise they are its reference embedding's alone.
    cfg.MODEL.RECO.DENSE_CLIP = True
    # Folder that keeps reference embeddings between runs, by archive, models and words; "" for none.
    cfg.MODEL.RECO.CACHE = "~/.cache/tcl_d2/references"
    cfg.MODEL.RECO.ENCODER = CN()
    # The image encoder of ReCo: a VisionTransformer that timm names, or "clip" for the first blocks of MODEL.CLIP.
    cfg.MODEL.RECO.ENCODER.NAME = "deit_small_distilled_patch16_224"
    # Weights of ReCo's image encoder: "timm" for those that timm names, a file of them or its address (paper: DeiT-S
    # trained on Stylized ImageNet), or "" for random ones.
    cfg.MODEL.RECO.ENCODER.PRETRAINED = (
        "https://github.com/Muzammal-Naseer/Intriguing-Properties-of-Vision-Transformers/releases/download/v0/"
        "deit_s_sin_dist.pth"
    )
    # Blocks of MODEL.CLIP that are run where ENCODER.NAME is "clip".
    cfg.MODEL.RECO.ENCODER.BLOCKS = 8

    cfg.MODEL.GROUPVIT = CN()
    # Weights of GroupViT: a model on the Hugging Face hub, the folder of one, a file of the official release, or "" for
    # random ones. GroupViT's tokenizer is that of MODEL.CLIP.NAME.
    cfg.MODEL.GROUPVIT.WEIGHTS = "nvidia/groupvit-gcc-yfcc"
    # Attention heads of GroupViT's image encoder. Like the sizes below, it is that of a model with random weights or of
    # the official release's file; a model on the hub brings its own.
    cfg.MODEL.GROUPVIT.NUM_HEADS = 6
    # Side of the images that a GroupViT with random weights has positions for, in pixels.
    cfg.MODEL.GROUPVIT.IMAGE_SIZE = 224
    # Side of the patches of a GroupViT with random weights, in pixels.
    cfg.MODEL.GROUPVIT.PATCH_SIZE = 16
    # Width of the image encoder of a GroupViT with random weights.
    cfg.MODEL.GROUPVIT.WIDTH = 384
    # Blocks of each stage of the image encoder of a GroupViT with random weights.
    cfg.MODEL.GROUPVIT.DEPTHS = [6, 3, 3]
    # Groups that each stage but the last makes in a GroupViT with random weights; it has as many group tokens.
    cfg.MODEL.GROUPVIT.GROUPS = [64, 8]
    # Width of the text encoder of a GroupViT with random weights; a head has 64 of it.
    cfg.MODEL.GROUPVIT.TEXT_WIDTH = 256
    # Blocks of the text encoder of a GroupViT with random weights.
    cfg.MODEL.GROUPVIT.TEXT_DEPTH = 12
    # Hidden width of the projections into the common space in a GroupViT with random weights.
    cfg.MODEL.GROUPVIT.PROJECTION_WIDTH = 4096
    # Size of the common space of images and texts in a GroupViT with random weights.
    cfg.MODEL.GROUPVIT.EMBED_DIM = 256
    cfg.MODEL.GROUPVIT.MULTI_LABEL = CN()
    # Nouns that are drawn from each caption for GroupViT's multi-label loss (paper: 3); 0 for no such loss.
    cfg.MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS = 0
    # File of the words that count as nouns, one a line.
    cfg.MODEL.GROUPVIT.MULTI_LABEL.WORDS = ""
    # Prompt templates of these nouns, or the name of a set (tcl, openai_imagenet, maskclip); each gets one of them.
    cfg.MODEL.GROUPVIT.MULTI_LABEL.TEMPLATES = ["openai_imagenet"]

    cfg.MODEL.TCL = CN()
    # Dense head that makes CLIP's own masks for knowledge preservation (paper: maskclip); see MODEL.DENSE_CLIP.HEAD.
    cfg.MODEL.TCL.KP_HEAD = "maskclip"
    # Blocks of the image encoder that are shared and stay frozen; the others are copied into the grounder (paper: 11).
    cfg.MODEL.TCL.FREEZE = 11
    # Gated decoder blocks; each doubles the resolution of the masks.
    cfg.MODEL.TCL.DECODER_BLOCKS = 2
    # Initial value of the learnable w in Sim2Mask, mask logit = w * similarity + b.
    cfg.MODEL.TCL.SIM_SCALE_INIT = 10.0
    # Initial value of the learnable b in Sim2Mask, mask logit = w * similarity + b.
    cfg.MODEL.TCL.SIM_BIAS_INIT = -2.5
    # Temperature of the Gumbel-sigmoid that makes the hard masks of the image-level loss.
    cfg.MODEL.TCL.GUMBEL_TAU = 1.0
    # First iteration of the second stage, in which the copied last blocks train too; -1 for no second stage.
    cfg.MODEL.TCL.UNFREEZE_ITER = 30000
    # Loss heads, by name in TCL_LOSS_REGISTRY. A head is on when it is listed; a weight of 0 still costs its
    # computation.
    cfg.MODEL.TCL.LOSS_HEADS = [
        "ImageTCLLoss",
        "FeatureTCLLoss",
        "PositiveAreaLoss",
        "NegativeAreaLoss",
        "ImageTVLoss",
        "MaskTVLoss",
    ]
    # Loss heads to add to LOSS_HEADS without repeating that list.
    cfg.MODEL.TCL.EXTRA_LOSS_HEADS = []
    # Share of the image that the mask of a matching pair should cover; depends on the data (paper: 0.4).
    cfg.MODEL.TCL.AREA_PRIOR = 0.4
    # Share of the image that the mask of a pair that does not match should cover (paper: 0).
    cfg.MODEL.TCL.NEGATIVE_AREA_PRIOR = 0.0
    # Whether to save memory by computing the frozen encoder's pass over the masked image twice.
    cfg.MODEL.TCL.CHECKPOINT_MASKED = False
    cfg.MODEL.TCL.LOSS_WEIGHT = CN()
    # Weight of image-level TCL: contrast of the masked image, seen by CLIP, with the texts.
    cfg.MODEL.TCL.LOSS_WEIGHT.TCL_IMAGE = 0.1
    # Weight of feature-level TCL: contrast of the features pooled under the masks with the texts.
    cfg.MODEL.TCL.LOSS_WEIGHT.TCL_FEATURE = 0.1
    # Weight of the area loss on the masks of matching pairs.
    cfg.MODEL.TCL.LOSS_WEIGHT.AREA_POS = 0.4
    # Weight of the area loss on the masks of pairs that do not match.
    cfg.MODEL.TCL.LOSS_WEIGHT.AREA_NEG = 0.4
    # Weight of the total variation of the pixel embeddings.
    cfg.MODEL.TCL.LOSS_WEIGHT.TV_IMAGE = 1.0
    # Weight of the total variation of the soft masks.
    cfg.MODEL.TCL.LOSS_WEIGHT.TV_MASK = 1.0
    # Weight of SemSegBCELoss: binary cross-entropy of soft masks and labels, over the pixels that are not ignored.
    cfg.MODEL.TCL.LOSS_WEIGHT.SEM_SEG_BCE = 1.0
    # Weight of SemSegDiceLoss: dice loss of the soft masks of classes that are there, over the same pixels.
    cfg.MODEL.TCL.LOSS_WEIGHT.SEM_SEG_DICE = 1.0
    # Weight of the ablation WholeImageLoss: contrast of the whole image, without masks, with the texts.
    cfg.MODEL.TCL.LOSS_WEIGHT.WHOLE_IMAGE = 0.1

    # Benchmarks to evaluate while training; their average picks the best checkpoint. () for DATASETS.TEST.
    cfg.DATASETS.VAL = ()

    cfg.INPUT.SEM_SEG = CN()
    # Classes of a labeled dataset that are drawn for each of its images from those that the image does not have. Their
    # masks should be empty.
    cfg.INPUT.SEM_SEG.NUM_ABSENT = 8

    cfg.INPUT.IMAGE_TEXT = CN()
    # Side of the square training crop, in pixels.
    cfg.INPUT.IMAGE_TEXT.SIZE = 224
    # Range of a random resized crop's share of the image's area.
    cfg.INPUT.IMAGE_TEXT.CROP_SCALE = [0.08, 1.0]
    # Range of a random resized crop's aspect ratio, width / height.
    cfg.INPUT.IMAGE_TEXT.CROP_RATIO = [3 / 4, 4 / 3]
    # Probability of a horizontal flip.
    cfg.INPUT.IMAGE_TEXT.FLIP_PROB = 0.5
    # RandAugment policy in timm's notation; "" for none.
    cfg.INPUT.IMAGE_TEXT.RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
    # Probability of random erasing (timm's pixel mode).
    cfg.INPUT.IMAGE_TEXT.ERASING_PROB = 0.25

    # Share of the images of each process's batch that is of labeled datasets, where DATASETS.TRAIN names image-text
    # datasets too: rounded to the nearest number of images, half up, and at least one of each.
    cfg.DATALOADER.LABELED_RATIO = 0.0
    # Share of the labeled images to train on, drawn by the seed (Detectron2's RandomSubsetTrainingSampler); 1 for all.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0
    # Samples in the shuffle buffer of each loader worker, which keeps neighbors in a shard out of one batch.
    cfg.DATALOADER.SHUFFLE_BUFFER = 1000

    # Images per process whose activations are held at once; losses are over the whole batch all the same. 0 for all.
    cfg.SOLVER.IMS_PER_MICRO_BATCH = 0
    # Steps in a row that may be left out because a loss or the gradient is NaN or Inf; one more ends the training.
    cfg.SOLVER.MAX_SKIPPED = 10
    # Decay rates of AdamW's two moments.
    cfg.SOLVER.BETAS = [0.9, 0.999]
    # Epsilon of AdamW.
    cfg.SOLVER.EPS = 1e-6
    # Precision of autocast where SOLVER.AMP.ENABLED: "float16" (CUDA, with loss scaling) or "bfloat16" (also CPU).
    cfg.SOLVER.AMP.DTYPE = "float16"

    cfg.TEST.ZERO_SHOT = CN()
    # Side of the square sliding window, in pixels of the resized image; 0: the whole image at once.
    cfg.TEST.ZERO_SHOT.CROP_SIZE = 448
    # Step of the sliding window, in pixels of the resized image.
    cfg.TEST.ZERO_SHOT.STRIDE = 224
    # Constant score of the background where a dataset has one (paper: 0.4 with PAMR, 0.5 without), besides its words if
    # it has any. With LOGIT_SCALE, and in GroupViT, it is the probability that a class must reach.
    cfg.TEST.ZERO_SHOT.BACKGROUND_SCORE = 0.4
    # Scale of a softmax over all words, which makes probabilities of scores that were averaged over windows and
    # enlarged (SCLIP and its successors); 0 for none.
    cfg.TEST.ZERO_SHOT.LOGIT_SCALE = 0.0
    # Share of the pixels of all classes but the background that a class must win, or it loses them (SCLIP: 0.1 on VOC
    # with background); 0 for none.
    cfg.TEST.ZERO_SHOT.AREA_THRESHOLD = 0.0
    # Weight of frozen CLIP's own masks in the mixture (knowledge preservation); 0 for none.
    cfg.TEST.ZERO_SHOT.KP_WEIGHT = 0.3
    # Images of a batch in evaluation and in segmenting files; their windows are encoded together. Results are those of
    # one image at a time.
    cfg.TEST.ZERO_SHOT.IMS_PER_BATCH = 4
    # Number of evenly spaced images of each benchmark to evaluate, for a quick look; 0 for all.
    cfg.TEST.ZERO_SHOT.MAX_IMAGES = 0
    # Whether to save predicted labels as palette PNGs below OUTPUT_DIR/inference.
    cfg.TEST.ZERO_SHOT.SAVE_PREDICTIONS = False
    # Whether to leave out and count images that are broken or have broken labels; otherwise they are an error.
    cfg.TEST.ZERO_SHOT.SKIP_BROKEN = False
    # Precision of autocast in evaluation: "float32" (none), "bfloat16", or, on CUDA, "float16".
    cfg.TEST.ZERO_SHOT.PRECISION = "float32"
    # Folder that keeps text embeddings between runs, by CLIP's weights and prompts; "" for none.
    cfg.TEST.ZERO_SHOT.TEXT_CACHE = "~/.cache/tcl_d2/text"
    # Prompt templates, or the name of a set (tcl, openai_imagenet, maskclip); a word's embedding is the mean over them.
    cfg.TEST.ZERO_SHOT.TEMPLATES = ["tcl"]
    # Whether each prompt's embedding is normalized before the mean (SCLIP and its successors).
    cfg.TEST.ZERO_SHOT.NORMALIZE_PROMPTS = False
    # Class words in place of the benchmarks' own: those of a release by name (sclip, naclip, clearclip, proxyclip,
    # groupvit), "first" for the first of each class's own, or a file with a class a line; "" for the benchmarks' own.
    cfg.TEST.ZERO_SHOT.WORDS = ""
    # Words that belong to no class: pixels that they fit best become background, or, where there is none, of no class.
    cfg.TEST.ZERO_SHOT.FILLER_WORDS = []
    # Values for single datasets, by name: a list of KEY, VALUE pairs over the others, such as
    # {voc: [INPUT.MIN_SIZE_TEST, 336]}.
    cfg.TEST.ZERO_SHOT.BY_DATASET = CN(new_allowed=True)
    cfg.TEST.ZERO_SHOT.CONNECTED_COMPONENTS = CN()
    # Smallest area of an object, a connected component of a class's mask, in pixels of the output. The most objects of
    # an image are Detectron2's TEST.DETECTIONS_PER_IMAGE.
    cfg.TEST.ZERO_SHOT.CONNECTED_COMPONENTS.MIN_AREA = 30
    # Neighbors of a pixel that belong to its connected component: 8, or 4 without those at the corners.
    cfg.TEST.ZERO_SHOT.CONNECTED_COMPONENTS.CONNECTIVITY = 8
    # Measures besides the protocol's, by name: SoftIoU, ConfusedPairs, BoundaryIoU, ClassBoundaryIoU, or names of your
    # own in MEASURE_REGISTRY (docs/measures.md); [] for none.
    cfg.TEST.ZERO_SHOT.MEASURES = []
    # Similarity of the classes for SoftIoU and ConfusedPairs: a .npy or .csv file of a row and a column for each class,
    # in which {dataset} stands for the dataset's name; "" for that of the model's text features.
    cfg.TEST.ZERO_SHOT.SIMILARITY = ""
    # What brings masks to the image's own edges: none, pamr, densecrf (which needs pydensecrf2), or a name of your own
    # in REFINER_REGISTRY.
    cfg.TEST.ZERO_SHOT.REFINE = "pamr"
    cfg.TEST.ZERO_SHOT.PAMR = CN()
    # Whether PAMR refines the scores of the whole image at the output's size (NACLIP), rather than each window's masks.
    cfg.TEST.ZERO_SHOT.PAMR.WHOLE_IMAGE = False
    # How often PAMR averages a mask over neighboring pixels.
    cfg.TEST.ZERO_SHOT.PAMR.ITERS = 10
    # Distances of the 8 neighbors that PAMR averages over, in pixels of the mask.
    cfg.TEST.ZERO_SHOT.PAMR.DILATIONS = [1, 2, 4, 8, 12, 24]
    cfg.TEST.ZERO_SHOT.DENSECRF = CN()
    # Iterations of DenseCRF's mean field (this and all of DENSECRF: ReCo's release).
    cfg.TEST.ZERO_SHOT.DENSECRF.ITERS = 10
    # Standard deviation of DenseCRF's Gaussian kernel, in pixels of the output.
    cfg.TEST.ZERO_SHOT.DENSECRF.GAUSSIAN_SXY = 1.0
    # Weight of DenseCRF's Gaussian kernel.
    cfg.TEST.ZERO_SHOT.DENSECRF.GAUSSIAN_COMPAT = 3.0
    # Standard deviation of the distances in DenseCRF's bilateral kernel, in pixels of the output.
    cfg.TEST.ZERO_SHOT.DENSECRF.BILATERAL_SXY = 67.0
    # Standard deviation of the colors in DenseCRF's bilateral kernel, in 0..255.
    cfg.TEST.ZERO_SHOT.DENSECRF.BILATERAL_SRGB = 3.0
    # Weight of DenseCRF's bilateral kernel.
    cfg.TEST.ZERO_SHOT.DENSECRF.BILATERAL_COMPAT = 4.0
    return cfg
