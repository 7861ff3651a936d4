"""What is looked for: words as users write them, vocabularies of them, and the words of datasets."""

from .specificity import at_specificity
from .words import Words

__all__ = ["Words", "at_specificity"]
