"""Loading a CLIP with open_clip: its name or model config, its weights by tag or file, and its tokenizer."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
from detectron2.utils.file_io import PathManager
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.factory import LOCAL_DIR_PREFIX
from torch import Tensor, nn

from ..utils.downloads import local_weights
from ..utils.tensors import check_finite, read_tensors

logger = logging.getLogger(__name__)

# Numbers that OpenAI's files carry beside the weights; they also tell its layout, whose models use QuickGELU.
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
_HUB_SECONDS = 5.0  # for each of the hub client's tries to reach the hub


@contextmanager
def _open_clip_name(name: str) -> Iterator[str]:
    """Give the name under which open_clip builds the model of MODEL.CLIP.NAME; errors as `_check_name`.

    A JSON config is laid into a folder as open_clip reads one. Registered, it would replace a model of open_clip's that
    has the same name, and if it is broken spoil every model that is built later.
    """
    _check_name(name)
    if not _is_config_file(name):
        yield name
        return

    with TemporaryDirectory() as folder:
        Path(folder, "open_clip_config.json").write_text(json.dumps({"model_cfg": _read_model_config(name)}))
        yield f"{LOCAL_DIR_PREFIX}{folder}"


def _is_config_file(name: str) -> bool:
    return name.endswith(".json")


def _check_name(name: str) -> None:
    """Look whether open_clip can build a model of this name; ValueError or FileNotFoundError if not."""
    if _is_config_file(name):
        _read_model_config(name)
    elif name not in open_clip.list_models():
        raise ValueError(
            f"MODEL.CLIP.NAME: open_clip knows no model '{name}'. Expected one of open_clip.list_models(), such as "
            "'ViT-B-16', or the path of a model config ending in .json."
        )


def _read_model_config(name: str) -> dict:
    """Read an open_clip model config (JSON); FileNotFoundError or ValueError names it and what was expected."""
    path = Path(PathManager.get_local_path(name))
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.CLIP.NAME: no model config at '{name}'.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"MODEL.CLIP.NAME: '{name}' is no JSON file ({error}).") from None

    expected = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    is_config = isinstance(config, dict) and all(isinstance(config.get(key), type_) for key, type_ in expected.items())
    if not is_config:
        raise ValueError(
            f"MODEL.CLIP.NAME: '{name}' is no open_clip model config: expected an object with 'embed_dim' (a whole "
            "number), 'vision_cfg' and 'text_cfg' (objects)."
        )
    return config


def build_tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    """Build the tokenizer of the CLIP `name` (see build_clip): N texts -> int64 [N, context], truncated and padded.

    A `bpe_path` in a JSON config's `tokenizer_kwargs` is looked for beside the config. If there is a known_words.txt
    too, a word a line, the CLIP knows no others; they become the tokenizer's `known_words`.
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
        tokenizer = open_clip.get_tokenizer(open_clip_name, **options)
    if known_words:
        tokenizer.known_words = known_words
    return tokenizer


def read_clip_weights(path: str) -> tuple[dict[str, Tensor], bool]:
    """Read a CLIP's state dict from a file in OpenAI's or OpenCLIP's layout, without running code from it.

    Returns:
        the state dict (names as in open_clip's CLIP), and whether the file says that it is OpenAI's (QuickGELU).

    Raises:
        FileNotFoundError, ValueError: with the file's name and what was expected.
    """
    local = local_weights("MODEL.CLIP.PRETRAINED", path)
    try:
        loaded = read_tensors(local)
        state = _state_dict(loaded)
        check_finite(state, path)
    except ValueError as error:
        raise ValueError(f"MODEL.CLIP.PRETRAINED: {error}") from None

    if "visual.conv1.weight" not in state:
        content = list(loaded)[:3] if isinstance(loaded, dict) else type(loaded).__name__
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: '{path}' is no CLIP ViT in OpenAI's or OpenCLIP's layout: it has no "
            f"'visual.conv1.weight'. What it has: {content}."
        )

    is_openai = "input_resolution" in state
    return {key: value for key, value in state.items() if key not in _OPENAI_NUMBERS}, is_openai


def _state_dict(loaded: object) -> dict[str, Tensor]:
    """Take the tensors of a state dict, or of a training checkpoint of OpenCLIP, also of several processes."""
    if not isinstance(loaded, dict):
        return {}
    state = loaded.get("state_dict", loaded)
    state = state if isinstance(state, dict) else {}
    return {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}


def _is_no_missing_weights_warning(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "No pretrained weights loaded" not in message and "no CLIP weights found" not in message


def _create(name: str, quick_gelu: bool = False) -> nn.Module:
    """Build an open_clip model with random weights, without open_clip's warnings that it has them."""
    root = logging.getLogger()
    root.addFilter(_is_no_missing_weights_warning)
    try:
        with _open_clip_name(name) as open_clip_name:
            return open_clip.create_model(open_clip_name, force_quick_gelu=quick_gelu, pretrained_text=False)
    except (TypeError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        if not _is_config_file(name):
            raise
        raise ValueError(f"MODEL.CLIP.NAME: open_clip cannot build the model of '{name}' ({error!r}).") from None
    finally:
        root.removeFilter(_is_no_missing_weights_warning)


def is_file(pretrained: str) -> bool:
    """Return whether MODEL.CLIP.PRETRAINED is a file's path or address, not a tag of open_clip's."""
    return "/" in pretrained or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors")


def _create_from_file(name: str, path: str, quick_gelu: bool = False) -> nn.Module:
    state, is_openai = read_clip_weights(path)
    model = _create(name, quick_gelu or is_openai)

    if differences := compare_shapes(state, model.state_dict()):
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: '{path}' does not fit MODEL.CLIP.NAME '{name}' ({len(differences)} weights "
            f"differ; {'; '.join(differences[:3])}). Give the name of the model that the file was made with."
        )
    model.load_state_dict(state)  # which makes fp32 of fp16
    return model


def compare_shapes(state: dict[str, Tensor], model_state: dict[str, Tensor]) -> list[str]:
    """Say of every weight that a file and a model do not share, or have in different shapes, what each has."""
    differences = []
    for key, value in model_state.items():
        shape = tuple(state[key].shape) if key in state else "nothing"
        if shape != tuple(value.shape):
            differences.append(f"{key}: the file has {shape}, the model {tuple(value.shape)}")
    return differences + [f"{key}: the model has no such weight" for key in state.keys() - model_state.keys()]


def _download(tag_cfg: dict) -> str:
    """Return the local file of a tag's weights: the hub's from its cache or the hub, others as open_clip does."""
    repository, named = os.path.split(tag_cfg.get("hf_hub", ""))  # "owner/name/file", or "owner/name/"
    if not repository:
        return open_clip.download_pretrained(tag_cfg)

    # The hub client would ask the network even for what is cached
    filenames = [named] if named else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    for filename in filenames:
        if isinstance(path := try_to_load_from_cache(repository, filename), str):
            return path

    for filename in filenames:
        try:
            return hf_hub_download(repository, filename, etag_timeout=_HUB_SECONDS)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) or filename == filenames[-1]:
                raise  # there is no network, or no file


def find_weights(model_name: str, tag: str) -> str:
    """Return the local file of the weights that open_clip knows as `tag`, downloaded if it is not in the cache.

    Raises:
        ValueError: open_clip knows no such tag for the model.
        RuntimeError: neither cached nor to be downloaded; says the two ways out.
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
    """Look whether a CLIP's config and weights are there, before anything costly is built; errors as build_clip."""
    _check_name(name)
    if is_file(pretrained):
        local_weights("MODEL.CLIP.PRETRAINED", pretrained)
    elif pretrained:
        find_weights(name, pretrained)


def build_clip(name: str, pretrained: str) -> nn.Module:
    """Build an open_clip model.

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
        return _create(name)

    if is_file(pretrained):
        return _create_from_file(name, pretrained)
    quick_gelu = (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu", False)
    return _create_from_file(name, find_weights(name, pretrained), quick_gelu)
