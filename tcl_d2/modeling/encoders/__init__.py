"""What sees and reads: CLIP, its loading, and vision models beside it."""

from .base import DualEncoder, FrozenDualEncoder
from .clip import FrozenCLIP
from .clip_loading import build_clip, build_tokenizer, check_clip
from .vision import VisionEncoder, build_vision_model

__all__ = [
    "DualEncoder",
    "FrozenCLIP",
    "FrozenDualEncoder",
    "VisionEncoder",
    "build_clip",
    "build_tokenizer",
    "build_vision_model",
    "check_clip",
]
