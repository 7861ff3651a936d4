"""Loading a CLIP with open_clip: by name or model config, with weights by tag or file, and its tokenizer."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import open_clip
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn

from ...utils.downloads import PathManager, local_weights
from .weights import load_weights, read_weights

logger = logging.getLogger(__name__)

# Numbers that OpenAI's files, and no others, carry beside the weights
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
# The files of a model that open_clip put on the hub: its config, and its weights, the first that is there
_HUB_CONFIG = "open_clip_config.json"
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
QUICK_SUFFIX = "-quickgelu"  # of open_clip's names
_HUB_SECONDS = 5.0  # for each of the hub client's tries to reach the hub


@contextmanager
def _open_clip_name(name: str) -> Iterator[str]:
    """Yield the name under which open_clip builds the model of MODEL.CLIP.NAME.

    A JSON config is written into a folder for open_clip. Registered, it would replace open_clip's own model of that
    name, and a broken one would spoil every model that is built later.
    """
    _check_name(name)
    with _quiet_open_clip(), TemporaryDirectory() as folder:
        if _is_config_file(name):
            Path(folder, _HUB_CONFIG).write_text(json.dumps({"model_cfg": _read_model_config(name)}))
            name = f"local-dir:{folder}"
        yield name


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """Drop open_clip's warnings of random weights, and keep it from setting up the process's logging."""
    # It logs to the root logger or, in newer versions, to a logger of each module
    root = logging.getLogger()
    names = [name for name in root.manager.loggerDict if f"{name}.".startswith("open_clip.")]
    loggers = [root, *map(logging.getLogger, names)]

    # logging.info() would add a handler to a root logger without any
    handlers = [] if root.handlers or logging.lastResort is None else [logging.lastResort]
    for handler in handlers:
        root.addHandler(handler)
    for each in loggers:
        each.addFilter(_is_no_missing_weights_warning)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(_is_no_missing_weights_warning)
        for handler in handlers:
            root.removeHandler(handler)


def _is_no_missing_weights_warning(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "No pretrained weights loaded" not in message and "no CLIP weights found" not in message


def _is_config_file(name: str) -> bool:
    return name.endswith(".json")


def _check_name(name: str) -> None:
    """Check that open_clip can build a model of this name; ValueError or FileNotFoundError if not."""
    if _is_config_file(name):
        _read_model_config(name)
    elif name not in open_clip.list_models():
        raise ValueError(
            f"MODEL.CLIP.NAME: open_clip knows no model '{name}'. Expected one of open_clip.list_models(), such as "
            "'ViT-B-16', or the path of a model config ending in .json."
        )


def _read_model_config(name: str) -> dict:
    """Read an open_clip model config (JSON); errors say what was expected."""
    path = Path(PathManager.get_local_path(name))
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.CLIP.NAME: no model config at '{name}'.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"MODEL.CLIP.NAME: '{name}' is no JSON file ({error}).") from None

    expected = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    is_config = isinstance(config, dict) and all(isinstance(config.get(key), type_) for key, type_ in expected.items())
    if not is_config:
        raise ValueError(
            f"MODEL.CLIP.NAME: '{name}' is no open_clip model config: expected an object with 'embed_dim' (a whole "
            "number), 'vision_cfg' and 'text_cfg' (objects)."
        )
    return config


def _known_config(name: str) -> dict:
    """Return the config of one of open_clip's own models."""
    return open_clip.get_model_config(name) or {}


def image_tower(name: str) -> open_clip.CLIPVisionCfg:
    """Return what the model of MODEL.CLIP.NAME says of its image tower, such as its `width`; errors as build_clip."""
    _check_name(name)
    config = _read_model_config(name) if _is_config_file(name) else _known_config(name)
    return open_clip.CLIPVisionCfg(**config["vision_cfg"])


def build_tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    """Build the tokenizer of MODEL.CLIP.NAME: N texts -> int64 [N, context], truncated and padded.

    A JSON config's `bpe_path`, in `tokenizer_kwargs`, is relative to the config. A known_words.txt beside it, one word
    a line, lists the only words that the CLIP knows; they become the tokenizer's `known_words`.
    """
    options, known_words = {}, None
    if _is_config_file(name):
        tokenizer_kwargs = _read_model_config(name)["text_cfg"].get("tokenizer_kwargs", {})
        folder = Path(PathManager.get_local_path(name)).parent
        if "bpe_path" in tokenizer_kwargs:
            options["bpe_path"] = str(folder / tokenizer_kwargs["bpe_path"])
        if (folder / "known_words.txt").is_file():
            known_words = frozenset((folder / "known_words.txt").read_text(encoding="utf-8").split())

    with _open_clip_name(name) as open_clip_name:
        tokenizer = cast(Any, open_clip.get_tokenizer(open_clip_name, **options))
    if known_words:
        tokenizer.known_words = known_words
    return tokenizer


def read_clip_weights(path: str) -> dict[str, Tensor]:
    """Read a CLIP's state dict, with open_clip's names, from a file in OpenAI's or OpenCLIP's layout.

    OpenAI's numbers come with it where the file has them.
    """
    state = read_weights("MODEL.CLIP.PRETRAINED", path)
    if "visual.conv1.weight" not in state:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: '{path}' is no CLIP ViT in OpenAI's or OpenCLIP's layout: it has no "
            f"'visual.conv1.weight'. Its first names: {list(state)[:3]}."
        )
    return state


def _create(name: str, quick_gelu: bool) -> nn.Module:
    try:
        with _open_clip_name(name) as open_clip_name:
            return open_clip.create_model(open_clip_name, force_quick_gelu=quick_gelu, pretrained_text=False)
    except (TypeError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        if not _is_config_file(name):
            raise
        raise ValueError(f"MODEL.CLIP.NAME: open_clip cannot build the model of '{name}' ({error!r}).") from None


def is_file(pretrained: str) -> bool:
    """Return whether MODEL.CLIP.PRETRAINED is a file's path or address, rather than a tag of open_clip's."""
    return "/" in pretrained or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors")


def _download(tag_cfg: dict) -> str:
    """Return the local file of a tag's weights, from the hub or its cache, or from its address."""
    repository, named = os.path.split(tag_cfg.get("hf_hub", ""))  # "owner/name/file", or "owner/name/"
    if not repository:
        return PathManager.get_local_path(tag_cfg["url"])

    # The hub client would use the network even for cached files
    filenames = (named,) if named else _HUB_WEIGHTS
    for filename in filenames:
        if isinstance(path := try_to_load_from_cache(repository, filename), str):
            return path

    for filename in filenames:
        try:
            return hf_hub_download(repository, filename, etag_timeout=_HUB_SECONDS)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) or filename == filenames[-1]:
                raise  # there is no network, or no file
    raise AssertionError("unreachable: the last error is raised")


def find_weights(model_name: str, tag: str) -> str:
    """Return the local file of the weights that open_clip knows as `tag`, downloaded if it is not cached.

    Raises:
        ValueError: open_clip knows no such tag for the model.
        RuntimeError: neither cached nor to be downloaded; says what to do.
    """
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag not in tags:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: '{tag}' is neither a weights file nor a tag that open_clip knows for "
            f"'{model_name}' (tags: {', '.join(tags) or 'none'})."
        )

    try:
        return _download(open_clip.get_pretrained_cfg(model_name, tag))
    except Exception as error:  # the hub client and urllib raise many kinds
        raise RuntimeError(
            f"MODEL.CLIP.PRETRAINED: the weights '{tag}' of '{model_name}' are not in the local cache and could not be "
            f"downloaded ({type(error).__name__}). Run once where the network reaches the hub and keep its cache "
            "(HF_HOME, default ~/.cache/huggingface), or give a weights file: MODEL.CLIP.PRETRAINED "
            "/path/to/weights.pt"
        ) from None


def check_clip(name: str, pretrained: str) -> None:
    """Check that a CLIP's config and weights are there, before anything costly is built; errors as build_clip."""
    _check_name(name)
    if is_file(pretrained):
        local_weights("MODEL.CLIP.PRETRAINED", pretrained)
    elif pretrained:
        find_weights(name, pretrained)


def build_clip(name: str, pretrained: str) -> nn.Module:
    """Build an open_clip model, and log its activation.

    Args:
        name: a model name that open_clip knows, or the path of a model config (JSON).
        pretrained: an open_clip tag, a weights file in OpenAI's or OpenCLIP's layout, or "" for random weights.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: unknown name or tag, unfit or unreadable file, no network.
    """
    _check_name(name)
    if not pretrained:
        logger.warning(
            "MODEL.CLIP.PRETRAINED is empty: the CLIP '%s' has random weights, unless MODEL.WEIGHTS brings its own.",
            name,
        )
        return _create(name, _choose_activation(name, ""))

    path = pretrained if is_file(pretrained) else find_weights(name, pretrained)
    state = read_clip_weights(path)
    model = _create(name, _choose_activation(name, pretrained, state))
    unfit = f"MODEL.CLIP.PRETRAINED: '{path}' does not fit MODEL.CLIP.NAME '{name}'; give the model it was made with"
    load_weights(model, {key: value for key, value in state.items() if key not in _OPENAI_NUMBERS}, unfit)
    return model


# --------------------------------------------------------------------------------------------- the activation


def has_quick_gelu(name: str, pretrained: str) -> bool:
    """Return whether build_clip builds a CLIP with QuickGELU rather than GELU; a file of weights is read."""
    state = read_clip_weights(pretrained) if pretrained and is_file(pretrained) else ()
    return bool(_asked_activation(name) or _trained_activation(name, pretrained, state)[0])


def _choose_activation(name: str, pretrained: str, state: Iterable[str] = ()) -> bool:
    """Choose QuickGELU (True) or GELU, and log it, with a warning where that is a guess or may be wrong.

    `state` has the names in the file of weights.
    """
    asked = _asked_activation(name)
    trained, source = _trained_activation(name, pretrained, state)
    quick_gelu = bool(asked or trained)

    if asked and trained is False:
        logger.warning(
            "The CLIP '%s' has QuickGELU, as its name says, though its weights were trained with GELU according to %s. "
            "For GELU, give MODEL.CLIP.NAME %s",
            *(name, source, _other_name(name)),
        )
    elif pretrained and asked is None and trained is None:
        logger.warning(
            "The CLIP '%s' has GELU, but nothing says whether '%s' was trained with it or, as OpenAI's weights, with "
            "QuickGELU. For QuickGELU, give MODEL.CLIP.NAME %s; if GELU is right, the tag of the weights or a model "
            'config (JSON) with "quick_gelu": false says so',
            *(name, pretrained, _other_name(name)),
        )
    else:
        activation = "QuickGELU" if quick_gelu else "GELU"
        logger.info("The CLIP '%s' has %s, according to %s", name, activation, source or "MODEL.CLIP.NAME")
    return quick_gelu


def _other_name(name: str) -> str:
    """Return the MODEL.CLIP.NAME that asks for the other activation."""
    if _is_config_file(name):
        return f'{name} with the other "quick_gelu"'
    return name.removesuffix(QUICK_SUFFIX) if name.endswith(QUICK_SUFFIX) else name + QUICK_SUFFIX


def _asked_activation(name: str) -> bool | None:
    """Return whether MODEL.CLIP.NAME asks for QuickGELU; None if it leaves that open."""
    if _is_config_file(name):
        return _read_model_config(name).get("quick_gelu")
    if _known_config(name).get("quick_gelu"):
        return True
    return None if name + QUICK_SUFFIX in open_clip.list_models() else False


def _trained_activation(name: str, pretrained: str, state: Iterable[str]) -> tuple[bool | None, str]:
    """Return whether weights were trained with QuickGELU, None if that is unknown; and the source."""
    if not pretrained:
        return None, ""
    if not is_file(pretrained):
        return open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False), f"their tag '{pretrained}'"
    if any(number in state for number in _OPENAI_NUMBERS):
        return True, "the numbers beside them, which OpenAI's files have"

    # The hub's folder, in its cache too, or the file's name
    path = Path(PathManager.get_local_path(pretrained))
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        config = json.loads(path.with_name(_HUB_CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        return bool(config.get("quick_gelu", False)), f"the {_HUB_CONFIG} beside them"
    for released in (open_clip.get_pretrained_cfg(*release) for release in open_clip.list_pretrained()):
        repository = released.get("hf_hub", "").rpartition("/")[0]
        known = {f"models--{repository.replace('/', '--')}", released.get("url", "").rpartition("/")[2]}
        if known & {*path.parts}:
            return released.get("quick_gelu", False), f"their file, which is open_clip's of '{repository}'"
    return None, ""
