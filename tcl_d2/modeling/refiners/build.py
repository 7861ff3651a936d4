"""The refiner that a configuration asks for."""

from detectron2.config import CfgNode

from .base import NO_REFINER, REFINER_REGISTRY, Refiner, RefinerChain
from .regions import RegionVote


def build_refiner(cfg: CfgNode) -> Refiner | None:
    """Build the refiner that TEST.ZERO_SHOT.REFINE names, and the votes of regions if they are wanted; or None.

    Raises:
        OSError: there is no folder of region files.
        ValueError: no such refiner, or a setting out of its range; names the config key.
        RuntimeError: it needs a package that is not installed.
    """
    test = cfg.TEST.ZERO_SHOT
    if test.REFINE not in refiner_names():
        raise ValueError(f"TEST.ZERO_SHOT.REFINE is '{test.REFINE}'; expected one of {', '.join(refiner_names())}.")
    refiners = [] if test.REFINE == NO_REFINER else [REFINER_REGISTRY.get(test.REFINE)(cfg)]
    if test.REGIONS.FOLDER:
        refiners.append(RegionVote(test.REGIONS.FOLDER, test.REGIONS.RULE))
    return RefinerChain(*refiners) if len(refiners) > 1 else next(iter(refiners), None)


def refiner_names() -> list[str]:
    """List the values of TEST.ZERO_SHOT.REFINE."""
    return [NO_REFINER, *(name for name, _ in REFINER_REGISTRY)]
