"""Counts of parameters, FLOPs and activations, against counts by hand; and the command that prints them."""

import pytest
import torch
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.commands import analyze_model
from tcl_d2.commands.options.analyze_model import argument_parser
from tcl_d2.evaluation.complexity import (
    OperatorCounter,
    build_without_weights,
    count_operations,
    count_parameters,
    image_input,
)
from tcl_d2.modeling import PAMR
from tests.conftest import ROOT
from tests.golden import groupvit as golden_groupvit
from tests.running import check_error, run

SMALL = ["MODEL.DEVICE", "cpu", "TEST.ZERO_SHOT.TEXT_CACHE", ""]


def count(config: str, *options: object, words: int = 5):
    cfg = load_config(ROOT / "configs" / config, [*SMALL, *options])
    model = build_without_weights(cfg)
    return model, count_operations(model, image_input(cfg, 96, 96), words)


def test_attention_by_hand():
    """Queries times keys, then attention times values."""
    query, key, value = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 7, 4), torch.rand(2, 3, 7, 4)
    with OperatorCounter() as counter:
        F.scaled_dot_product_attention(query, key, value)
    assert counter.total["flops"] == counter.by_operator["attention"] == 2 * 3 * (5 * 7 * 4 + 5 * 7 * 4)


def test_sparse_product_by_hand():
    """8 neighbors a dilation for each pixel, times the masks, in each iteration."""
    pamr = PAMR(iterations=3, dilations=(1, 2))
    with OperatorCounter() as counter:
        pamr(torch.rand(1, 3, 12, 10), torch.rand(1, 4, 6, 5))
    assert counter.by_operator == {"mm": 3 * (2 * 8 * 30) * 4}


def test_image_encoder_by_hand():
    """MaskCLIP on one window of 48 x 48: all blocks but the last attend, which has values, output and MLP alone."""
    model, operations = count("shapes/maskclip.yaml", "INPUT.MIN_SIZE_TEST", 48)
    assert (operations.windows, operations.window_size) == (1, (48, 48))
    visual, depth = model.clip.visual, len(model.clip.blocks)
    width, patch = visual.conv1.out_channels, model.clip.patch_size
    tokens = (48 // patch) ** 2 + 1
    mlp = model.clip.blocks[0].mlp.c_fc.out_features // width  # times the width

    assert operations.by_operator["convolution"] == (tokens - 1) * width * 3 * patch**2
    blocks = (depth - 1) * (4 + 2 * mlp) + (2 + 2 * mlp)
    to_text_space = tokens * width * model.clip.embed_dim
    linear = operations.by_operator["addmm"] + operations.by_operator["mm"] - operations.by_part["refiner"]["flops"]
    assert linear == blocks * tokens * width**2 + to_text_space
    assert operations.by_operator["attention"] == (depth - 1) * 2 * tokens**2 * width
    assert operations.by_part["scores"]["flops"] >= 5 * (tokens - 1) * model.clip.embed_dim


@pytest.mark.parametrize(
    "config, options, parts",
    [
        ("shapes/tcl.yaml", [], {"clip", "grounder", "kp_head", "sim2mask", "scores", "refiner"}),
        ("shapes/dense_clip.yaml", ["MODEL.DENSE_CLIP.KEY_SMOOTHING", 1.0], {"clip", "head", "scores"}),
        (
            "shapes/dense_clip.yaml",
            ["MODEL.DENSE_CLIP.HEAD", "proxyclip", "MODEL.DENSE_CLIP.PROXY.NAME", "vit_tiny_patch16_224"],
            {"clip", "head", "scores"},
        ),
        (
            "shapes/dense_clip.yaml",
            ["TEST.ZERO_SHOT.REFINE", "pamr", "TEST.ZERO_SHOT.PAMR.WHOLE_IMAGE", True],
            {"clip", "head", "scores", "refiner"},
        ),
        ("shapes/clip_dinoiser.yaml", [], {"clip", "head", "scores"}),
        ("shapes/talk2dino.yaml", [], {"vision", "scores"}),
        ("shapes/talk2dino.yaml", ["MODEL.TALK2DINO.CLEANING", 0.2], {"clip", "scores"}),
        ("shapes/reco.yaml", ["MODEL.RECO.INDEX", "none"], {"clip", "head", "scores"}),
        (
            "shapes/reco.yaml",
            ["MODEL.RECO.ENCODER.NAME", "deit_tiny_distilled_patch16_224", "MODEL.RECO.IMAGE_SIZE", 48],
            {"clip", "head", "encoder", "scores"},
        ),
    ],
)
def test_every_method_is_counted(config, options, parts):
    """Without weights, an archive or a network; parts add up to what the operators do."""
    _, operations = count(config, *options)
    assert set(operations.by_part) == parts
    assert sum(part["flops"] for part in operations.by_part.values()) == sum(operations.by_operator.values())
    assert all(part["activations"] > 0 for part in operations.by_part.values()) and operations.text > 0


def test_groups_are_counted():
    """GroupViT's, on the small model of the golden figures."""
    pytest.importorskip("transformers")
    model = golden_groupvit.build_model()
    model.tokenizer = lambda texts: torch.ones(len(texts), 8, dtype=torch.int64)
    image = next(iter(golden_groupvit.load()["images"].values()))[0].float()
    operations = count_operations(model, {"image": image, "height": image.shape[1], "width": image.shape[2]}, 5)
    assert operations.by_part["clip"]["flops"] > operations.by_part["scores"]["flops"] > 0 and operations.text > 0


def test_windows_and_words_multiply():
    _, single = count("shapes/tcl.yaml", "INPUT.MIN_SIZE_TEST", 48)
    _, four = count("shapes/tcl.yaml", "INPUT.MIN_SIZE_TEST", 72)
    assert four.windows == 4 and four.by_part["grounder"]["flops"] == 4 * single.by_part["grounder"]["flops"]
    _, words = count("shapes/tcl.yaml", "INPUT.MIN_SIZE_TEST", 48, words=10)
    assert words.by_part["refiner"]["activations"] == 2 * single.by_part["refiner"]["activations"]
    assert words.by_part["clip"] == single.by_part["clip"]


def test_parameters_are_frozen_or_trained():
    """TCL's copied blocks count as trained where a second stage trains them; ProxyCLIP's vision model counts too."""
    trained = {}
    for iteration in (-1, 2):
        cfg = load_config(ROOT / "configs/shapes/tcl.yaml", [*SMALL, "MODEL.TCL.UNFREEZE_ITER", iteration])
        model = build_without_weights(cfg)
        counts = count_parameters(model)
        assert sum(part.total() for part in counts.values()) == sum(p.numel() for p in model.parameters())
        assert counts["clip"]["trained"] == 0
        trained[iteration] = counts["grounder"]["trained"]
    assert trained[2] - trained[-1] == sum(p.numel() for p in model.grounder.blocks.parameters()) > 0

    head = ["MODEL.DENSE_CLIP.HEAD", "proxyclip", "MODEL.DENSE_CLIP.PROXY.NAME", "vit_tiny_patch16_224"]
    model = build_without_weights(load_config(ROOT / "configs/shapes/dense_clip.yaml", [*SMALL, *head]))
    assert count_parameters(model)["head"]["frozen"] == sum(p.numel() for p in model.head.vision.model.parameters())


def test_command_prints_a_model_or_a_table(world):
    script = ["-m", "tcl_d2", "analyze-model", "--image-size", 96, 96, "--config-file", "configs/shapes/tcl.yaml"]
    done = run(world, *script)
    assert done.returncode == 0, done.stderr
    assert "| grounder |" in done.stdout and "| attention   |" in done.stdout
    done = run(world, *script, "shapes/maskclip.yaml", "--tasks", "parameter", "flop")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 4, done.stderr
    assert done.stdout.splitlines()[3].startswith("| shapes/maskclip.yaml ") and "activations" not in done.stdout

    check_error(run(world, *script, "shapes/none.yaml"), "no config 'shapes/none.yaml'")
    check_error(run(world, *script, "--words", 0), "--words and --num-inputs are at least 1")


def test_speed_and_memory_are_measured():
    words = ["--config-file", "shapes/reco.yaml", "--tasks", "speed", "memory", "-n", "2", "--image-size", "48", "64"]
    args = argument_parser().parse_args(words)
    summary = analyze_model.analyze("shapes/reco.yaml", args).summary
    assert list(summary) == ["config", "images a second", "peak memory, MB"]
    assert summary["images a second"] > 0 and summary["peak memory, MB"] > 50
