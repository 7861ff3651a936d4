"""Several models in one pass over the images: what they compute alike of each image is computed once."""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ..config.loading import dataset_config
from ..modeling import FrozenCLIP, ZeroShotSegmentor

# What must be equal in TEST.ZERO_SHOT for one pass: the images, the windows, and the numbers that CLIP computes
_IMAGES = ("CROP_SIZE", "STRIDE", "PRECISION", "MAX_IMAGES", "IMS_PER_BATCH", "SKIP_BROKEN")


class Turn(NamedTuple):
    """What a model does in a pass.

    Attributes:
        file_names: the images that it has left to do.
        request: goes into the input of each image.
    """

    model: nn.Module
    evaluator: DatasetEvaluator
    file_names: Collection[str]
    request: Mapping[str, object]

    def choose(self, batched_inputs: Sequence[dict]) -> list[dict]:
        """Return those of the images that the model has left to do."""
        return [row for row in batched_inputs if row["file_name"] in self.file_names]


class ModelsInTurn(nn.Module):
    """Models that segment the same images, one after the other."""

    def __init__(self, turns: Sequence[Turn]):
        super().__init__()
        self.models = nn.ModuleList(turn.model for turn in turns)
        self._turns = turns

    def forward(self, batched_inputs: list[dict]) -> Iterator[list[dict]]:
        """Yield the outputs of each model, which begins when they are asked for: one model's are held at once."""
        clips = {turn.model.clip for turn in self._turns if isinstance(turn.model.clip, FrozenCLIP)}
        with ExitStack() as stack:
            for clip in clips:
                stack.enter_context(clip.results.keep())
            for turn in self._turns:
                inputs = [{**row, **turn.request} for row in turn.choose(batched_inputs)]
                yield turn.model(inputs) if inputs else []


class EvaluatorsInTurn(DatasetEvaluator):
    """Gives each model's evaluator its images and outputs."""

    def __init__(self, turns: Sequence[Turn]):
        self._turns = turns

    def reset(self) -> None:
        for turn in self._turns:
            turn.evaluator.reset()

    def process(self, inputs: list[dict], outputs: Iterator[list[dict]]) -> None:
        for model_outputs, turn in zip(outputs, self._turns):
            turn.evaluator.process(turn.choose(inputs), model_outputs)

    def evaluate(self) -> list[dict | None]:
        """Return the results of each model's evaluator."""
        return [turn.evaluator.evaluate() for turn in self._turns]


def group_configs(cfgs: Mapping[str, CfgNode]) -> list[list[str]]:
    """Group configurations, by name, that may be evaluated in one pass: on one CLIP, windows and images."""
    groups = {}
    for name, cfg in cfgs.items():
        groups.setdefault(_shared_settings(cfg) or name, []).append(name)
    return list(groups.values())


def _shared_settings(cfg: CfgNode) -> Hashable:
    """Return all that must be equal for one pass; None for a model that stands on another model than CLIP."""
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    build_encoder = getattr(architecture, "build_encoder", None)
    if getattr(build_encoder, "__func__", None) is not ZeroShotSegmentor.build_encoder.__func__:
        return None

    model = [cfg.MODEL[key] for key in ("DEVICE", "PIXEL_MEAN", "PIXEL_STD")]
    facts = [model, cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED, cfg.IMPORTS, cfg.SEED, cfg.DATALOADER.NUM_WORKERS]
    for name in cfg.DATASETS.TEST:
        own = dataset_config(cfg, name)
        facts.append([name, str(own.INPUT), [own.TEST.ZERO_SHOT[key] for key in _IMAGES]])
    return repr(facts)
