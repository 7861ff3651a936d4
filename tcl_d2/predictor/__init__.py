"""From pictures and words to masks in a few lines."""

from .predictor import EncodedImage, TCLPredictor

__all__ = ["EncodedImage", "TCLPredictor"]
