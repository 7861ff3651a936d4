"""Writing exported models: ONNX, torch.export's own format, and files of text embeddings; whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..deploy.card import FORMAT, KEY, EmbeddingsCard, ModelCard, write_card
from ..utils.files import BLANK, digest_file, replacing

_LARGEST = 2_000_000_000  # bytes of weights in an ONNX file, which can have 2 GiB; more lie in a file beside it


def make_program(module: nn.Module, card: ModelCard) -> ExportedProgram:
    """Export CropScores or CropLabels for any number of crops, of any size from two patches on, and of words."""
    # Sizes of the example stand for any: no two are the same
    side = 4 * max(card.pad_to, card.patch_size)
    multiple = card.pad_to if card.pad_to > 1 else card.patch_size
    height, width = multiple * Dim("height", min=2), multiple * Dim("width", min=2)
    inputs, shapes = [torch.zeros(2, 3, side, side + side // 2)], [{0: Dim("batch", min=1), 2: height, 3: width}]
    if card.vocabulary is None:
        inputs.append(torch.randn(3, card.embed_dim))
        shapes.append({0: Dim("words", min=1)})
    with torch.no_grad():
        return torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(shapes))


def save_program(module: nn.Module, path: Path, card: ModelCard) -> None:
    """Write CropScores or CropLabels as torch.export.load reads them (.pt2), with the card in the file KEY."""
    program = make_program(module, card)
    with replacing(path) as unfinished:
        torch.export.save(program, unfinished, extra_files={KEY: write_card(card)})


def save_onnx(module: nn.Module, path: Path, card: ModelCard, int8: bool = False) -> None:
    """Write CropScores or CropLabels as an ONNX file, with the card in its metadata.

    Args:
        path: weights of more than 2 GB go to PATH.data beside it.
        int8: whether to hold the weights of linear layers in 8 bits.
    """
    import onnx_ir  # which torch.onnx needs, too

    names = ["images"] if card.vocabulary is not None else ["images", "text"]
    exported: Any = torch.onnx.export(
        make_program(module, card),
        input_names=names,
        output_names=[card.output],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    exported.model.metadata_props[KEY] = write_card(card)
    size = sum(weight.const_value.nbytes for weight in exported.model.graph.initializers.values())
    external_data = f"{path.name}.data" if size > _LARGEST else None
    with replacing(path) as unfinished:
        onnx_ir.save(exported.model, unfinished, external_data=external_data)
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            # Activations are quantized on the fly
            quantize_dynamic(unfinished, unfinished, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # all are in the file now
        add_checksums(unfinished)


def add_checksums(path: str | Path) -> None:
    """Update the checksums in an exported ONNX file's card after a change; ValueError if it has no card."""
    import onnx

    # Find the card, and the files beside
    path = Path(path)
    model = onnx.load(path, load_external_data=False)
    entry = next((entry for entry in model.metadata_props if entry.key == KEY), None)
    if entry is None:
        raise ValueError(f"'{path}' does not say how it is used: expected a file that this project exported")
    names = {item.value for each in model.graph.initializer for item in each.external_data if item.key == "location"}

    # The file's own checksum comes last, in the place of a blank one
    digests = {name: digest_file(path.with_name(name)) for name in sorted(names)}
    card = {**json.loads(entry.value), "format": FORMAT, "sha256": BLANK, "external_data": digests}
    entry.value = json.dumps(card)
    with replacing(path) as unfinished:
        onnx.save(model, unfinished)
        content, digest = unfinished.read_bytes(), digest_file(unfinished)
        before, after = f'"sha256": "{BLANK}"'.encode(), f'"sha256": "{digest}"'.encode()
        unfinished.write_bytes(content.replace(before, after))


def save_embeddings(path: Path, text: Tensor, card: EmbeddingsCard) -> None:
    """Write text features [W, D] as an .npz file, with their card."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, text=text.float().cpu().numpy(), card=write_card(card))
