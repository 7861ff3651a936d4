"""From words to text embeddings: prompt templates, and a vocabulary's cached embeddings."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.evaluation import inference_context
from torch import Tensor, nn

from ...utils.tensors import UnreadableFile, digest_weights, keep_tensors, read_tensors, weights_version
from ...words.parsing import split_templates, without_templates
from ...words.templates import check_templates, make_prompts
from ...words.vocabulary import check_words
from ..functional import normalize
from .base import DualEncoder

_PROMPTS_AT_ONCE = 256  # bounds memory for vocabularies of thousands of words
_WORDS_REMEMBERED = 10_000  # 20 MB of features of 512 numbers


def batch_tokens(batched_inputs: list[dict], tokenizer: Callable[[list[str]], Tensor], device: torch.device) -> Tensor:
    """Return the tokens of the texts of a training batch, int [B, context].

    Args:
        batched_inputs: a dict an image, with its text's `tokens` (int [context]) or, for all of them, `caption` (str).
        tokenizer: of captions, N texts -> int64 [N, context].
        device: of the result.

    Raises:
        ValueError: an image has neither, or there are no images.
    """
    if not batched_inputs:
        raise ValueError("Training needs images with captions, for its loss heads; the batch has none.")
    if all("tokens" in input_per_image for input_per_image in batched_inputs):
        return torch.stack([input_per_image["tokens"] for input_per_image in batched_inputs]).to(device)
    if all("caption" in input_per_image for input_per_image in batched_inputs):
        return tokenizer([input_per_image["caption"] for input_per_image in batched_inputs]).to(device)
    raise ValueError("Training needs a 'caption' (str) or 'tokens' (Tensor[context]) with every image.")


class _Reading(NamedTuple):
    """How a tokenizer reads a word.

    Attributes:
        text: digest of its tokens, as far as any prompt shows them, and of its own templates.
        is_cut: whether a prompt with it fills the context, so that its end is lost.
    """

    text: bytes
    is_cut: bool


class WordReader:
    """Says how a tokenizer reads words: which of them are one text, which are cut, and which it does not know."""

    def __init__(self, tokenizer: Callable[[list[str]], Tensor]):
        """Begin with no word read.

        Args:
            tokenizer: N texts -> int64 [N, context]. If it has `known_words`, they are all that its model was trained
                on.
        """
        self.tokenizer = tokenizer
        self._readings: dict[tuple, _Reading] = {}

    def identify(self, words: Sequence[str], templates: Sequence[str]) -> list[bytes]:
        """Return a key for each word; words with the same key are one text, see make_vocabulary."""
        return [reading.text for reading in self._read(words, templates)]

    def warnings(self, words: Sequence[str], templates: Sequence[str]) -> list[str]:
        """Return what a user should know about words: those that are cut, and those that the model does not know."""
        messages = []
        cut = [word for word, reading in zip(words, self._read(words, templates)) if reading.is_cut]
        if cut:
            context = self.tokenizer([""]).shape[1]
            messages.append(f"Longer than the model's context of {context} tokens, so the end is cut: {_quote(cut)}")

        known = getattr(self.tokenizer, "known_words", None)
        texts = map(without_templates, words)
        unknown = [text for text in texts if known is not None and not known.issuperset(text.lower().split())]
        if known is not None and unknown:
            messages.append(
                f"This small model was not trained on {_quote(unknown)}, so what it finds for them means nothing; it "
                f"knows {_quote(sorted(known))}. For photos and words of your own take another model: --model "
                "official, or TCLPredictor.from_pretrained('official')"
            )
        return messages

    def _read(self, words: Sequence[str], templates: Sequence[str]) -> list[_Reading]:
        # The prompt that shows most of each word, and the one that is cut first
        frame, prompts = _frame(templates), {}
        for word in words:
            text, own = split_templates(word)
            prefix, longest = _frame(own) if own else frame
            prompts[word] = (prefix + text, longest.replace("{}", text), own)
        readings = {key: self._readings[key] for key in prompts.values() if key in self._readings}

        new = [key for key in dict.fromkeys(prompts.values()) if key not in readings]
        if new:
            starts, wholes, _ = zip(*new)
            *tokens, blank = self.tokenizer([*starts, *wholes, ""])
            for key, visible, whole in zip(new, tokens, tokens[len(new) :]):
                text = hashlib.blake2b(visible.numpy().tobytes(), digest_size=16)
                text.update("".join(key[2]).encode())
                readings[key] = _Reading(text.digest(), is_cut=bool(whole[-1] != blank[-1]))

            if len(self._readings) > _WORDS_REMEMBERED:
                self._readings.clear()
            self._readings.update({key: readings[key] for key in new})
        return [readings[prompts[word]] for word in words]


def _frame(templates: Sequence[str]) -> tuple[str, str]:
    """Return what stands before a word in the prompt that shows most of it, and the template that is cut first."""
    return min((template.partition("{}")[0] for template in templates), key=len), max(templates, key=len)


def _quote(words: Sequence[str], limit: int = 5) -> str:
    others = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(f"'{word}'" for word in words[:limit]) + others


class TextEmbedder(WordReader):
    """Embeds words with prompt templates, and caches their features; in files too, if wanted.

    The cache is emptied when the text encoder's weights change.
    """

    def __init__(
        self,
        clip: DualEncoder,
        tokenizer: Callable[[list[str]], Tensor],
        folder: Path | None = None,
        normalize_prompts: bool = False,
        projection: nn.Module | None = None,
    ):
        """Begin with an empty cache.

        Args:
            clip: CLIP, or another model of images and texts; its text encoder is used.
            tokenizer: N texts -> int64 [N, context].
            folder: where embeddings are kept in files, by the text encoder's weights and the prompts' tokens; None:
                nowhere.
            normalize_prompts: whether each prompt's embedding is normalized before the mean over templates (SCLIP and
                its successors), which the official TCL does not do.
            projection: of the mean over templates, [K, D] -> [K, D'], before it is normalized; None for none.
        """
        super().__init__(tokenizer)
        self.clip = clip
        self.folder = folder
        self.normalize_prompts = normalize_prompts
        self.projection = projection or nn.Identity()
        self._features: dict[tuple, Tensor] = {}
        self._weights_version: list[tuple] = []

    def __call__(self, words: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Embed words: the mean of T(template) over templates, projected and normalized.

        Only words that are new are computed. A word that brings templates of its own, see split_templates, is embedded
        with these. A word's feature may differ in the last bit with the words that it is computed with.

        Returns:
            text features fp32 [K, D].

        Raises:
            ValueError: see check_words and check_templates.
        """
        self._forget_old_weights()
        words, templates = check_words(words), check_templates(templates)
        context = (templates, self.normalize_prompts, self.clip.device)
        new_words = tuple(word for word in words if (word, context) not in self._features)
        if new_words and len(self._features) > _WORDS_REMEMBERED:
            self._features.clear()
            new_words = words
        for group in _group_by_count(new_words, templates):
            features = self._embed(group, templates)  # rows are cloned: pickled, each would bring all others
            self._features.update({(word, context): feature.clone() for word, feature in zip(group, features)})
        return torch.stack([self._features[word, context] for word in words])

    def _embed(self, words: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
        tokens = self.tokenizer([prompt for word in words for prompt in make_prompts(word, templates)])
        if self.folder is None:
            return self._compute(tokens, len(words))

        path = self.folder / f"{self._digest(tokens)}.safetensors"
        try:
            return read_tensors(path)["embedding"].to(self.clip.device)
        except (FileNotFoundError, UnreadableFile):
            features = self._compute(tokens, len(words))
            if not keep_tensors(path, {"embedding": features.cpu()}):
                self.folder = None  # the warning comes once
            return features

    @torch.no_grad()
    def _compute(self, tokens: Tensor, count: int) -> Tensor:
        with inference_context(self.clip):  # an evaluation in the middle of a training sets its words before it begins
            parts = [
                self.clip.encode_text(chunk.to(self.clip.device)).float() for chunk in tokens.split(_PROMPTS_AT_ONCE)
            ]
        prompts = torch.cat(parts).unflatten(0, (count, -1))
        if self.normalize_prompts:
            prompts = normalize(prompts, 2)
        return normalize(self.projection(prompts.mean(1)), 1)

    def _digest(self, tokens: Tensor) -> str:
        """Digest all that the embeddings depend on: the prompts' tokens, their mean, and the text encoder."""
        digest = hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16)
        if self.normalize_prompts:
            digest.update(b"normalized")
        digest.update(digest_weights(self.clip.model, self.clip.text_weights()).encode())
        if weights := self.projection.state_dict():
            digest.update(digest_weights(self.projection, weights).encode())
        return digest.hexdigest()

    def _forget_old_weights(self) -> None:
        """Empty the cache if the text encoder's weights have changed: they were loaded, or trained."""
        version = weights_version([*self.clip.text_weights().values(), *self.projection.state_dict().values()])
        if version != self._weights_version:
            self._features.clear()
            self._weights_version = version


def _group_by_count(words: Sequence[str], templates: Sequence[str]) -> list[tuple[str, ...]]:
    """Group words by their number of templates."""
    groups: dict[int, list[str]] = {}
    for word in words:
        groups.setdefault(len(split_templates(word)[1] or templates), []).append(word)
    return [tuple(group) for group in groups.values()]
