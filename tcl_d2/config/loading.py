"""Configurations from files, options, and the settings of single datasets."""

import ast
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import IO, Any

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from fvcore.common.config import BASE_KEY

from ..assets import get_config_file, list_configs
from ..utils.downloads import PathManager
from ..utils.errors import expect, named
from ..utils.imports import import_code
from .keys import add_tcl_config

# Keys that TEST.ZERO_SHOT.BY_DATASET may change, and the exceptions, with which the model is built once
_KEYS_BY_DATASET = ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "TEST.DETECTIONS_PER_IMAGE", "TEST.ZERO_SHOT.")
_KEYS_OF_ALL_DATASETS = tuple(
    f"TEST.ZERO_SHOT.{key}"
    for key in ("BY_DATASET", "KP_WEIGHT", "MEASURES", "PRECISION", "SAVE_PREDICTIONS", "SIMILARITY", "TEXT_CACHE")
)


def load_config(path: str | Path | None = None, options: Sequence[object] = (), imports: Sequence[str] = ()) -> CN:
    """Return the defaults, under the values of a file, under KEY, VALUE pairs.

    The code that IMPORTS names is imported first: it may add keys (see add_key).

    The plugin's values for Detectron2's own keys, such as the order of the channels, are among the defaults.

    Args:
        path: a YAML file, an address, or a config that comes with the project ("shapes/tcl.yaml"). IMPORTS in a file
            from an address is refused.
        options: KEY, VALUE, KEY, VALUE ...
        imports: what the user asks to import beside; it comes to IMPORTS, so that the configuration works without.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError, ValueError: keys or values are unknown or do not fit, or the code cannot be imported.
    """
    values = {} if path is None else _read_yaml(path)
    if path is not None and values.get("IMPORTS") and not _is_local(path):
        raise ValueError(
            f"Config file '{path}' was downloaded, and asks to run code, IMPORTS {values['IMPORTS']}: read that "
            "code, then give a copy of the file"
        )

    # Import the user's code
    code = CN({"IMPORTS": []})
    _merge(code, {key: value for key, value in values.items() if key == "IMPORTS"})
    merge_options(code, [part for pair in zip(options[::2], options[1::2]) if pair[0] == "IMPORTS" for part in pair])
    code.IMPORTS = [*imports, *code.IMPORTS]
    for name in code.IMPORTS:
        import_code(str(name))

    # Merge the file and the options into the defaults
    cfg = get_cfg()
    add_tcl_config(cfg)
    _merge(cfg, _read_yaml(get_config_file("defaults.yaml")))
    _merge(cfg, values)
    merge_options(cfg, options)
    cfg.IMPORTS = code.IMPORTS
    return cfg


def merge_options(cfg: CN, options: Sequence[object]) -> None:
    """Merge KEY, VALUE, KEY, VALUE ... into a configuration in place; an int is taken where a float is expected.

    Raises:
        KeyError, ValueError: an unknown key, a value of another type, or a key without a value.
    """
    # Check that they are pairs
    flags = [option for option in options if str(option).startswith("--")]
    if flags:
        raise ValueError(f"'{flags[0]}' comes after a KEY VALUE pair: give the options of the command before them")
    if len(options) % 2:
        raise ValueError(
            f"expected pairs of KEY VALUE, but '{options[-1]}' has no value: {' '.join(map(str, options))}"
        )

    # Merge each as the nested dict that a file would hold: "A.B" 3 as {"A": {"B": "3"}}
    for key, value in zip(options[::2], options[1::2]):
        nested: Any = str(value)
        for part in reversed(str(key).split(".")):
            nested = {part: nested}
        _merge(cfg, nested)


def dataset_config(cfg: CN, dataset_name: str) -> CN:
    """Return a copy of a configuration with TEST.ZERO_SHOT.BY_DATASET's values for a dataset.

    Raises:
        ValueError: they are no list of pairs of known keys and fitting values; names the dataset.
    """
    key = f"TEST.ZERO_SHOT.BY_DATASET.{dataset_name}"
    options = cfg.TEST.ZERO_SHOT.BY_DATASET.get(dataset_name, [])
    expected = "a list of KEY, VALUE pairs, such as [INPUT.MIN_SIZE_TEST, 336]"
    expect(isinstance(options, (list, tuple)), key, repr(options), expected)
    fixed = [key for key in options[::2] if not str(key).startswith(_KEYS_BY_DATASET) or key in _KEYS_OF_ALL_DATASETS]
    if fixed:
        raise ValueError(
            f"{key}: {fixed[0]} is the same for all datasets; expected keys of INPUT.MIN_SIZE_TEST, "
            "INPUT.MAX_SIZE_TEST, TEST.DETECTIONS_PER_IMAGE and TEST.ZERO_SHOT that are not of the model itself"
        )

    is_frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    with named(key):
        merge_options(cfg, options)
    if is_frozen:
        cfg.freeze()
    return cfg


def dense_head_config(cfg: CN, head: str, options: Sequence[object] = ()) -> CN:
    """Return a dense CLIP's configuration with the CLIP, the sizes and the prompts of another model's."""
    cfg = cfg.clone()
    cfg.defrost()
    _merge(cfg, _read_yaml(get_config_file("dense_clip/cosine.yaml")))
    merge_options(cfg, [*options, "MODEL.DENSE_CLIP.HEAD", head])
    return cfg


def _is_local(path: str | Path) -> bool:
    return "://" not in str(path)


def find_config_file(path: str | Path) -> str:
    """Return the local path of a config; FileNotFoundError if there is none."""
    is_shipped = _is_local(path) and not os.path.isfile(path)
    return get_config_file(str(path)) if is_shipped else PathManager.get_local_path(str(path))


def _read_yaml(path: str | Path) -> dict:
    local_path = find_config_file(path)
    if local_path.endswith(".py"):
        raise ValueError(
            f"Config file '{path}' is Python, such as a LazyConfig, which tcl_d2.model_zoo.get_config reads; expected "
            "a YAML file here"
        )

    try:
        values = _ConfigFile.load_yaml_with_base(local_path)
    except TypeError:
        raise ValueError(f"Config file '{path}', or its _BASE_, is empty; expected keys and values in YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Config file '{path}' could not be read: {error}") from None

    if not isinstance(values, dict):
        raise ValueError(f"Config file '{path}' holds a {type(values).__name__}; expected keys and values in YAML")
    return values


class _ConfigFile(CN):
    """A config file whose _BASE_ may name a config of the project, unless such a file lies beside it."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        with super()._open_cfg(filename) as file:
            values = yaml.safe_load(file)
        if isinstance(values, dict) and BASE_KEY in values:
            bases = values[BASE_KEY]
            bases = bases if isinstance(bases, list) else [bases]
            values[BASE_KEY] = [cls._find_base(str(base), os.path.dirname(filename)) for base in bases]
        return StringIO(yaml.safe_dump(values))

    @staticmethod
    def _find_base(name: str, folder: str) -> str:
        is_shipped = name in list_configs() and not os.path.isfile(os.path.join(folder, name))
        return get_config_file(name) if is_shipped else name


def _merge(cfg: CN, values: dict) -> None:
    try:
        cfg.merge_from_other_cfg(CN(_fit_types(values, cfg)))
    except KeyError as error:
        raise KeyError(f"{error.args[0]}{_hint(str(error.args[0]), cfg)}") from None


def _hint(problem: str, cfg: CN) -> str:
    """Return what to do about a key that does not exist, the last word of yacs's message."""
    nearest = get_close_matches(problem.rpartition(" ")[2], _names(cfg), n=1)
    if nearest:
        return f"; did you mean {nearest[0]}?"
    return "; a key of your own code is added by tcl_d2.config.add_key, in a file that --import or IMPORTS names"


def _names(cfg: CN, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield from _names(value, f"{prefix}{name}.") if isinstance(value, CN) else [f"{prefix}{name}"]


def _decode(value: object) -> object:
    """Return the value that a text of the command line stands for, as yacs reads it."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def _fit_types(values: dict, defaults: dict) -> dict:
    """Return values of the defaults' types where yacs would refuse them: a float for an int, a list for one text."""
    converted = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(default, dict):
            value = _decode(value)  # "{'a': 1}" of a command line
        if isinstance(value, dict) and isinstance(default, dict):
            value = _fit_types(value, default)
        elif isinstance(default, float) and type(number := _decode(value)) is int:
            value = float(number)
        elif isinstance(default, (list, tuple)) and value and isinstance(_decode(value), str):
            value = type(default)([value])
        converted[key] = value
    return converted
