"""Published figures: mIoU of methods on benchmarks, with the protocol and the source of each row."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from detectron2.config import CfgNode

from ..assets import FOLDER as ASSETS


class PublishedRow(NamedTuple):
    """A row of a published table.

    Attributes:
        miou: in percent, by dataset.
        source: the table or file that has the figures.
        protocol: "unified" (the TCL paper's), "own" (the method's), or another's name.
        backbone: open_clip's name of the CLIP; for GroupViT the hub's name of its model; None for a method without, or
            if it is not known.
        pamr: whether masks are refined by PAMR; None if that is not known.
    """

    method: str
    miou: Mapping[str, float]
    source: str
    protocol: str
    backbone: str | None = None
    pamr: bool | None = False
    note: str = ""

    def describe(self) -> str:
        """Return a line of text with all but the figures."""
        refinement = {True: "with PAMR", False: "no PAMR", None: None}[self.pamr]
        parts = filter(None, [self.method, self.backbone, refinement])
        protocol = f"protocol {self.protocol}" if self.protocol == "not said" else f"{self.protocol} protocol"
        note = f" ({self.note})" if self.note else ""
        return f"{', '.join([*parts, protocol])}: {self.source}{note}"


# Append rows of yours, such as those of benchmarks of your own.
PUBLISHED = [PublishedRow(**row) for row in json.loads((ASSETS / "published.json").read_text(encoding="utf-8"))]

_LPOSS = {
    "lposs": "LPOSS",
    "lposs_plus": "LPOSS+",
    "lposs_pixels": "",
}  # values of TEST.ZERO_SHOT.REFINE, and their methods


def find_published(method: str, backbone: str, pamr: bool, protocol: str) -> list[PublishedRow]:
    """Find the rows of a method, first by its paper; backbone, PAMR and protocol narrow them if any are left.

    A dense head's name stands for its method: clip_dinoiser for CLIP-DINOiser.
    """
    rows = [row for row in PUBLISHED if _key(row.method) == _key(method)]
    for attribute, value in (("backbone", backbone), ("pamr", pamr), ("protocol", protocol)):
        rows = [row for row in rows if getattr(row, attribute) == value] or rows
    return rows


def _key(method: str) -> str:
    return method.lower().replace("-", "_").replace(".", "")


def published_for(cfg: CfgNode) -> list[PublishedRow]:
    """Find the published rows to compare a configuration's results with."""
    method = cfg.MODEL.META_ARCHITECTURE
    if method == "DenseCLIP":
        method = cfg.MODEL.DENSE_CLIP.HEAD
    refine = cfg.TEST.ZERO_SHOT.REFINE
    if refine in _LPOSS:
        method = _LPOSS[refine] if method.lower() == "maskclip" else ""
    backbone = cfg.MODEL.CLIP.NAME.removesuffix("-quickgelu")
    if method == "GroupViT":
        backbone = cfg.MODEL.GROUPVIT.WEIGHTS
    is_unified = cfg.MODEL.DENSE_CLIP.SCORES != "cosine" and not cfg.TEST.ZERO_SHOT.WORDS
    return find_published(method, backbone, refine == "pamr", "unified" if is_unified else "own")
