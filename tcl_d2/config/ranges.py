"""The ranges of config keys, the plugin's and Detectron2's own, for configurations and for parts built without one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import attrgetter

from detectron2.config import CfgNode


@dataclass(frozen=True)
class Range:
    """What a number, or each number of a list, may be; None for no such limit. NaN is in no range.

    Attributes:
        least: the smallest value.
        above: what is too small.
        most: the largest value.
        below: what is too large.
        choices: all values, of any type.
        length: how many numbers the list has.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: Collection[object] | None = None
    length: int | None = None

    def __contains__(self, value: object) -> bool:
        # A list of a LazyConfig is a Sequence, too
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return len(values) > 0 and self.length in (None, len(values)) and all(map(self._has, values))

    def _has(self, value: object) -> bool:
        if self.choices is not None:
            return value in self.choices
        return (
            isinstance(value, Real)
            and value == value
            and (self.least is None or not value < self.least)
            and (self.above is None or not value <= self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        limits = {"at least": self.least, "more than": self.above, "at most": self.most, "less than": self.below}
        limits = " and ".join(f"{name} {limit}" for name, limit in limits.items() if limit is not None)
        return limits if self.length is None else f"{self.length} numbers {limits}".rstrip()


_POSITIVE, _FROM_0, _FROM_1 = Range(above=0), Range(least=0), Range(least=1)
_SHARE = Range(least=0, most=1)
_BOUNDS = Range(above=0, below=float("inf"), length=2)

RANGES = {
    "MODEL.PIXEL_MEAN": Range(length=3),
    "MODEL.PIXEL_STD": Range(above=0, length=3),
    "MODEL.CLIP.MASK_SCALE": _POSITIVE,
    "MODEL.DENSE_CLIP.SCORES": Range(choices=("mask", "cosine", "probability")),
    "MODEL.DENSE_CLIP.PROMPT_DENOISING": _FROM_0,
    "MODEL.DENSE_CLIP.KEY_SMOOTHING": _FROM_0,
    "MODEL.DENSE_CLIP.SIGMA": _POSITIVE,
    "MODEL.DENSE_CLIP.PROXY.GAMMA": _POSITIVE,
    "MODEL.DENSE_CLIP.DINOISER.GAMMA": Range(above=-1, below=1),
    "MODEL.DENSE_CLIP.DINOISER.OBJECT_LR": _FROM_0,
    "MODEL.RECO.NUM_IMAGES": _FROM_1,
    "MODEL.RECO.IMAGE_SIZE": _FROM_1,
    "MODEL.RECO.ENCODER.BLOCKS": _FROM_1,
    "MODEL.GROUPVIT.NUM_HEADS": _FROM_1,
    "MODEL.GROUPVIT.IMAGE_SIZE": _FROM_1,
    "MODEL.GROUPVIT.PATCH_SIZE": _FROM_1,
    "MODEL.GROUPVIT.WIDTH": _FROM_1,
    "MODEL.GROUPVIT.DEPTHS": _FROM_1,
    "MODEL.GROUPVIT.GROUPS": _FROM_1,
    "MODEL.GROUPVIT.TEXT_WIDTH": _FROM_1,
    "MODEL.GROUPVIT.TEXT_DEPTH": _FROM_1,
    "MODEL.GROUPVIT.PROJECTION_WIDTH": _FROM_1,
    "MODEL.GROUPVIT.EMBED_DIM": _FROM_1,
    "MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS": _FROM_0,
    "MODEL.TIPS.TEXT_HEADS": _FROM_0,
    "MODEL.TIPS.TEXT_DEPTH": _FROM_1,
    "MODEL.TIPS.SCORES": Range(choices=("probability", "cosine")),
    "MODEL.DINO_TXT.PATCHES": Range(choices=("head", "backbone")),
    "MODEL.DINO_TXT.TEXT_WIDTH": _FROM_1,
    "MODEL.DINO_TXT.TEXT_DEPTH": _FROM_1,
    "MODEL.DINO_TXT.TEXT_HEADS": _FROM_1,
    "MODEL.TALK2DINO.IMAGE_SIZE": _FROM_1,
    "MODEL.TALK2DINO.CLEANING": _FROM_0,
    "MODEL.TCL.FREEZE": _FROM_0,
    "MODEL.TCL.DECODER_BLOCKS": _FROM_0,
    "MODEL.TCL.GUMBEL_TAU": _POSITIVE,
    "MODEL.TCL.UNFREEZE_ITER": Range(least=-1),
    "MODEL.TCL.AREA_PRIOR": _SHARE,
    "MODEL.TCL.NEGATIVE_AREA_PRIOR": _SHARE,
    "INPUT.MIN_SIZE_TEST": _FROM_0,
    "INPUT.MAX_SIZE_TEST": _FROM_1,
    "INPUT.RESIZE_TEST": Range(choices=("opencv_bilinear", "pil_bicubic")),
    "INPUT.MIN_SIZE_TRAIN": _FROM_0,
    "INPUT.MAX_SIZE_TRAIN": _FROM_1,
    "INPUT.SEM_SEG.NUM_ABSENT": _FROM_0,
    "INPUT.UNLABELED.BRIGHTNESS": _SHARE,
    "INPUT.IMAGE_TEXT.SIZE": _FROM_1,
    "INPUT.IMAGE_TEXT.CROP_SCALE": _BOUNDS,
    "INPUT.IMAGE_TEXT.CROP_RATIO": _BOUNDS,
    "INPUT.IMAGE_TEXT.FLIP_PROB": _SHARE,
    "INPUT.IMAGE_TEXT.ERASING_PROB": _SHARE,
    "DATALOADER.NUM_WORKERS": _FROM_0,
    "DATALOADER.LABELED_RATIO": Range(least=0, below=1),
    "DATALOADER.RANDOM_SUBSET_RATIO": Range(above=0, most=1),
    "DATALOADER.SHUFFLE_BUFFER": _FROM_1,
    "SOLVER.MAX_ITER": _FROM_1,
    "SOLVER.IMS_PER_BATCH": _FROM_1,
    "SOLVER.IMS_PER_MICRO_BATCH": _FROM_0,
    "SOLVER.WARMUP_ITERS": _FROM_0,
    "SOLVER.WARMUP_FACTOR": _FROM_0,
    "SOLVER.CHECKPOINT_PERIOD": _FROM_0,
    "SOLVER.BASE_LR": _FROM_0,
    "SOLVER.WEIGHT_DECAY": _FROM_0,
    "SOLVER.BETAS": Range(least=0, below=1, length=2),
    "SOLVER.EPS": _FROM_0,
    "SOLVER.MAX_SKIPPED": _FROM_0,
    "SOLVER.AMP.DTYPE": Range(choices=("float16", "bfloat16")),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _FROM_0,  # below 0, gradients would change their sign
    "TEST.EVAL_PERIOD": _FROM_0,
    "TEST.DETECTIONS_PER_IMAGE": _FROM_1,
    "TEST.ZERO_SHOT.CROP_SIZE": _FROM_0,
    "TEST.ZERO_SHOT.BACKGROUND_SCORE": _SHARE,
    "TEST.ZERO_SHOT.LOGIT_SCALE": _FROM_0,
    "TEST.ZERO_SHOT.AREA_THRESHOLD": _SHARE,
    "TEST.ZERO_SHOT.KP_WEIGHT": _SHARE,
    "TEST.ZERO_SHOT.IMS_PER_BATCH": _FROM_1,
    "TEST.ZERO_SHOT.MAX_IMAGES": _FROM_0,
    "TEST.ZERO_SHOT.CONNECTED_COMPONENTS.MIN_AREA": _FROM_1,
    "TEST.ZERO_SHOT.CONNECTED_COMPONENTS.CONNECTIVITY": Range(choices=(4, 8)),
    "TEST.ZERO_SHOT.PAMR.ITERS": _FROM_1,
    "TEST.ZERO_SHOT.PAMR.DILATIONS": _FROM_1,
    "TEST.ZERO_SHOT.DENSECRF.ITERS": _FROM_1,
    "TEST.ZERO_SHOT.DENSECRF.GAUSSIAN_SXY": _POSITIVE,
    "TEST.ZERO_SHOT.DENSECRF.GAUSSIAN_COMPAT": _FROM_0,
    "TEST.ZERO_SHOT.DENSECRF.BILATERAL_SXY": _POSITIVE,
    "TEST.ZERO_SHOT.DENSECRF.BILATERAL_SRGB": _POSITIVE,
    "TEST.ZERO_SHOT.DENSECRF.BILATERAL_COMPAT": _FROM_0,
    "TEST.ZERO_SHOT.LPOSS.NEIGHBORS": _FROM_1,
    "TEST.ZERO_SHOT.LPOSS.GAMMA": _POSITIVE,
    "TEST.ZERO_SHOT.LPOSS.SIGMA": _POSITIVE,
    "TEST.ZERO_SHOT.LPOSS.ALPHA": Range(least=0, below=1),
    "TEST.ZERO_SHOT.LPOSS.STEPS": _FROM_0,
    "TEST.ZERO_SHOT.LPOSS.TAU": _POSITIVE,
    "TEST.ZERO_SHOT.LPOSS.WINDOW": _FROM_1,
    "TEST.ZERO_SHOT.REGIONS.RULE": Range(choices=("vote", "mean")),
    "VIS_PERIOD": _FROM_0,
}


def check_values(section: str = "", **values: object) -> None:
    """Raise a ValueError for the first value that is out of its key's range.

    Args:
        section: of the keys, such as "MODEL.CLIP".
        values: by the names of the keys in it; None for no value.
    """
    for name, value in values.items():
        key = f"{section}.{name}".lstrip(".")
        if value is not None and key in RANGES and value not in RANGES[key]:
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{key} is {shown!r}; expected {RANGES[key]}.")


def check_ranges(cfg: CfgNode, *sections: str) -> None:
    """Raise a ValueError for the first value of a configuration that is out of its range.

    Args:
        sections: beginnings of the keys to look at ("INPUT."); none for all.
    """
    for key in RANGES:
        if key.startswith(sections or ""):
            section, _, name = key.rpartition(".")
            check_values(section, **{name: attrgetter(key)(cfg)})
