"""Loading a GroupViT with transformers: by the hub's name, from a folder, or from the official release's file."""

from functools import partial
from pathlib import Path
from types import ModuleType

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn

from ...utils.downloads import local_weights
from ...utils.tensors import check_finite
from ..encoders.transformers import import_transformers as import_library
from ..encoders.weights import load_weights, read_weights
from .official import from_official

import_transformers = partial(import_library, "GroupViT", (4, 57))  # results of it are known to be the release's
_HUB_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")


def check_groupvit(weights: str) -> None:
    """Check that transformers and the weights are there, before anything costly is built.

    Of a model on the hub, only its configuration is downloaded.
    """
    transformers = import_transformers()
    if weights and is_file(weights):
        local_weights("MODEL.GROUPVIT.WEIGHTS", weights)
    elif weights:
        _check_folder(transformers, weights)


# ------------------------------------------------------------------------------------ the hub and its folders


def _check_folder(transformers: ModuleType, name: str) -> None:
    """Check that a folder, or a model on the hub, is a GroupViT."""
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise FileNotFoundError(
            f"MODEL.GROUPVIT.WEIGHTS: the folder '{name}' has no config.json: expected a model as the hub has it"
        )

    # Read its configuration
    try:
        config, _ = transformers.GroupViTConfig.get_config_dict(name, local_files_only=_is_local(name))
    except Exception as error:  # the hub client raises many types
        raise OSError(
            f"MODEL.GROUPVIT.WEIGHTS: there is no file and no folder '{name}', and the hub's model of that "
            f"name is not in the local cache and could not be downloaded ({type(error).__name__}). Give "
            "nvidia/groupvit-gcc-yfcc or nvidia/groupvit-gcc-redcaps, once where the network reaches the hub (its "
            "cache is HF_HOME), or a folder or file of weights"
        ) from None
    if config.get("model_type") != "groupvit":
        raise ValueError(
            f"MODEL.GROUPVIT.WEIGHTS: '{name}' is no GroupViT: its config.json says model_type "
            f"'{config.get('model_type')}', expected 'groupvit'"
        )


def _is_local(name: str) -> bool:
    """Return whether a model is a folder, or whole in the hub's cache: the hub client would ask the network first."""
    if Path(name).is_dir():
        return True
    try:
        has_config, *has_weights = (isinstance(try_to_load_from_cache(name, file), str) for file in _HUB_FILES)
    except HFValidationError:
        return False
    return has_config and any(has_weights)


def build_groupvit(name: str) -> nn.Module:
    """Build transformers' GroupViTModel from a folder, or from a model on the Hugging Face hub.

    Raises:
        OSError, RuntimeError, ValueError: no or an old transformers, no such weights, or those of another model.
    """
    transformers = import_transformers()
    _check_folder(transformers, name)
    try:
        model, report = transformers.GroupViTModel.from_pretrained(
            name,
            dtype="float32",
            local_files_only=_is_local(name),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # of the hub client, of readers of weights, of the configuration's checks
        reason = str(error).strip().partition("\n")[0]
        raise OSError(f"MODEL.GROUPVIT.WEIGHTS: the weights of '{name}' cannot be loaded ({reason})") from None

    unfit = [str(key) for part in ("missing_keys", "mismatched_keys") for key in report[part]]
    if unfit:
        raise ValueError(
            f"MODEL.GROUPVIT.WEIGHTS: the weights of '{name}' do not fit its config.json: {len(unfit)} are missing or "
            f"of another shape, such as {unfit[0]}"
        )
    check_finite(model.state_dict(), name)
    return model


# ------------------------------------------------------------------------------------ the official file


def is_file(weights: str) -> bool:
    """Return whether MODEL.GROUPVIT.WEIGHTS is a file's path or address, not a folder or a model on the hub."""
    path = Path(weights)
    return "://" in weights or path.is_file() or path.suffix in (".pth", ".pt", ".bin", ".safetensors")


def load_official(model: nn.Module, path: str) -> None:
    """Load a file of the official release, or a checkpoint of its training; ValueError names what does not fit."""
    state = read_weights("MODEL.GROUPVIT.WEIGHTS", path)
    if "img_encoder.layers.0.group_token" not in state:
        raise ValueError(
            f"MODEL.GROUPVIT.WEIGHTS: '{path}' is no GroupViT of the official release: it has no "
            f"'img_encoder.layers.0.group_token'. What it has: {list(state)[:3]}. For a model from the hub, give its "
            "folder, with its config.json"
        )
    unfit = f"MODEL.GROUPVIT.WEIGHTS: '{path}' does not fit the sizes in MODEL.GROUPVIT"
    load_weights(model, from_official(state), unfit)
