"""What a model costs by count, whatever its weights: the parameters, FLOPs and activations of its parts.

They are counted as Detectron2 and fvcore do: a FLOP is a multiplication with its addition, activations are the outputs
of convolutions and products, and elementwise operators count nothing.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_analysis import JitModelAnalysis
from fvcore.nn.jit_handles import generic_activation_jit, get_shape, matmul_flop_jit
from torch import Tensor, nn

from ..data.benchmark_mapper import model_input
from ..modeling import TCL, ReCo, ZeroShotSegmentor, linear
from ..modeling.inference import Windows
from ..modeling.refiner import keep_scores
from ..modeling.vision import VisionEncoder

_WEIGHTS = ("CLIP.PRETRAINED", "DENSE_CLIP.PROXY.PRETRAINED", "RECO.ENCODER.PRETRAINED", "GROUPVIT.WEIGHTS")


def build_without_weights(cfg: CfgNode) -> ZeroShotSegmentor:
    """Build a configuration's model with random weights, which cost the same: nothing is downloaded or read.

    ReCo needs no archive then: its reference embeddings are random too. TCL is as in its second stage, if it has one.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for key in _WEIGHTS:
        cfg.merge_from_list([f"MODEL.{key}", ""])
    cfg.MODEL.RECO.INDEX = ""

    model = build_model(cfg).eval()
    if isinstance(model, ReCo):
        model.prepare = _with_random_references
    if isinstance(model, TCL):
        model.train_last_blocks(cfg.MODEL.TCL.UNFREEZE_ITER >= 0)
    return model


def _with_random_references(features: NamedTuple, text: Tensor) -> NamedTuple:
    return features._replace(references=torch.randn(len(text), features.embedding.shape[1], device=text.device))


def image_input(cfg: CfgNode, height: int, width: int) -> dict:
    """Return a random image as a configuration brings it to the model.

    Args:
        cfg: the configuration.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return {**model_input(image, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST), "labels_only": True}


# ------------------------------------------------------------------------------------------- parameters


def count_parameters(model: nn.Module) -> dict[str, Counter]:
    """Count the parameters of each part of a model: {part: {"frozen": count, "trained": count}}."""
    counts = {}
    for name, part in model.named_children():
        # A vision model is no submodule of its encoder
        modules = [part, *(module.model for module in part.modules() if isinstance(module, VisionEncoder))]
        counts[name] = Counter(frozen=0, trained=0)
        for parameter in {parameter for module in modules for parameter in module.parameters()}:
            counts[name]["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return {name: count for name, count in counts.items() if count.total()}


# ------------------------------------------------------------------------------------------- operators


class Operations(NamedTuple):
    """What is computed.

    Attributes:
        windows: sliding windows of an image, of which each is (height, width) pixels.
        window_size: see windows.
        by_part: FLOPs and activations of an image, {part: {"flops": count, "activations": count}}; "scores" are from
            features to the scores of words.
        by_operator: FLOPs of an image by operator.
        text: FLOPs of a prompt's text feature.
    """

    windows: int
    window_size: tuple[int, int]
    by_part: dict[str, Counter]
    by_operator: Counter
    text: int


def count_operations(model: ZeroShotSegmentor, inputs: dict, num_words: int) -> Operations:
    """Count what a model computes for an image.

    Args:
        model: with any weights, in eval mode.
        inputs: the image, see image_input.
        num_words: words that scores are made for.
    """

    def bind_refiner(stage: str, images: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the refiner itself, as a module of which fvcore knows; a bound one would keep what it has traced."""
        return partial(model.refiner, images) if model.refines(stage) else keep_scores

    with torch.no_grad(), patch.object(model, "bind_refiner", bind_refiner):
        return _count_operations(model, inputs, num_words)


def _count_operations(model: ZeroShotSegmentor, inputs: dict, num_words: int) -> Operations:
    # A window, of which all others are of the same size
    image = model.normalize_images([inputs["image"]])[0]
    windows = Windows(image, model.crop_size, model.stride)
    rows, columns = windows.slices[0]
    crop = image[None, :, rows, columns]
    text = torch.randn(num_words, model.clip.embed_dim, device=model.device)
    features, place = model.encode_crops(crop)

    # The stages of a window, then what is done once for the image
    stages = [
        _Stage(model, "clip", lambda crop: _tensors(model.encode_crops(crop)[0]), crop),
        _Stage(model, "scores", lambda text: model.crop_masks(features, place, text), text),
    ]
    counts = [(stage, len(windows.slices)) for stage in stages]
    if model.refines("image") or model.refines("classes"):
        size = inputs["height"], inputs["width"]
        picture, scores = (torch.rand(1, channels, *size, device=model.device) for channels in (3, num_words))
        counts.append((_Stage(model, "scores", model.refiner, picture, scores), 1))

    # Add them up
    by_part, by_operator = {}, Counter()
    for stage, times in counts:
        parts, operators = stage.count()
        for name, part in parts.items():
            total = by_part.setdefault(name, Counter())
            total.update({key: times * value for key, value in part.items()})
        by_operator.update({name: times * value for name, value in operators.items()})

    tokens = model.tokenizer(["a photo of a cat"]).to(model.device)
    prompt, _ = _Stage(model, "text", model.clip.encode_text, tokens).count()
    return Operations(len(windows.slices), tuple(crop.shape[-2:]), by_part, by_operator, prompt["text"]["flops"])


def _tensors(features: NamedTuple) -> tuple[Tensor, ...]:
    return tuple(value for value in features if isinstance(value, Tensor))


class _Stage(nn.Module):
    """A function of a model as a module, which is what fvcore traces."""

    def __init__(self, model: nn.Module, name: str, function: Callable[..., Any], *inputs: Tensor):
        super().__init__()
        self.model = model
        self.name = name
        self.function = function
        self.inputs = inputs

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)

    def count(self) -> tuple[dict[str, Counter], Counter]:
        """Return FLOPs and activations of each part of the model, the rest under the stage's name; FLOPs by operator.

        What is done by CLIP's own modules is the rest, too: methods call them one by one.
        """
        analyses = {
            "flops": FlopCountAnalysis(self, self.inputs).set_op_handle(**FLOP_HANDLES),
            "activations": ActivationCountAnalysis(self, self.inputs).set_op_handle(**ACTIVATION_HANDLES),
        }
        for analysis in analyses.values():
            _trace(analysis)

        parts = {name: Counter() for name, _ in self.model.named_children() if name != "clip"}
        parts[self.name] = Counter()
        for key, analysis in analyses.items():
            by_module = analysis.by_module()
            for name in parts:
                parts[name][key] = by_module[f"model.{name}"]
            parts[self.name][key] = by_module[""] - sum(part[key] for part in parts.values())
        return {name: part for name, part in parts.items() if part["flops"]}, analyses["flops"].by_operator()


def _trace(analysis: JitModelAnalysis) -> None:
    """Run an analysis, whose operators count for all modules that call each other until there."""
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).ancestor_mode("caller")
    # torch's functional_call refuses to be traced, by which vision models get their position embeddings; and a count
    # is of the products that all devices know, not of those that this CPU favors
    never = partial(patch.object, return_value=False)
    with never(torch.jit, "is_tracing"), never(linear, "is_fp32_on_cpu"):
        analysis.total()


# Handles for what fvcore does not count, see fvcore.nn.jit_handles


def attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count FLOPs of scaled_dot_product_attention: queries [..., L, d] times keys [..., S, d], times values."""
    query, _, value = map(get_shape, inputs[:3])
    return prod(query) * value[-2] + prod(query[:-1]) * prod(value[-2:])


def matmul_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count FLOPs of a product; of a sparse matrix, each of its entries times the columns of the other one."""
    maker = inputs[0].node()
    if maker.kind() not in ("aten::sparse_compressed_tensor", "aten::sparse_csr_tensor"):
        return matmul_flop_jit(inputs, outputs)
    entries = get_shape(list(maker.inputs())[2])
    return prod(entries) * get_shape(inputs[1])[-1]


FLOP_HANDLES: Mapping[str, Callable] = {
    "aten::scaled_dot_product_attention": attention_flops,
    "aten::matmul": matmul_flops,
}
ACTIVATION_HANDLES: Mapping[str, Callable] = {
    "aten::scaled_dot_product_attention": generic_activation_jit("scaled_dot_product_attention"),
}
