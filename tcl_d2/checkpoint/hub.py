"""A model as a folder, on this disk or on the Hugging Face hub: its configuration, its weights and its model card."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from detectron2.config import CfgNode
from huggingface_hub import ModelCard, ModelCardData, snapshot_download
from torch import Tensor

from ..assets import PREFIX
from ..config import load_config
from ..modeling.encoders.clip_loading import QUICK_SUFFIX, has_quick_gelu, is_file
from ..utils.errors import named
from ..utils.files import digest_file, replacing
from ..utils.tensors import save_tensors
from .card import describe_encoder, is_groupvit
from .model_config import WEIGHTS, check_names, model_config, model_part, read_yaml

CONFIG = "config.yaml"
CARD = "README.md"
_DIGEST = "weights_sha256"  # on the card; the hub shows the same number for its file
_HUB_SECONDS = 5.0  # for each of the hub client's tries to reach the hub
_CARD_TEXT = """
# {title}
A `{model}` of `tcl_d2`, which is [TCL](https://arxiv.org/abs/2212.00785) as a Detectron2 plugin. It segments images
into any words.

```python
from tcl_d2.predictor import TCLPredictor

predictor = TCLPredictor.from_pretrained("OWNER/{title}")  # or the path of this folder
segmentation = predictor("photo.jpg", ["red apple", "wooden table"], background=True)
```

| | |
|---|---|
{rows}

`model.safetensors` holds {count} weights, {clip}. `config.yaml` is the model's configuration. `weights_sha256` in the
head of this file is the SHA-256 of `model.safetensors`; `from_pretrained` checks it. Add the `license` of your weights
to the head of this file.
"""


# --------------------------------------------------------------------------------------------- writing


def write_folder(folder: Path, state: Mapping[str, Tensor], cfg: CfgNode, card: Mapping[str, str]) -> None:
    """Write a model's folder, which `TCLPredictor.from_pretrained` takes, and which can be uploaded to the hub.

    Args:
        state: our state dict, with or without the frozen CLIP.
        cfg: the model's portable_config.
        card: the checkpoint's, see make_card; may be empty.

    Raises:
        FileExistsError: the folder is not empty.
    """
    check_new_folder(folder)

    # The weights, then their configuration and card
    tensors = {name: value.contiguous() for name, value in state.items()}
    config = model_part(cfg).dump()
    save_tensors(folder / WEIGHTS, tensors, {"card": json.dumps({**card, "configuration": config})})
    with replacing(folder / CONFIG) as unfinished:
        unfinished.write_text(config, encoding="utf-8")
    with replacing(folder / CARD) as unfinished:
        model_card = _make_model_card(folder, state, cfg, card)
        unfinished.write_text(str(model_card), encoding="utf-8")


def check_new_folder(folder: Path) -> None:
    """Raise FileExistsError unless a folder is missing, or empty but for hidden files: all in it is published."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"'{folder}' is a file: give a folder")
    existing = sorted(path.name for path in folder.glob("[!.]*"))
    if existing:
        names = ", ".join(existing[:3])
        raise FileExistsError(f"'{folder}' has files already ({names}): give another folder, as all in it is published")


def portable_config(cfg: CfgNode, state: Mapping[str, Tensor]) -> CfgNode:
    """Return the model's part of a configuration over the defaults, without names that only this disk has.

    Raises:
        ValueError: a model, or weights that `state` lacks, are a local file; or a GroupViT has no weights in `state`.
    """
    if is_groupvit(cfg) and not _has_clip(state):
        raise ValueError("a GroupViT is nothing without its encoders: give --hub without --strip")

    # Code of a model's own (IMPORTS) is not among it: who uses the model imports the code
    portable = load_config()
    portable.merge_from_other_cfg(model_part(cfg))
    if is_groupvit(cfg):  # of the CLIP it has the tokenizer alone
        portable.MODEL.GROUPVIT.WEIGHTS = ""
        portable.MODEL.CLIP.PRETRAINED = ""
    if any(name.startswith(("head.", "kp_head.")) for name in state):  # the weights bring the dense head
        portable.MODEL.DENSE_CLIP.DINOISER.WEIGHTS = ""
    if any(name.startswith("projection.") for name in state):
        portable.MODEL.TALK2DINO.PROJECTION = ""
    clip = portable.MODEL.CLIP
    clip.NAME, clip.PRETRAINED = _portable_clip(clip.NAME, clip.PRETRAINED, _has_clip(state))
    check_names(portable, load_config(), folder=None)
    portable.MODEL.WEIGHTS = WEIGHTS
    return portable


def _has_clip(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("clip.") for name in state)


def _portable_clip(name: str, pretrained: str, has_clip: bool) -> tuple[str, str]:
    """Return MODEL.CLIP.NAME and PRETRAINED with which the same CLIP is built elsewhere."""
    if name.endswith(".json") and not name.startswith(PREFIX):
        raise ValueError(
            f"MODEL.CLIP.NAME is '{name}', a file that others do not have: a folder for the hub needs a CLIP that "
            "open_clip knows by name"
        )

    # The weights bring the CLIP; only its activation still goes by PRETRAINED, and by name it is in the model's own
    if has_clip:
        needs_suffix = has_quick_gelu(name, pretrained) and not has_quick_gelu(name, "")
        full_name = name + QUICK_SUFFIX if needs_suffix else name
        if full_name == name or full_name in open_clip.list_models():
            return full_name, ""

    if is_file(pretrained) and not pretrained.startswith(PREFIX):
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED is '{pretrained}', a file that others do not have, and the checkpoint goes without "
            "the frozen CLIP: give the tag of these weights, as in --opts MODEL.CLIP.PRETRAINED openai, or convert a "
            "checkpoint with the CLIP"
        )
    return name, pretrained


def _make_model_card(folder: Path, state: Mapping[str, Tensor], cfg: CfgNode, card: Mapping[str, str]) -> ModelCard:
    """Describe a model as the hub's pages do."""
    digest: dict[str, Any] = {_DIGEST: digest_file(folder / WEIGHTS)}
    head = ModelCardData(
        library_name="tcl_d2",
        pipeline_tag="image-segmentation",
        tags=["detectron2", "zero-shot", "semantic-segmentation", cfg.MODEL.META_ARCHITECTURE.lower()],
        **digest,
    )

    rows = describe_encoder(cfg, "with these weights")
    rows |= {key: card[key] for key in ("trained on", "versions") if card.get(key)}
    has_clip = "the frozen CLIP's among them" if _has_clip(state) else "without the frozen CLIP's"
    text = _CARD_TEXT.format(
        title=folder.resolve().name,
        model=cfg.MODEL.META_ARCHITECTURE,
        rows="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
        count=len(state),
        clip="the encoders' alone" if is_groupvit(cfg) else has_clip,
    )
    return ModelCard(f"---\n{head.to_yaml()}\n---\n{text}")


# --------------------------------------------------------------------------------------------- reading


def load_folder_config(name: str | Path) -> CfgNode:
    """Return the configuration of a model's folder, with MODEL.WEIGHTS at its weights; it imports no code.

    Args:
        name: a folder, or OWNER/NAME on the hub; the hub's cache serves later calls.

    Raises:
        OSError, ValueError: there is no such folder, it lacks a file, or its files cannot be used or do not match.
    """
    folder = Path(name) if Path(name).is_dir() else _download(str(name))
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"'{name}' is no model for from_pretrained: it has no {' and no '.join(missing)}. Expected a folder as "
            "tcl-d2 convert --hub writes it"
        )
    _check_digest(folder)

    # Read the configuration
    with named(f"'{folder / CONFIG}' cannot be used as a configuration of tcl_d2"):
        cfg = model_config(read_yaml((folder / CONFIG).read_text(encoding="utf-8")), folder)
    cfg.MODEL.WEIGHTS = str(folder / WEIGHTS)
    return cfg


def is_hub_name(name: str) -> bool:
    """Return whether a text may be OWNER/NAME on the hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, CARD], etag_timeout=_HUB_SECONDS))
    except Exception as error:  # the hub client raises many types
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"there is no folder '{name}', and the hub's model of that name is not in the local cache and could not be "
            f"downloaded ({type(error).__name__}: {reason}). Look at the name, log in where it is private (HF_TOKEN), "
            "or run once where the network reaches the hub and keep its cache (HF_HOME)"
        ) from None


def _check_digest(folder: Path) -> None:
    """Raise an error if a folder's card belongs to other weights, or cannot be read; a missing card is fine.

    A card of another program, without a checksum, is no error.
    """
    card = folder / CARD
    if not os.path.lexists(card):
        return
    if not card.is_file():
        raise ValueError(f"'{card}' is no file; expected the model's card, whose checksum of the weights is checked")
    with named(f"'{card}' has a damaged head"):
        text = card.read_text(encoding="utf-8")
        head = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", text.lstrip("\ufeff"), re.DOTALL)
        values = read_yaml(head[1]) if head and head[1].strip() else {}
    if _DIGEST not in text:  # outside of its head our cards name it too
        return

    actual = digest_file(folder / WEIGHTS)
    expected = str(values.get(_DIGEST)).lower().removeprefix("sha256:")
    if expected != actual:
        raise ValueError(
            f"'{folder / WEIGHTS}' is not the file that '{card}' tells of: its SHA-256 is {actual}, but {_DIGEST} in "
            f"the card's head is {expected}. One of them is damaged, or another model's: get both again"
        )
