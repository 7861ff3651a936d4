"""Counts of a model's parameters, FLOPs and activations by part, whatever its weights.

As in Detectron2, a FLOP is a multiplication with its addition, activations are outputs of convolutions and products,
and elementwise operators count nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from ..data.benchmarks import image_settings, model_input
from ..modeling import TCL, ReCo, ZeroShotSegmentor
from ..modeling.encoders import linear
from ..modeling.encoders.vision import VisionEncoder
from ..modeling.functional import map_size
from ..modeling.reco.model import ReCoFeatures
from ..modeling.segmentor.windows import Windows
from ..utils.upstream import TorchDispatchMode, flop_registry

_WEIGHTS = (
    *("CLIP.PRETRAINED", "DENSE_CLIP.PROXY.PRETRAINED", "DENSE_CLIP.DINOISER.WEIGHTS"),
    *("RECO.ENCODER.PRETRAINED", "GROUPVIT.WEIGHTS", "TIPS.PRETRAINED", "TIPS.TEXT", "TIPS.TOKENIZER"),
    *("DINO_TXT.PRETRAINED", "TALK2DINO.PRETRAINED", "TALK2DINO.PROJECTION"),
)


def build_without_weights(cfg: CfgNode) -> ZeroShotSegmentor:
    """Build a model with random weights, which cost the same: nothing is downloaded or read.

    ReCo gets random reference embeddings, TCL is as in its second stage if it has one.
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


def _with_random_references(features: ReCoFeatures, text: Tensor) -> ReCoFeatures:
    return features._replace(references=torch.randn(len(text), features.embedding.shape[1], device=text.device))


def image_input(cfg: CfgNode, height: int, width: int) -> dict:
    """Return the model's input for a random image."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return {**model_input(image, **image_settings(cfg)), "labels_only": True}


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
    """Counts of one image.

    Attributes:
        window_size: height and width in pixels.
        by_part: {part: {"flops": count, "activations": count}}; "scores" are from features to the scores of words.
        by_operator: FLOPs.
        text: FLOPs of one prompt.
    """

    windows: int
    window_size: tuple[int, int]
    by_part: dict[str, Counter]
    by_operator: Counter
    text: int


def count_operations(model: ZeroShotSegmentor, inputs: dict, num_words: int) -> Operations:
    """Count what a model in eval mode computes for an image (see image_input) and `num_words` words."""
    image = model.normalize_images([inputs["image"]])[0]
    windows = Windows(image, model.crop_size, model.stride)
    rows, columns = windows.slices[0]
    tokens = model.tokenizer(["a photo of a cat"]).to(model.device)

    # Products that all devices know are counted, not those that this CPU favors
    model.set_text_embeddings(torch.randn(num_words, model.clip.embed_dim))
    with torch.no_grad(), patch.object(linear, "is_fp32_on_cpu", return_value=False):
        by_part, by_operator = _count_image(model, inputs)
        with OperatorCounter() as text:
            model.clip.encode_text(tokens)
    window_size = map_size(image[:, rows, columns])
    return Operations(len(windows.slices), window_size, by_part, by_operator, text.total["flops"])


def _count_image(model: ZeroShotSegmentor, inputs: dict) -> tuple[dict[str, Counter], Counter]:
    """Segment an image; return FLOPs and activations of each part, and FLOPs by operator.

    Work outside of the model's own modules counts as CLIP's until there are features, and as "scores" after that.
    """
    counter = OperatorCounter()
    modules = {name: module for name, module in model.named_children() if name != "clip"}
    parts = {name: Counter() for name in (*modules, "clip")}
    bind_refiner = counter.attribute(model.bind_refiner, parts.get("refiner", Counter()))

    def bind(*args: object) -> Callable[[Tensor], Tensor]:
        return counter.attribute(bind_refiner(*args), parts["refiner"])

    # Segment
    with ExitStack() as patches:
        for name, module in modules.items():
            forward = counter.attribute(module.forward, parts[name])
            patches.enter_context(patch.object(module, "forward", forward))
        if model.refiner is not None:
            patches.enter_context(patch.object(model, "bind_refiner", bind))
        encode = counter.attribute(model.encode_crops, parts["clip"], without=[parts[name] for name in modules])
        patches.enter_context(patch.object(model, "encode_crops", encode))
        with counter:
            model([inputs])

    parts["scores"] = counter.total - sum(parts.values(), Counter())
    return {name: part for name, part in parts.items() if part["flops"]}, counter.by_operator


class OperatorCounter(TorchDispatchMode):
    """Counts in its block: `total` is {"flops": count, "activations": count}, `by_operator` has the FLOPs."""

    def __init__(self):
        super().__init__()
        self.total = Counter()
        self.by_operator = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        formula = FORMULAS.get(operator.overloadpacket)
        if formula is not None:
            output = result[0] if isinstance(result, tuple) else result  # attention gives its statistics too
            if args[0].layout is torch.sparse_csr:  # each entry times the columns of the other matrix
                flops = args[0].values().numel() * args[1].shape[-1]
            else:
                flops = formula(*args, **(kwargs or {}), out_val=output) // 2
            self.total.update(flops=flops, activations=output.numel())
            name = operator.overloadpacket.__name__
            self.by_operator["attention" if "attention" in name else name] += flops
        return result

    def attribute(self, function: Callable, part: Counter, without: Sequence[Counter] = ()) -> Callable:
        """Return the function wrapped: what its calls compute, less the parts `without`, is added to `part`."""

        def count() -> Counter:
            return self.total - sum(without, Counter())

        @wraps(function)
        def counted(*args: object, **kwargs: object) -> object:
            before = count()
            result = function(*args, **kwargs)
            part.update(count() - before)
            return result

        return counted


# Torch's formulas, which count a multiplication and its addition as two; they lack the CPU's attention
_ATEN = torch.ops.aten
FORMULAS = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
}
