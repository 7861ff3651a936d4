"""What is written beside an exported graph, taken from a model and its configuration."""

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from torch import Tensor

from ..deploy.card import ModelCard, VocabularyCard
from ..modeling import ZeroShotSegmentor
from ..modeling.vocabulary import ClassWords, WordSubset, join_vocabularies
from ..utils.tensors import digest_weights
from ..utils.vocabulary import read_vocabulary


class EmbeddedVocabulary(NamedTuple):
    """A vocabulary as it is exported.

    Attributes:
        text: text features of all words [W, D].
        subset: the words of each class.
        card: what is written of it.
    """

    text: Tensor
    subset: WordSubset
    card: VocabularyCard


def embed_vocabulary(
    model: ZeroShotSegmentor, classes: Sequence[ClassWords], background: bool | Sequence[str] = False
) -> EmbeddedVocabulary:
    """Embed the words of classes as a model does; errors as ZeroShotSegmentor.set_vocabulary.

    Args:
        model: the model.
        classes: see set_vocabulary; entries such as "not: shadow" are negative words.
        background: see set_vocabulary.
    """
    classes, background, negative = read_vocabulary(classes, background)
    words, (subset,) = join_vocabularies([model.make_vocabulary(classes, background, negative)])
    text = model.embed_vocabulary(words, model.templates)
    card = VocabularyCard(classes, background, subset.words.tolist(), subset.classes.tolist(), negative)
    return EmbeddedVocabulary(text, subset, card)


def make_card(
    model: ZeroShotSegmentor, cfg: CfgNode, output: str = "scores", vocabulary: VocabularyCard | None = None
) -> ModelCard:
    """Make the card of a model.

    Args:
        model: the model.
        cfg: its configuration.
        output: of the graph, "scores" or "labels".
        vocabulary: in the graph; None where text embeddings are an input.
    """
    patch_size = model.clip.patch_size
    pad_to = model.pad_to or patch_size  # None: to whole patches

    return ModelCard(
        # Model and words
        method=cfg.MODEL.META_ARCHITECTURE,
        output=output,
        text_encoder=digest_text_encoder(model),
        embed_dim=model.clip.embed_dim,
        # Images and windows
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        crop_size=model.crop_size,
        stride=model.stride,
        windows_at_once=8,
        patch_size=patch_size,
        pad_to=pad_to,
        pixel_mean=list(cfg.MODEL.PIXEL_MEAN),
        # Scores
        background_score=model.background_score,
        logit_scale=model.logit_scale,
        area_threshold=model.area_threshold,
        vocabulary=vocabulary,
    )


def digest_text_encoder(model: ZeroShotSegmentor) -> str:
    """Return a digest of all weights that text features depend on."""
    return digest_weights(model.clip.model, model.clip.text_weights())
