"""Cards of exported graphs, made from a model and its configuration."""

from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..deploy.card import ModelCard, VocabularyCard
from ..modeling import ZeroShotSegmentor
from ..utils.errors import expect
from ..utils.tensors import digest_weights
from ..words.vocabulary import WordSubset, join_vocabularies
from ..words.words import BackgroundLike, ClassesLike, Words


class EmbeddedVocabulary(NamedTuple):
    """A vocabulary as it is exported.

    Attributes:
        text: features of its words, [W, D].
        subset: the class of each word; where the model finds the background itself, the graph's last score is another
            word of it.
        background_words: indices of the background's own words, int64 [b], where the model finds it itself.
    """

    text: Tensor
    subset: WordSubset
    card: VocabularyCard
    background_words: Tensor | None = None


def embed_vocabulary(
    model: ZeroShotSegmentor, classes: ClassesLike, background: BackgroundLike = False
) -> EmbeddedVocabulary:
    """Embed the words of classes, given as to a predictor, as a model does."""
    words = Words.read(classes, background)
    texts, (subset,) = join_vocabularies([model.make_vocabulary(words)])
    text, (subset,) = model.word_groups(model.embed_vocabulary(texts, model.templates), [subset])[0]

    background_words = None
    if model.has_background_map and subset.background:
        background_words = subset.words[subset.classes == 0]
        own = torch.tensor([len(text)])
        subset = subset._replace(words=torch.cat([subset.words, own]), classes=torch.cat([subset.classes, 0 * own]))

    card = VocabularyCard(**vars(words), word_indices=subset.words.tolist(), class_indices=subset.classes.tolist())
    return EmbeddedVocabulary(text, subset, card, background_words)


def make_card(
    model: ZeroShotSegmentor, cfg: CfgNode, output: str = "scores", vocabulary: VocabularyCard | None = None
) -> ModelCard:
    """Make the card of a model whose graph gives "scores" or "labels", with a vocabulary if that is in the graph."""
    patch_size = model.clip.patch_size
    resize = cfg.INPUT.RESIZE_TEST
    expect(resize == "opencv_bilinear", "INPUT.RESIZE_TEST", resize, "opencv_bilinear, as exported models resize")
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
        pad_to=model.pad_to or patch_size,
        pixel_mean=[0.0, 0.0, 0.0] if model.squeezes_padding else list(cfg.MODEL.PIXEL_MEAN),
        squeezes_padding=model.squeezes_padding,
        # Scores
        background_score=0.0 if model.has_background_map else model.background_score,
        logit_scale=model.logit_scale,
        area_threshold=model.area_threshold,
        vocabulary=vocabulary,
    )


def digest_text_encoder(model: ZeroShotSegmentor) -> str:
    """Return a digest of all weights that text features depend on."""
    return digest_weights(model.clip.model, model.clip.text_weights())
