"""Prompted nouns of a caption, which GroupViT's multi-label loss contrasts with the image."""

import random
import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class NounPrompter:
    """Draws nouns of a caption, and puts each into one of the prompt templates.

    Args:
        words: those that count as nouns, each of one or several words.
        count: nouns to draw from a caption.
        templates: each with one `{}`.

    Raises:
        ValueError: there are no words, or no nouns to draw.
    """

    def __init__(self, words: Iterable[str], count: int, templates: Sequence[str]):
        self.words = {" ".join(_WORD.findall(word.lower())) for word in words} - {""}
        self.count = count
        self.templates = templates
        if not self.words or count < 1:
            raise ValueError(f"{len(self.words)} nouns, of which {count} are drawn; expected at least one of both.")
        self._longest = max(len(word.split()) for word in self.words)

    def find(self, caption: str) -> list[str]:
        """Find the nouns of a caption, each once, in their order; of "red apple" and "apple" the longer one.

        Case does not count, and a plural in -s or -es is its singular.
        """
        text, nouns = _WORD.findall(caption.lower()), {}
        start = 0
        while start < len(text):
            lengths = range(min(self._longest, len(text) - start), 0, -1)
            matches = (self._match(text[start : start + length]) for length in lengths)
            noun = next(filter(None, matches), None)
            if noun:
                nouns[noun] = None
            start += len(noun.split()) if noun else 1
        return list(nouns)

    def _match(self, phrase: list[str]) -> str | None:
        """Return the noun that a phrase is, or None."""
        text = " ".join(phrase)
        forms = (text, text.removesuffix("s"), text.removesuffix("es"))
        return next((form for form in forms if form in self.words), None)

    def __call__(self, caption: str) -> list[str]:
        """Draw `count` prompts of a caption's nouns, some twice if it has fewer; without nouns it is repeated."""
        nouns = self.find(caption)
        if not nouns:
            return [caption] * self.count
        drawn = random.sample(nouns, min(self.count, len(nouns)))
        drawn += random.choices(nouns, k=self.count - len(drawn))
        return [random.choice(self.templates).replace("{}", noun) for noun in drawn]
