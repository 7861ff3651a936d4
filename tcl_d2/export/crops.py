"""The modules that are exported: from crops of images to the scores of words, or to labels."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling import PAMR, TCL, DenseCLIP, ZeroShotSegmentor
from ..modeling.functional import map_size, resize_scores
from ..modeling.segmentor.score_rules import ScoreSettings
from ..words.vocabulary import WordSubset


def check_exportable(model: nn.Module) -> None:
    """Check that a model can be exported; ValueError says why not."""
    if not isinstance(model, (TCL, DenseCLIP)):
        raise ValueError(f"a {type(model).__name__} cannot be exported: only TCL and the dense CLIPs can be")
    if model.join_words_first:
        raise ValueError("TEST.ZERO_SHOT.JOIN_WORDS_FIRST needs whole images, but the graph sees crops: set it False")
    if model.refiner is not None and not (type(model.refiner) is PAMR and model.refines("crop")):
        raise ValueError(
            f"{type(model.refiner).__name__} on whole images cannot be exported, for the graph sees crops: give --opts "
            "TEST.ZERO_SHOT.REFINE none, or pamr with TEST.ZERO_SHOT.PAMR.WHOLE_IMAGE False"
        )


class CropScores(nn.Module):
    """Scores of words at the masks' own resolution; whoever runs the graph enlarges and averages them over windows."""

    text: Tensor | Any  # None where texts are an input
    background_words: Tensor | Any  # None where the model does not find the background itself

    def __init__(self, model: ZeroShotSegmentor, text: Tensor | None = None, background_words: Tensor | None = None):
        """Copy the exported parts of a model to the CPU, with the text features of all words [W, D] unless an input.

        Args:
            background_words: where the model finds the background itself: indices of its own words, int64 [b]. Its
                score is then given after those of the words.

        Raises:
            ValueError: see check_exportable; or the model finds the background itself, and texts are an input.
        """
        super().__init__()
        check_exportable(model)
        if model.has_background_map and text is None:
            raise ValueError(
                f"{type(model.head).__name__} finds the background itself, for which the graph needs the classes: give "
                "--classes, or --opts MODEL.DENSE_CLIP.DINOISER.FIND_OBJECTS False for a background by its score"
            )
        self.model = _graph_parts(model)
        self.register_buffer("text", None if text is None else text.detach().cpu().clone(), persistent=text is not None)
        self.register_buffer("background_words", background_words, persistent=False)

    def forward(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """Compute scores fp32 [B, W, h, w] of words in crops [B, 3, H, W], RGB in 0..255, padded as the model pads.

        With `background_words`, [B, W + 1, h, w]: the last ones are the background's.
        """
        words = self.text if text is None else text
        features = self.model.encode((images - self.model.pixel_mean) / self.model.pixel_std)
        features = self.model.prepare(features, words)
        scores = self.model.predict_masks(features, words, slice(None))
        if self.background_words is None:
            return scores
        return torch.cat([scores, self.model.predict_background(features, self.background_words)], 1)


class CropLabels(nn.Module):
    """Labels of crops, for programs that do without windows: RunningArgmax behind the scores of a fixed vocabulary."""

    words: Tensor
    classes: Tensor

    def __init__(self, scores: CropScores, subset: WordSubset, settings: ScoreSettings):
        super().__init__()
        if settings.area_threshold:
            raise ValueError("TEST.ZERO_SHOT.AREA_THRESHOLD needs whole images: for labels of crops, set it 0")
        self.scores = scores
        self.settings = settings
        self.background = subset.background
        self.register_buffer("words", subset.words)
        self.register_buffer("classes", subset.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute labels int64 [B, H, W] of crops [B, 3, H, W], RGB in 0..255."""
        scores = resize_scores(self.scores(images), map_size(images))[:, self.words]
        best, winner = scores.max(1)
        if scale := self.settings.logit_scale:
            best = (scale * best - torch.logsumexp(scale * scores, 1)).exp()
        lowest = self.settings.highest_background if self.background else -math.inf
        return self.classes[winner].masked_fill(best <= lowest, 0)


def _graph_parts(model: ZeroShotSegmentor) -> ZeroShotSegmentor:
    """Copy a model without the parts that no graph needs."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    model.losses = nn.ModuleDict()
    image_tower = nn.Module()
    image_tower.visual = model.clip.visual
    model.clip.model = image_tower
    return model
