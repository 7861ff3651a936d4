"""Evaluators by the `evaluator_type` in a dataset's metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from fvcore.common.registry import Registry

BuildEvaluator = Callable[[CfgNode, str, str | Path | None], DatasetEvaluator]
_Build = TypeVar("_Build", bound=BuildEvaluator)


class EvaluatorRegistry(Registry):
    """A registry of functions (cfg, dataset_name, output_folder) that return an evaluator."""

    def register(self, *evaluator_types: str) -> Callable[[_Build], _Build]:
        """Return a decorator that registers an evaluator's class or a function for types of datasets."""

        def add(build: _Build) -> _Build:
            for evaluator_type in evaluator_types:
                self._do_register(evaluator_type, build)
            return build

        return add


EVALUATOR_REGISTRY = EvaluatorRegistry("EVALUATOR")


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None) -> DatasetEvaluator:
    """Build the evaluator of a registered dataset, whose files go to `output_folder` or OUTPUT_DIR/inference/<dataset>.

    Raises:
        ValueError: there is no evaluator for this type of dataset; lists the types.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", "")
    if evaluator_type not in EVALUATOR_REGISTRY:
        known = ", ".join(sorted(name for name, _ in EVALUATOR_REGISTRY))
        raise ValueError(
            f"Dataset '{dataset_name}' has the evaluator_type '{evaluator_type}'; expected one of {known}. Add one to "
            "EVALUATOR_REGISTRY, or override build_evaluator of the Trainer."
        )
    return EVALUATOR_REGISTRY.get(evaluator_type)(cfg, dataset_name, output_folder)
