"""A configuration that comes with a model: it says what the model is, and reads or writes nothing but its own files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import yaml
from detectron2.config import CfgNode

from ..assets import FOLDER, PREFIX
from ..config import load_config

WEIGHTS = "model.safetensors"  # in the model's folder

# The beginnings of keys that it may set; and of keys among them that are its user's, for they name places
_KEYS = (
    *("MODEL.META_ARCHITECTURE", "MODEL.DEVICE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.CLIP.", "MODEL.TCL."),
    *("MODEL.DENSE_CLIP.", "MODEL.GROUPVIT.", "MODEL.RECO.", "MODEL.TIPS.", "MODEL.DINO_TXT.", "MODEL.TALK2DINO."),
    *("INPUT.", "TEST.DETECTIONS_PER_IMAGE", "TEST.ZERO_SHOT."),
)
_PLACES = (
    "MODEL.DENSE_CLIP.DINOISER.OBJECT_MASKS",
    *("MODEL.GROUPVIT.MULTI_LABEL.WORDS", "MODEL.RECO.INDEX", "MODEL.RECO.CACHE", "MODEL.TALK2DINO.FEATURES"),
    "TEST.ZERO_SHOT.BY_DATASET",
    *(
        "TEST.ZERO_SHOT.REGIONS.FOLDER",
        "TEST.ZERO_SHOT.SIMILARITY",
        "TEST.ZERO_SHOT.TEXT_CACHE",
        "TEST.ZERO_SHOT.WORDS",
    ),
)
# Its weights may be a file in the model's folder, or have one of these names
_WEIGHTS = {
    "MODEL.CLIP.PRETRAINED": {tag for _, tag in open_clip.list_pretrained()},
    "MODEL.DENSE_CLIP.PROXY.PRETRAINED": {"timm"},
    "MODEL.DENSE_CLIP.DINOISER.TEACHER.PRETRAINED": {"timm"},
    "MODEL.DENSE_CLIP.DINOISER.WEIGHTS": set(),
    "MODEL.GROUPVIT.WEIGHTS": set(),
    "MODEL.RECO.ENCODER.PRETRAINED": {"timm"},
    "MODEL.TIPS.PRETRAINED": {"timm"},
    "MODEL.DINO_TXT.PRETRAINED": {"timm"},
    "MODEL.TIPS.TEXT": set(),
    "MODEL.TIPS.TOKENIZER": set(),
    "MODEL.TALK2DINO.PRETRAINED": {"timm"},
    "MODEL.TALK2DINO.PROJECTION": set(),
    "TEST.ZERO_SHOT.LPOSS.PRETRAINED": {"timm"},
}
# Detectron2's sections of training: a configuration that has them all is a training's whole one
_TRAINING = {"DATALOADER", "DATASETS", "SOLVER"}
_MAX_ALIASES = 10  # Detectron2's defaults have two; many can unfold a short text to any size


def read_yaml(text: str) -> dict[str, Any]:
    """Read the keys and values of a text that somebody else wrote; ValueError says why it cannot be."""
    try:
        values = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"it is no YAML that can be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}; expected keys and values in YAML")
    return values


class _Loader(yaml.SafeLoader):
    num_aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.num_aliases += self.check_event(yaml.AliasEvent)
        if self.num_aliases > _MAX_ALIASES:
            raise ValueError(f"it has more than {_MAX_ALIASES} aliases")
        return super().compose_node(parent, index)


def model_config(values: Mapping[str, Any], folder: Path) -> CfgNode:
    """Return the defaults under the values of a configuration that comes with a model.

    Args:
        values: of a model's keys alone; or a training's whole configuration, from which only these are taken.
        folder: the model's. Its files that `values` name become absolute paths.

    Raises:
        KeyError, ValueError: it sets another key, a value of the wrong type, or names a file outside of the folder.
    """
    defaults = load_config(None, ["MODEL.WEIGHTS", WEIGHTS])
    cfg = defaults.clone()
    try:
        part, others = _split(values, defaults)
        if others and not values.keys() >= _TRAINING:
            raise ValueError(
                f"it sets {', '.join(others)}: a configuration that comes with a model may set the keys of "
                f"{', '.join(key.rstrip('.') for key in _KEYS)}, but for those of folders and of other files. Leave "
                "them out, and set them yourself: as options (KEY VALUE), or in a config file of yours"
            )

        cfg.merge_from_other_cfg(CfgNode(part))
        check_names(cfg, defaults, folder)
        return cfg
    except (TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(str(error)) from None


def model_part(cfg: CfgNode) -> CfgNode:
    """Return the keys of a configuration that may come with a model."""
    part, _ = _split(cfg, cfg)
    return CfgNode(part)


def _split(values: Mapping, defaults: Mapping, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return the values of a model's keys, and the names of other keys whose values are not the defaults."""
    part, others = {}, []
    for name, value in values.items():
        key, default = f"{prefix}{name}", defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict) and key not in _PLACES:
            section, other_keys = _split(value, default, f"{key}.")
            others += other_keys
            if section:
                part[name] = section
        elif name not in defaults or (key.startswith(_KEYS) and key not in _PLACES):
            part[name] = value  # an unknown key is refused when it is merged
        elif value not in (default, json.loads(json.dumps(default))):  # tuples are lists in YAML
            others.append(key)
    return part, others


def check_names(cfg: CfgNode, defaults: CfgNode, folder: Path | None, prefix: str = "") -> None:
    """Check that texts name nothing but released models and weights, and files in a folder; these become absolute.

    Texts of the defaults are not checked. A ValueError names the key and its value.
    """
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            check_names(value, defaults[name], folder, f"{prefix}{name}.")
        elif isinstance(value, str) and value not in ("", defaults[name]):
            cfg[name] = _check_name(f"{prefix}{name}", value, folder)


def _check_name(key: str, value: str, folder: Path | None) -> str:
    """Return a text, or the absolute path of the file in the folder that it names; errors as check_names."""
    # A name that stands for something
    if key == "MODEL.CLIP.NAME":
        is_name = value in open_clip.list_models()
    else:
        is_name = value in _WEIGHTS[key] if key in _WEIGHTS else re.fullmatch(r"(cuda:)?[\w.+-]+", value)
    if is_name:
        return value

    # A file of the project's, or in the folder
    is_asset, has_files = value.startswith(PREFIX), key in _WEIGHTS or key == "MODEL.CLIP.NAME"
    if is_asset and has_files and _lies_in(FOLDER, value.removeprefix(PREFIX)):
        return value
    if key in _WEIGHTS and folder is not None and _lies_in(folder, value):
        return str((folder / value).resolve())
    raise ValueError(
        f"{key} is '{value}', which is neither a released name nor a file in the model's folder: a model brings what "
        "it needs, or names what others have too"
    )


def _lies_in(folder: Path, name: str) -> bool:
    path = (folder / name).resolve()
    return path.is_file() and path.is_relative_to(folder.resolve())
