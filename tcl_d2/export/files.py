"""Writing exported models: ONNX, torch.export's own format, and files of text embeddings; whole or not at all."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..deploy.card import KEY, EmbeddingsCard, ModelCard, write_card
from ..utils.files import replacing


def make_program(module: nn.Module, card: ModelCard) -> ExportedProgram:
    """Export a module for any number of crops, of any size from two patches on, and any number of words.

    Args:
        module: CropScores or CropLabels.
        card: of the model.
    """
    # Sizes of the example stand for any: no two are the same
    side = 4 * max(card.pad_to, card.patch_size)
    inputs, shapes = [torch.zeros(2, 3, side, side + side // 2)], [_crop_shape(card)]
    if card.vocabulary is None:
        inputs.append(torch.randn(3, card.embed_dim))
        shapes.append({0: Dim("words", min=1)})
    with torch.no_grad():
        return torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(shapes))


def _crop_shape(card: ModelCard) -> dict[int, Dim]:
    """Return which sides of crops may change: in whole multiples, where crops are padded to these."""
    height, width = Dim("height", min=2), Dim("width", min=2)
    multiple = card.pad_to if card.pad_to > 1 else card.patch_size
    return {0: Dim("batch", min=1), 2: multiple * height, 3: multiple * width}


def save_program(module: nn.Module, path: Path, card: ModelCard) -> None:
    """Write a module as torch.export.load reads it (.pt2), with the card in its file KEY.

    Args:
        module: CropScores or CropLabels.
        path: of the file.
        card: of the model.
    """
    program = make_program(module, card)
    with replacing(path) as unfinished:
        torch.export.save(program, unfinished, extra_files={KEY: write_card(card)})


def save_onnx(module: nn.Module, path: Path, card: ModelCard, int8: bool = False) -> None:
    """Write a module as an ONNX file, with the card in its metadata.

    Args:
        module: CropScores or CropLabels.
        path: of the file.
        card: of the model.
        int8: whether to hold the weights of linear layers in 8 bits.
    """
    names = ["images"] if card.vocabulary is not None else ["images", "text"]
    exported = torch.onnx.export(
        make_program(module, card),
        input_names=names,
        output_names=[card.output],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    exported.model.metadata_props[KEY] = write_card(card)
    with replacing(path) as unfinished:
        exported.save(unfinished)
        if int8:
            _quantize(unfinished)


def _quantize(path: Path) -> None:
    """Quantize the linear layers of an ONNX file, in place: their weights to 8 bits, activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, path, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)


def save_embeddings(path: Path, text: Tensor, card: EmbeddingsCard) -> None:
    """Write text embeddings as an .npz file, with their card.

    Args:
        path: of the file.
        text: text features [W, D].
        card: of their vocabulary.
    """
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, text=text.float().cpu().numpy(), card=write_card(card))
