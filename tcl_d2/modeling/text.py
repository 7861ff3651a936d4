"""From words to text embeddings: prompt templates, and a vocabulary's cached embeddings."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..utils.tensors import UnreadableFile, read_tensors, save_tensors
from .clip import FrozenCLIP
from .grounder import normalize

_PROMPTS_AT_ONCE = 256  # bounds memory for vocabularies of thousands of words


def dataset_vocabulary(dataset_name: str) -> tuple[list[str], bool]:
    """Return the words to look for in a registered dataset, and whether a background, its first class, goes before."""
    metadata = MetadataCatalog.get(dataset_name)
    background = metadata.get("background", False)
    return metadata.stuff_classes[int(background) :], background


def check_vocabulary(names: Sequence[str]) -> tuple[str, ...]:
    """Return the class words as a tuple.

    Raises:
        ValueError: no words, a word that is no text or blank, or a word that stands twice.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"A vocabulary is a list of at least one class word, not {names!r}.")

    blank = [name for name in names if not isinstance(name, str) or not name.strip()]
    if blank:
        raise ValueError(f"A vocabulary's words must be texts that are not blank; found {blank[0]!r}.")

    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"A vocabulary names each class once; these stand twice: {', '.join(twice[:5])}.")
    return tuple(names)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates as a tuple; ValueError unless there is one and each has exactly one place, `{}`."""
    if isinstance(templates, str) or not templates:
        raise ValueError(f"Prompt templates are a list of at least one text, not {templates!r}.")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"A prompt template has the place '{{}}' exactly once; not so: {wrong[0]!r}.")
    return tuple(templates)


class TextEmbedder:
    """Embeds vocabularies with prompt templates, and remembers those it was asked for last; in files too, if wanted."""

    def __init__(
        self,
        clip: FrozenCLIP,
        tokenizer: Callable[[list[str]], Tensor],
        folder: Path | None = None,
        remember: int = 16,
    ):
        """Begin with an empty cache.

        Args:
            clip: the frozen CLIP, whose text encoder is used.
            tokenizer: N texts -> int64 [N, context].
            folder: where embeddings are kept in files, by CLIP's weights and the prompts' tokens; None: nowhere.
            remember: vocabularies that are held in memory.
        """
        self.clip = clip
        self.tokenizer = tokenizer
        self.folder = folder
        self.remember = remember
        self._cache: dict[tuple, Tensor] = {}

    def __call__(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Embed class words: the mean of T(template) over templates, each not normalized, then normalized.

        Returns:
            text features fp32 [K, D].

        Raises:
            ValueError: see check_vocabulary and check_templates.
        """
        key = (check_vocabulary(names), check_templates(templates))
        device = self.clip.visual.proj.device
        if key not in self._cache or self._cache[key].device != device:
            while len(self._cache) >= self.remember:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._embed(*key, device)
        return self._cache[key]

    def _embed(self, names: tuple[str, ...], templates: tuple[str, ...], device: torch.device) -> Tensor:
        tokens = self.tokenizer([template.replace("{}", name) for name in names for template in templates])
        if self.folder is None:
            return self._compute(tokens, len(names), device)

        path = self.folder / f"{self._digest(tokens)}.safetensors"
        try:
            return read_tensors(path)["embedding"].to(device)
        except (FileNotFoundError, UnreadableFile):
            features = self._compute(tokens, len(names), device)
            save_tensors(path, {"embedding": features.cpu()})
            return features

    @torch.no_grad()
    def _compute(self, tokens: Tensor, count: int, device: torch.device) -> Tensor:
        parts = [self.clip.encode_text(chunk.to(device)).float() for chunk in tokens.split(_PROMPTS_AT_ONCE)]
        return normalize(torch.cat(parts).unflatten(0, (count, -1)).mean(1), 1)

    def _digest(self, tokens: Tensor) -> str:
        """Digest all that the embeddings depend on: the prompts' tokens and the text encoder's weights."""
        digest = hashlib.blake2b(tokens.numpy(), digest_size=16)
        for name, weight in self.clip.model.state_dict().items():
            if not name.startswith("visual."):
                digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def forget(self) -> None:
        """Empty the cache; to be called when CLIP's weights change."""
        self._cache.clear()
