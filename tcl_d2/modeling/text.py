"""From words to text embeddings: prompt templates, and a vocabulary's cached embeddings."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.evaluation import inference_context
from torch import Tensor

from ..utils.tensors import UnreadableFile, digest_weights, keep_tensors, read_tensors
from .dual_encoder import DualEncoder
from .grounder import normalize
from .vocabulary import check_words

_PROMPTS_AT_ONCE = 256  # bounds memory for vocabularies of thousands of words
_WORDS_REMEMBERED = 10_000  # 20 MB of features of 512 numbers


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates as a tuple; ValueError unless there is one and each has exactly one place, `{}`."""
    if isinstance(templates, str) or not templates:
        raise ValueError(f"Prompt templates are a list of at least one text, not {templates!r}.")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"A prompt template has the place '{{}}' exactly once; not so: {wrong[0]!r}.")
    return tuple(templates)


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


class TextEmbedder:
    """Embeds vocabularies with prompt templates, and remembers those it was asked for last; in files too, if wanted."""

    def __init__(
        self,
        clip: DualEncoder,
        tokenizer: Callable[[list[str]], Tensor],
        folder: Path | None = None,
        remember: int = 16,
        normalize_prompts: bool = False,
    ):
        """Begin with an empty cache.

        Args:
            clip: CLIP, or another model of images and texts; its text encoder is used.
            tokenizer: N texts -> int64 [N, context].
            folder: where embeddings are kept in files, by the text encoder's weights and the prompts' tokens; None:
                nowhere.
            remember: vocabularies that are held in memory.
            normalize_prompts: whether each prompt's embedding is normalized before the mean over templates (SCLIP and
                its successors), which the official TCL does not do.
        """
        self.clip = clip
        self.tokenizer = tokenizer
        self.folder = folder
        self.remember = remember
        self.normalize_prompts = normalize_prompts
        self._cache: dict[tuple, Tensor] = {}
        self._words: dict[tuple, Tensor] = {}

    def __call__(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Embed words: the mean of T(template) over templates, normalized.

        Returns:
            text features fp32 [K, D].

        Raises:
            ValueError: see check_words and check_templates.
        """
        names, templates = check_words(names), check_templates(templates)
        device = self.clip.device
        key = (names, templates, self.normalize_prompts)
        if key not in self._cache or self._cache[key].device != device:
            while len(self._cache) >= self.remember:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._embed(names, templates, device)
        return self._cache[key]

    def embed_new(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Embed words that come again and again in other lists: only those that are new are computed.

        Features differ in the last bit from those of the whole list, for texts are embedded with others at once.

        Returns:
            text features fp32 [K, D].

        Raises:
            ValueError: see check_words and check_templates.
        """
        names, templates = check_words(names), check_templates(templates)
        context = (templates, self.normalize_prompts, self.clip.device)
        new_names = [name for name in names if (name, context) not in self._words]
        if new_names:
            if len(self._words) > _WORDS_REMEMBERED:
                self._words.clear()
                new_names = names
            features = self(new_names, templates)
            self._words.update({(name, context): feature for name, feature in zip(new_names, features)})
        return torch.stack([self._words[name, context] for name in names])

    def _embed(self, names: tuple[str, ...], templates: tuple[str, ...], device: torch.device) -> Tensor:
        tokens = self.tokenizer([template.replace("{}", name) for name in names for template in templates])
        if self.folder is None:
            return self._compute(tokens, len(names), device)

        path = self.folder / f"{self._digest(tokens)}.safetensors"
        try:
            return read_tensors(path)["embedding"].to(device)
        except (FileNotFoundError, UnreadableFile):
            features = self._compute(tokens, len(names), device)
            if not keep_tensors(path, {"embedding": features.cpu()}):
                self.folder = None  # the warning comes once
            return features

    @torch.no_grad()
    def _compute(self, tokens: Tensor, count: int, device: torch.device) -> Tensor:
        with inference_context(self.clip):  # an evaluation in the middle of a training sets its words before it begins
            parts = [self.clip.encode_text(chunk.to(device)).float() for chunk in tokens.split(_PROMPTS_AT_ONCE)]
        prompts = torch.cat(parts).unflatten(0, (count, -1))
        if self.normalize_prompts:
            prompts = normalize(prompts, 2)
        return normalize(prompts.mean(1), 1)

    def _digest(self, tokens: Tensor) -> str:
        """Digest all that the embeddings depend on: the prompts' tokens, their mean, and the text encoder."""
        digest = hashlib.blake2b(tokens.numpy(), digest_size=16)
        if self.normalize_prompts:
            digest.update(b"normalized")
        digest.update(digest_weights(self.clip.model, self.clip.text_weights()).encode())
        return digest.hexdigest()

    def forget(self) -> None:
        """Empty the cache; to be called when the text encoder's weights change."""
        self._cache.clear()
        self._words.clear()
