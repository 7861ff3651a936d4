"""Small random models, exported once: a graph takes seconds to make."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tcl_d2.assets import FOLDER
from tcl_d2.data.shapes import draw_scene
from tcl_d2.export import CropScores, embed_vocabulary, make_card, save_onnx
from tcl_d2.predictor import TCLPredictor

if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
    collect_ignore_glob = ["test_*.py"]

CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 24, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 2514,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "tokenizer_kwargs": {"bpe_path": "bpe.txt.gz"},
    },
}
CLASSES, BACKGROUND = ["brick", ["lava", "fire"], "grass"], ["sky", "fire"]


def picture(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(draw_scene(7, 1).image).resize((width, height)))


@pytest.fixture(scope="package")
def clip_of(tmp_path_factory):
    """Write the model config of a CLIP of so many blocks: most graphs need no more than one, and take less time."""
    folder = tmp_path_factory.mktemp("clip")
    shutil.copy(FOLDER / "shapes_clip/bpe.txt.gz", folder)

    def write(layers: int) -> Path:
        path = folder / f"{layers}_blocks.json"
        path.write_text(json.dumps({**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "layers": layers}}))
        return path

    return write


@pytest.fixture(scope="package")
def build(clip_of):
    """Build the predictor of a small random model, in float32."""

    def build_predictor(*options: object, layers: int = 1) -> TCLPredictor:
        torch.manual_seed(0)
        clip = ("MODEL.CLIP.NAME", clip_of(layers), "MODEL.CLIP.PRETRAINED", "")
        windows = ("TEST.ZERO_SHOT.CROP_SIZE", 40, "TEST.ZERO_SHOT.STRIDE", 24, "INPUT.MIN_SIZE_TEST", 52)
        return TCLPredictor("shapes/tcl.yaml", *clip, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *windows, *options)

    return build_predictor


@pytest.fixture(scope="package")
def tcl(build):
    """A TCL with all that a graph may have: gates that are open, PAMR, and several words of a class."""
    pamr = ("TEST.ZERO_SHOT.PAMR.ITERS", 2, "TEST.ZERO_SHOT.PAMR.DILATIONS", "(1, 3)")
    words = ("TEST.ZERO_SHOT.BACKGROUND_SCORE", 0.2)
    predictor = build("MODEL.TCL.FREEZE", 1, "MODEL.TCL.DECODER_BLOCKS", 1, *pamr, *words, layers=2)
    with torch.no_grad():
        for block in predictor.model.grounder.decoder:
            block.conv1.gate.fill_(0.7)
            block.conv2.gate.fill_(-0.5)
    return predictor


@pytest.fixture(scope="package")
def tcl_onnx(tcl, shared_folder):
    """The TCL as an ONNX file, with its vocabulary, one for all workers."""
    with shared_folder("onnx") as folder:
        path = folder / "tcl.onnx"
        if not path.exists():
            vocabulary = embed_vocabulary(tcl.model, CLASSES, BACKGROUND)
            card = make_card(tcl.model, tcl.cfg, vocabulary=vocabulary.card)
            save_onnx(CropScores(tcl.model, vocabulary.text), path, card)
    return path
