"""From pictures and words to masks in a few lines."""

from .predictor import EncodedImage, TCLPredictor, words_to_rank

__all__ = ["EncodedImage", "TCLPredictor", "words_to_rank"]
