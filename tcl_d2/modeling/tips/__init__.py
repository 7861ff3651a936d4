"""TIPSv2 (arXiv 2604.12012) and dino.txt (arXiv 2412.16334): patches with a text tower of their own."""

from .dino_txt import DinoTxt, DinoTxtEncoder, build_image_head
from .encoder import TIPSEncoder
from .model import TIPSv2
from .text import TIPSTokenizer, build_text_tower

__all__ = [
    "DinoTxt",
    "DinoTxtEncoder",
    "TIPSEncoder",
    "TIPSTokenizer",
    "TIPSv2",
    "build_image_head",
    "build_text_tower",
]
