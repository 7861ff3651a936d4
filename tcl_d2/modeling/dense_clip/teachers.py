"""DINO as CLIP-DINOiser's teacher: which patches of an image are similar."""

from detectron2.config import CfgNode
from torch import Tensor

from ...utils.downloads import local_weights
from ..encoders.clip_loading import image_tower
from ..encoders.vision import DINO_POSITIONS, VisionEncoder, build_vision_model, check_vision_model
from ..functional import self_similarity

_KEY = "MODEL.DENSE_CLIP.DINOISER.TEACHER"


class Teacher:
    """Correlations of patches by the values of a vision model's last attention.

    The model is built when it is first asked: an evaluation goes without it.
    """

    def __init__(self, cfg: CfgNode):
        """Keep the configuration that names the model."""
        self._cfg = cfg
        self._encoder: VisionEncoder | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the correlations [B, h*w, h*w] of the patches of normalized images [B, 3, H, W]."""
        if self._encoder is None:
            self._encoder = build_teacher(self._cfg).to(images.device)
        return self_similarity(self._encoder.values(images).float())


def build_teacher(cfg: CfgNode) -> VisionEncoder:
    """Build the teacher that a configuration names; errors as build_vision_model."""
    teacher = cfg.MODEL.DENSE_CLIP.DINOISER.TEACHER
    model = build_vision_model(_KEY, teacher.NAME, teacher.PRETRAINED)
    return VisionEncoder(model, DINO_POSITIONS, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)


def check_teacher(cfg: CfgNode) -> None:
    """Check that the teacher's name is known, its file is there, and its patches are of CLIP's size.

    Raises:
        OSError, ValueError: names the key.
    """
    teacher = cfg.MODEL.DENSE_CLIP.DINOISER.TEACHER
    patch_size, expected = check_vision_model(_KEY, teacher.NAME), image_tower(cfg.MODEL.CLIP.NAME).patch_size
    if patch_size != expected:
        raise ValueError(
            f"{_KEY}.NAME is '{teacher.NAME}', which has patches of {patch_size} pixels; expected {expected}, as "
            f"MODEL.CLIP.NAME '{cfg.MODEL.CLIP.NAME}' has."
        )
    if teacher.PRETRAINED not in ("", "timm"):
        local_weights(f"{_KEY}.PRETRAINED", teacher.PRETRAINED)
