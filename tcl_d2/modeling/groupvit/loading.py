"""Loading a GroupViT with transformers: by the hub's name, from a folder, or from the official release's file."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn

from ...utils.downloads import local_weights
from ...utils.tensors import check_finite, read_tensors, split_checkpoint
from ..clip_loading import compare_shapes
from .official import from_official, is_official

_OLDEST = (4, 57)  # of transformers, of which results are known to be the release's
_HUB_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")
HEAD_WIDTH = 64  # of the text encoder, as CLIP's


def build_groupvit(weights: str, num_heads: int) -> nn.Module:
    """Build transformers' GroupViTModel.

    Args:
        weights: a model on the Hugging Face hub or the folder of one, or a file of the official release.
        num_heads: of the image encoder's attention, which the release's file does not tell.

    Raises:
        OSError, RuntimeError, ValueError: no or an old transformers, no such weights, or those of another model.
    """
    transformers = import_transformers()
    if _is_file(weights):
        return _build_from_file(transformers, weights, num_heads)
    return _build_from_folder(transformers, weights)


def check_groupvit(weights: str) -> None:
    """Look whether transformers and the weights are there, before anything costly is built; errors as build_groupvit.

    Of a model on the hub, only its configuration is downloaded.
    """
    transformers = import_transformers()
    if weights and _is_file(weights):
        local_weights("MODEL.GROUPVIT.WEIGHTS", weights)
    elif weights:
        _check_folder(transformers, weights)


def import_transformers() -> ModuleType:
    """Import the library, which takes seconds and is optional."""
    oldest = ".".join(map(str, _OLDEST))
    remedy = f"pip install 'transformers>={oldest}'"
    try:
        import transformers
    except ImportError as error:
        raise RuntimeError(f"GroupViT needs transformers, which cannot be imported ({error}): {remedy}") from None

    if tuple(map(int, transformers.__version__.split(".")[:2])) < _OLDEST:
        raise RuntimeError(
            f"GroupViT needs transformers {oldest} or newer, but {transformers.__version__} is installed: {remedy}"
        )
    return transformers


# ------------------------------------------------------------------------------------ the hub and its folders


def _check_folder(transformers: ModuleType, name: str) -> None:
    """Look whether a folder, or a model on the hub, is a GroupViT."""
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


def _build_from_folder(transformers: ModuleType, name: str) -> nn.Module:
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


def _is_file(weights: str) -> bool:
    path = Path(weights)
    return "://" in weights or path.is_file() or path.suffix in (".pth", ".pt", ".bin", ".safetensors")


def _build_from_file(transformers: ModuleType, path: str, num_heads: int) -> nn.Module:
    state = _read_official(path)

    # Build a model of the file's sizes
    try:
        config = transformers.GroupViTConfig(**read_sizes(state, num_heads))
        model = transformers.GroupViTModel(config)
    except (KeyError, IndexError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"MODEL.GROUPVIT.WEIGHTS: no GroupViT has the sizes of '{path}': {reason}") from None

    # Account for every weight
    converted = from_official(state)
    if differences := compare_shapes(converted, model.state_dict()):
        raise ValueError(
            f"MODEL.GROUPVIT.WEIGHTS: '{path}' is not the official release's model: {len(differences)} weights differ "
            f"({'; '.join(differences[:3])})"
        )
    model.load_state_dict(converted)  # which makes fp32 of fp16
    return model


def _read_official(path: str) -> dict[str, Tensor]:
    """Read the state dict, with the official names, of a file of weights or of a training."""
    try:
        state, _ = split_checkpoint(read_tensors(local_weights("MODEL.GROUPVIT.WEIGHTS", path)), path)
        check_finite(state, path)
    except ValueError as error:
        raise ValueError(f"MODEL.GROUPVIT.WEIGHTS: {error}") from None

    if not is_official(state):
        raise ValueError(
            f"MODEL.GROUPVIT.WEIGHTS: '{path}' is no GroupViT of the official release: it has no "
            f"'img_encoder.layers.0.group_token'. What it has: {list(state)[:3]}. Of a model of the hub, give the "
            "folder, with its config.json"
        )
    return state


def read_sizes(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    """Read the arguments of transformers' GroupViTConfig off the shapes of an official state dict.

    Args:
        state: with the official names.
        num_heads: of the image encoder's attention.

    Raises:
        KeyError: a weight is missing.
        ValueError: the width is no multiple of `num_heads`.
    """
    return {
        "vision_config": _vision_sizes(state, num_heads),
        "text_config": _text_sizes(state),
        "projection_dim": state["img_projector.linear_out.weight"].shape[0],
        "projection_intermediate_dim": state["img_projector.linear_out.weight"].shape[1],
    }


def _vision_sizes(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    _, num_patches, width = state["img_encoder.pos_embed"].shape
    if width % num_heads:
        raise ValueError(f"its width {width} is no multiple of MODEL.GROUPVIT.NUM_HEADS {num_heads}")
    patch_size = state["img_encoder.patch_embed.proj.weight"].shape[-1]

    # Stages, of which the last one has no groups of its own
    stages = [f"img_encoder.layers.{index}" for index in range(_count(state, "img_encoder.layers.{}"))]
    depths = [_count(state, f"{stage}.blocks.{{}}") for stage in stages]
    group_tokens = [state[f"{stage}.group_token"].shape[1] for stage in stages[:-1]]
    groups = [state[f"{stage}.downsample.mlp_inter.fc2.weight"].shape[0] for stage in stages[:-1]]

    return {
        "hidden_size": width,
        "intermediate_size": state["img_encoder.layers.0.blocks.0.mlp.fc1.weight"].shape[0],
        "depths": depths,
        "num_hidden_layers": sum(depths),
        "num_group_tokens": [*group_tokens, 0],
        "num_output_groups": [*groups, 0],
        "num_attention_heads": num_heads,
        "image_size": patch_size * round(num_patches**0.5),
        "patch_size": patch_size,
    }


def _text_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    context_length, width = state["text_encoder.positional_embedding"].shape
    return {
        "vocab_size": state["text_encoder.token_embedding.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": state["text_encoder.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": _count(state, "text_encoder.transformer.resblocks.{}"),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": context_length,
        "bos_token_id": None,
        "eos_token_id": 2,  # transformers' sign for the token with the largest number, which ends a text
    }


def _count(state: Mapping[str, Tensor], numbered: str) -> int:
    """Count the modules that a state dict has, by a name with {} for their number, from 0 on."""
    count = 0
    while any(key.startswith(f"{numbered.format(count)}.") for key in state):
        count += 1
    return count
