"""The frozen CLIP, on open_clip: text embeddings, image embeddings, and the shared trunk of the grounder."""

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import torch
from detectron2.utils.file_io import PathManager
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.factory import LOCAL_DIR_PREFIX
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..tensors import check_finite, read_tensors

logger = logging.getLogger(__name__)

# Numbers that OpenAI's files carry beside the weights; they also tell its layout, whose models use QuickGELU.
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")


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

    A `bpe_path` in a JSON config's `tokenizer_kwargs` is looked for beside the config.
    """
    options = {}
    if _is_config_file(name):
        tokenizer_kwargs = _read_model_config(name)["text_cfg"].get("tokenizer_kwargs", {})
        if "bpe_path" in tokenizer_kwargs:
            folder = Path(PathManager.get_local_path(name)).parent
            options["bpe_path"] = str(folder / tokenizer_kwargs["bpe_path"])

    with _open_clip_name(name) as open_clip_name:
        return open_clip.get_tokenizer(open_clip_name, **options)


def _local_weights(path: str) -> str:
    local = PathManager.get_local_path(path)
    if not Path(local).is_file():
        raise FileNotFoundError(f"MODEL.CLIP.PRETRAINED: no weights file at '{path}'.")
    return local


def read_clip_weights(path: str) -> tuple[dict[str, Tensor], bool]:
    """Reads a CLIP's state dict from a file in OpenAI's or OpenCLIP's layout, without running code from it.

    Returns:
        the state dict (names as in open_clip's CLIP), and whether the file says that it is OpenAI's (QuickGELU).

    Raises:
        FileNotFoundError, ValueError: with the file's name and what was expected.
    """
    try:
        state = read_tensors(_local_weights(path))
    except ValueError as error:
        raise ValueError(f"MODEL.CLIP.PRETRAINED: {error}") from None
    if isinstance(state, dict):  # a training checkpoint of OpenCLIP, also of several processes
        state = {key.removeprefix("module."): value for key, value in state.get("state_dict", state).items()}
    if not isinstance(state, dict) or "visual.conv1.weight" not in state:
        found = list(state)[:3] if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: '{path}' is no CLIP ViT in OpenAI's or OpenCLIP's layout: it has no "
            f"'visual.conv1.weight'. What it has: {found}."
        )
    is_openai = "input_resolution" in state
    weights = {key: value for key, value in state.items() if key not in _OPENAI_NUMBERS}
    try:
        check_finite(weights, path)
    except ValueError as error:
        raise ValueError(f"MODEL.CLIP.PRETRAINED: {error}") from None
    return weights, is_openai


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


def _is_file(pretrained: str) -> bool:
    return "/" in pretrained or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors")


def _create_from_file(name: str, path: str, quick_gelu: bool = False) -> nn.Module:
    state, is_openai = read_clip_weights(path)
    model = _create(name, quick_gelu or is_openai)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [
        f"{key}: the file has {tuple(state[key].shape) if key in state else 'nothing'}, the model {shape}"
        for key, shape in expected.items()
        if key not in state or tuple(state[key].shape) != shape
    ] + [f"{key}: the model has no such weight" for key in state.keys() - expected.keys()]
    if wrong:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: '{path}' does not fit MODEL.CLIP.NAME '{name}' ({len(wrong)} weights differ; "
            f"{'; '.join(wrong[:3])}). Give the name of the model that the file was made with."
        )
    model.load_state_dict(state)  # which makes fp32 of fp16
    return model


def _cached(tag_cfg: dict) -> str | None:
    """The file of a tag's weights in the hub's local cache. Asking the hub client would ask the network first."""
    repository, named = os.path.split(tag_cfg.get("hf_hub", ""))  # "owner/name/file", or "owner/name/"
    for filename in (named,) if named else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
        path = try_to_load_from_cache(repository, filename) if repository else None
        if isinstance(path, str):
            return path
    return None


def _reaches_hub() -> bool:
    """Whether the hub answers, within seconds: its client tries for a minute."""
    try:
        with urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def find_weights(model_name: str, tag: str) -> str:
    """The local file of the weights that open_clip knows as `tag`, downloaded if it is not in the cache.

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
    tag_cfg = open_clip.get_pretrained_cfg(model_name, tag)
    path, reason = _cached(tag_cfg), "the hub does not answer"
    if path is None and ("hf_hub" not in tag_cfg or _reaches_hub()):
        try:
            path = open_clip.download_pretrained(tag_cfg)
        except Exception as error:  # the hub client and urllib raise many kinds
            reason = type(error).__name__
    if path is None:
        raise RuntimeError(
            f"MODEL.CLIP.PRETRAINED: the weights '{tag}' of '{model_name}' are not in the local cache and could not be "
            f"downloaded ({reason}). Run once where the network reaches the hub and keep its cache (HF_HOME, default "
            "~/.cache/huggingface), or give a weights file: MODEL.CLIP.PRETRAINED /path/to/weights.pt"
        )
    return path


def check_clip(name: str, pretrained: str) -> None:
    """Looks whether a CLIP's config and weights are there, before anything costly is built; errors as build_clip."""
    _check_name(name)
    if _is_file(pretrained):
        _local_weights(pretrained)
    elif pretrained:
        find_weights(name, pretrained)


def build_clip(name: str, pretrained: str) -> nn.Module:
    """Builds an open_clip model.

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
    if _is_file(pretrained):
        return _create_from_file(name, pretrained)
    quick_gelu = (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu", False)
    return _create_from_file(name, find_weights(name, pretrained), quick_gelu)


def _check_tower(visual: nn.Module) -> None:
    plain = (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
    )
    if not plain:
        raise ValueError(
            f"The image tower of this CLIP is {type(visual).__name__}; TCL needs open_clip's own VisionTransformer, "
            "with a class token and standard attention blocks (ViT-B-32, ViT-B-16, ViT-L-14, ...), no ResNet, timm or "
            "attention-pooled tower."
        )


def run_block(block: ResidualAttentionBlock, x: Tensor, count: int | None = None) -> Tensor:
    """block(x), faster: nn.MultiheadAttention works sequence first, and makes many small products of a batch.

    Args:
        x: tokens [B, L, C].
        count: tokens whose results are needed, the first ones; None for all.

    Returns:
        tokens [B, count, C].
    """
    attention, width = block.attn, x.shape[-1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    normed = block.ln_1(x)
    query = F.linear(normed[:, :count], weight[:width], bias[:width])
    key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return _finish_block(block, x[:, :count], attended)


def value_path(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """A block under MaskCLIP's rule: each token attends to itself alone, so attention is out_proj(v_proj(.)).

    Args:
        x: tokens [B, L, C]; returns the same shape.
    """
    attention, width = block.attn, x.shape[-1]
    value = F.linear(block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    return _finish_block(block, x, value)


def _finish_block(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def fold(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Drops the class token and folds tokens [B, 1 + h*w, C] to a map [B, C, h, w] (channels last in memory)."""
    return tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)


class FrozenCLIP(nn.Module):
    """CLIP's two encoders, frozen and always in eval mode. Gradient may flow through them, never into them.

    Images are float [B, 3, H, W], normalised, H and W multiples of `patch_size`.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: an open_clip model whose image tower is open_clip's VisionTransformer; ValueError otherwise.
        """
        super().__init__()
        _check_tower(model.visual)
        self.model = model.requires_grad_(False).eval()
        self.model.logit_scale = None  # of CLIP's own contrast; TCL's losses have theirs

    def train(self, mode: bool = True) -> "FrozenCLIP":
        return super().train(False)

    @property
    def visual(self) -> VisionTransformer:
        return self.model.visual

    @property
    def patch_size(self) -> int:
        return self.visual.patch_size[0]

    @property
    def embed_dim(self) -> int:
        return self.visual.output_dim

    @property
    def blocks(self) -> nn.ModuleList:
        return self.visual.transformer.resblocks

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens of images [B, 3, H, W]."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens int [N, context] -> embeddings [N, D], not normalised."""
        return self.model.encode_text(tokens)

    def encode_image(self, images: Tensor, recompute: bool = False) -> Tensor:
        """Images -> embeddings [B, D], not normalised: the class token after all blocks, ln_post and projection."""
        visual = self.visual
        tokens = self.trunk(images, len(self.blocks) - 1, recompute)
        class_token = run_block(self.blocks[-1], tokens, count=1)[:, 0]
        return visual.ln_post(class_token) @ visual.proj

    def trunk(self, images: Tensor, depth: int, recompute: bool = False) -> Tensor:
        """Images -> tokens [B, 1 + h*w, C] after the first `depth` blocks, class token first.

        With `recompute`, a block's activations are computed again for the gradient rather than held.
        """
        visual = self.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1) + self._position(self.grid(images)).to(x.dtype)
        x = visual.ln_pre(x)
        for block in self.blocks[:depth]:
            x = checkpoint(run_block, block, x, use_reentrant=False) if recompute else run_block(block, x)
        return x

    def dense(self, tokens: Tensor, depth: int, grid: tuple[int, int]) -> Tensor:
        """MaskCLIP's dense features [B, D, h, w], not normalised, from the trunk's tokens after `depth` blocks.

        The last block follows the MaskCLIP rule; ln_post and projection are applied to every token.
        """
        for block in self.blocks[depth:-1]:
            tokens = run_block(block, tokens)
        tokens = value_path(self.blocks[-1], tokens)
        return fold(self.visual.ln_post(tokens) @ self.visual.proj, grid)

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings [1 + h*w, C], resized to the grid (bicubic, no antialias); the class token's stay."""
        position = self.visual.positional_embedding
        if grid == tuple(self.visual.grid_size):
            return position
        patches = position[1:].unflatten(0, self.visual.grid_size).permute(2, 0, 1)[None]
        patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([position[:1], patches[0].permute(1, 2, 0).flatten(0, 1)])
