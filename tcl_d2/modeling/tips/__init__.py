"""TIPSv2 (arXiv 2604.12012): values of the last block, compared with a text tower of its own."""

from .encoder import TIPSEncoder
from .model import TIPSv2
from .text import TIPSTokenizer, build_text_tower

__all__ = ["TIPSEncoder", "TIPSTokenizer", "TIPSv2", "build_text_tower"]
