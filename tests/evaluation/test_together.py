"""Several models in one pass over the images: labels as one by one, shared results, going on, and costs."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.engine import Trainer
from tcl_d2.evaluation.cost import CostMeter
from tcl_d2.evaluation.together import group_configs
from tcl_d2.modeling.encoders import clip as clip_module
from tcl_d2.modeling.encoders import shared_results
from tcl_d2.modeling.encoders.shared_results import SharedResults
from tests.conftest import ROOT

HEADS = ("clip", "maskclip", "sclip", "clearclip", "naclip")
FEW = ["DATASETS.TEST", "('shapes_val',)", "DATALOADER.NUM_WORKERS", 0, "TEST.ZERO_SHOT.MAX_IMAGES", 3]
FEW += ["TEST.ZERO_SHOT.IMS_PER_BATCH", 1, "TEST.ZERO_SHOT.SAVE_PREDICTIONS", True, "SEED", 1]


@pytest.fixture
def make_cfg(in_world, tmp_path):
    def make(name: str, *options: object, folder: str = "together"):
        is_head = name in (*HEADS, "clip_dinoiser")
        file = f"configs/shapes/{'dense_clip' if is_head else name}.yaml"
        head = ["MODEL.DENSE_CLIP.HEAD", name] if is_head else []
        output = tmp_path / folder / "_".join(map(str, [name, *options]))
        return load_config(ROOT / file, [*FEW, "TEST.ZERO_SHOT.REFINE", "none", "OUTPUT_DIR", output, *head, *options])

    return make


def build(cfgs) -> list:
    """The models, each on what it has in common with those before."""
    models = []
    for cfg in cfgs:
        torch.manual_seed(1)
        model = Trainer.build_model(cfg).eval()
        if cfg.MODEL.WEIGHTS:
            TCLCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        for other in models:
            model.share_weights(other)
        models.append(model)
    return models


def files(cfg) -> dict[str, bytes]:
    """What an evaluation has written: labels and figures."""
    folder = Path(cfg.OUTPUT_DIR)
    labels = {path.name: path.read_bytes() for path in folder.glob("inference/*/predictions/*.png")}
    return {**labels, "results.json": (folder / "results.json").read_bytes()}


SETTINGS = [
    ("trained",),
    ("trained", "TEST.ZERO_SHOT.KP_WEIGHT", 0.0),
    ("trained", "TEST.ZERO_SHOT.REFINE", "pamr"),
    ("trained", "TEST.ZERO_SHOT.TEMPLATES", ["{}"], "TEST.ZERO_SHOT.BACKGROUND_SCORE", 0.1),
]


def test_models_in_one_pass_give_the_labels_of_each_alone(make_cfg, monkeypatch):
    jobs = [*((name,) for name in (*HEADS, "clip_dinoiser", "maskclip")), *SETTINGS]
    cfgs = [make_cfg(*job) for job in jobs]
    models = build(cfgs)
    assert len({id(model.clip) for model in models}) == 1 and len({id(model.grounder) for model in models[-4:]}) == 1
    blocks, run_block = [], clip_module.run_block
    monkeypatch.setattr(clip_module, "run_block", lambda *args: blocks.append(0) or run_block(*args))
    Trainer.test_together(cfgs, models, resume=False)
    together = len(blocks)
    assert models[0].clip.results.spared > 0 and not models[0].clip.results.are_kept

    for job, expected in zip(jobs, map(files, cfgs)):
        cfg = make_cfg(*job, folder="alone")
        Trainer.test(cfg, *build([cfg]))
        assert len(expected) == 4 and files(cfg) == expected, job
    alone = len(blocks) - together
    assert together < 0.35 * alone
    assert sum(model.clip.results.spared for model in build(cfgs[:1])) == 0


@pytest.mark.fault("a stopped evaluation of several models, of which one was done before", "it goes on where each was")
def test_stopped_pass_goes_on(make_cfg):
    jobs = [("maskclip",), ("naclip",), ("trained",)]
    cfgs = [make_cfg(*job) for job in jobs]
    Trainer.test(cfgs[0], *build(cfgs[:1]), resume=True)

    # Stop the others within the second image
    models, calls = build(cfgs), []

    def stop(*_: object) -> None:
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    for model in models:
        model.register_forward_pre_hook(stop)
    with pytest.raises(SystemExit) as stopped:
        Trainer.test_together(cfgs, models, resume=True)
    assert stopped.value.code == 128 + signal.SIGINT and len(calls) == 4  # two images of two models

    # Go on, after one of them has lost what it had done
    (progress,) = Path(cfgs[1].OUTPUT_DIR).glob("inference/*/progress_0.npz")
    progress.unlink()
    models, calls = build(cfgs), []
    for model in models:
        model.register_forward_pre_hook(lambda model, _: calls.append(models.index(model)))
    Trainer.test_together(cfgs, models, resume=True)
    assert calls == [1, 1, 1, 2]
    for job, cfg in zip(jobs, cfgs):
        alone = make_cfg(*job, folder="alone")
        Trainer.test(alone, *build([alone]))
        assert files(alone) == files(cfg)


def test_configs_are_grouped_by_what_they_share(make_cfg):
    cfgs = {
        "naclip": make_cfg("naclip"),
        "groupvit": make_cfg("groupvit"),
        "stride": make_cfg("naclip", "TEST.ZERO_SHOT.STRIDE", 48),
        "trained": make_cfg("trained"),
        "by_dataset": make_cfg("trained", "TEST.ZERO_SHOT.BY_DATASET", {"shapes_val": ["INPUT.MIN_SIZE_TEST", 72]}),
        "again": make_cfg("groupvit", "TEST.ZERO_SHOT.BACKGROUND_SCORE", 0.2),
        "bfloat16": make_cfg("naclip", "TEST.ZERO_SHOT.PRECISION", "bfloat16"),
        "pamr": make_cfg("naclip", "TEST.ZERO_SHOT.REFINE", "pamr"),
    }
    groups = group_configs(cfgs)
    assert groups == [["naclip", "trained", "pamr"], ["groupvit"], ["stride"], ["by_dataset"], ["again"], ["bfloat16"]]


def test_other_weights_are_not_shared(make_cfg):
    first, second = build([make_cfg("trained"), make_cfg("maskclip")])
    other = build([make_cfg("trained")])[0]
    with torch.no_grad():
        other.clip.visual.proj[0, 0] += 1
        other.grounder.projection.weight[0, 0] += 1
    clip, grounder = other.clip, other.grounder
    other.share_weights(first)
    assert other.clip is clip and other.grounder is grounder and second.clip is first.clip


def test_shared_results_are_of_equal_tensors_within_their_block(monkeypatch):
    results, calls, x = SharedResults(), [], torch.arange(6.0)

    def double(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return 2 * x

    others = [x + 1, x.double(), x.view(2, 3)]
    results("a", double, x)
    for _ in range(2):
        with results.keep():
            for name, y in [("a", x), ("a", x.clone()), ("b", x), *(("a", y) for y in others)]:
                value = results(name, double, y)
                assert torch.equal(value, 2 * y) and value.dtype == y.dtype
    assert len(calls) == 1 + 2 * 5

    monkeypatch.setattr(shared_results, "_BYTES", 50)
    with results.keep():
        for y in (x, x + 1, x, x + 1):
            assert torch.equal(results("a", double, y), 2 * y)
    assert len(calls) == 11 + 3  # the second one had no room


def test_cost_counts_what_others_have_computed(make_cfg):
    model = build([make_cfg("maskclip")])[0]
    meter = CostMeter(model, {}, together=2)
    model.register_forward_pre_hook(
        lambda model, _: setattr(model.clip.results, "spared", model.clip.results.spared + 9)
    )
    for _ in range(3):
        model([{"image": torch.zeros(3, 48, 48)}])
    state = meter.state()
    assert state["images"] == 2 and 18 < state["seconds"] < 27 and state["together"] == 2
    assert CostMeter(model, state).state() == state  # nothing new was measured
    assert json.loads(json.dumps(state)) == state
