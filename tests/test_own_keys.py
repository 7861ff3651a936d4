"""Keys of a project's own code: they are in every configuration that is made after it was imported."""

from pathlib import Path

import pytest

from tcl_d2 import load_config
from tcl_d2.config import add_key, keys, ranges
from tests import running

CODE = """
import torch
from tcl_d2.config import Range, add_key
from tcl_d2.modeling import DENSE_HEAD_REGISTRY, DenseHead
from tcl_d2.modeling.losses import TCL_LOSS_REGISTRY, LossHead

add_key("MODEL.TCL.LOSS_WEIGHT.MY_AREA", 0.25, "Weight of MyArea.", Range(least=0))
add_key("MODEL.DENSE_CLIP.MINE.TAU", 2.0, "Temperature of my head.", Range(above=0))


@TCL_LOSS_REGISTRY.register()
class MyArea(LossHead):
    name, weight_key, needs = "loss_my_area", "MY_AREA", ("area",)

    def loss(self, grounding):
        return grounding.area.square().mean()


class MyHead(DenseHead):
    def __init__(self, tau):
        super().__init__()
        self.tau = tau

    def attend(self, query, key, value, grid):
        return (self.tau * key @ key.transpose(-1, -2)).softmax(-1) @ value


@DENSE_HEAD_REGISTRY.register()
def mine(cfg):
    return MyHead(cfg.MODEL.DENSE_CLIP.MINE.TAU)
"""


@pytest.fixture
def restored(monkeypatch):
    """Forget the keys that a test adds."""
    monkeypatch.setattr(keys, "_C", keys.tcl_keys())
    monkeypatch.setattr(keys, "ADDED", {})
    for name in list(ranges.RANGES):
        monkeypatch.setitem(ranges.RANGES, name, ranges.RANGES[name])


def test_a_key_is_in_every_later_configuration(restored):
    before = load_config()
    add_key("MODEL.DENSE_CLIP.TAU", 0.1, "A temperature.")
    add_key("MODEL.DENSE_CLIP.TAU", 0.1, "A temperature.")  # a file may be imported twice
    assert "TAU" not in before.MODEL.DENSE_CLIP and load_config().MODEL.DENSE_CLIP.TAU == 0.1
    assert load_config("shapes/dense_clip.yaml", ["MODEL.DENSE_CLIP.TAU", "1"]).MODEL.DENSE_CLIP.TAU == 1.0


@pytest.mark.fault("a key of one's own that there is already, or in the place of a value", "it is named at once")
@pytest.mark.parametrize(
    "name, message",
    [
        ("SOLVER.BASE_LR", "SOLVER.BASE_LR is there already"),
        ("MODEL.CLIP.NAME", "MODEL.CLIP.NAME is there already"),
        ("MODEL.CLIP.NAME.MINE", "MODEL.CLIP.NAME is a value"),
    ],
)
def test_keys_that_are_taken_are_refused(restored, name, message):
    with pytest.raises(ValueError, match=message):
        add_key(name, 12345.0, "Mine.")


@pytest.mark.fault("a key that does not exist", "the error names the nearest one, or how to add one's own")
def test_unknown_keys_have_a_hint():
    with pytest.raises(KeyError, match="did you mean TEST.ZERO_SHOT.CROP_SIZE"):
        load_config(None, ["TEST.ZERO_SHOT.CROP_SIZ", 3])
    with pytest.raises(KeyError, match="MY_PART.*add_key.*--import"):
        load_config(None, ["MY_PART", 3])


def run(world: Path, *words: object) -> str:
    done = running.run(world, "-m", "tcl_d2", *words)
    return done.stdout + done.stderr


def test_keys_are_listed_with_those_of_imported_code(in_world, tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    listed = run(in_world, "keys", "mine.tau", "--import", tmp_path / "mine.py")
    assert "MODEL.DENSE_CLIP.MINE.TAU 2.0  (more than 0)" in listed and "Temperature of my head." in listed


def test_parts_with_numbers_of_their_own_train(in_world, tmp_path):
    """Named by IMPORTS, in a config and in that which a training wrote."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "top.yaml").write_text(
        f"_BASE_: shapes/tcl.yaml\nIMPORTS: [{tmp_path}/mine.py]\n"
        "MODEL: {TCL: {EXTRA_LOSS_HEADS: [MyArea], KP_HEAD: mine, LOSS_WEIGHT: {MY_AREA: 0.5}}}\n"
        "SOLVER: {MAX_ITER: 1, WARMUP_ITERS: 0, IMS_PER_BATCH: 2}\n"
        "DATALOADER: {NUM_WORKERS: 0}\nDATASETS: {TEST: [], VAL: []}\n"
    )
    printed = run(in_world, "train", "--config-file", tmp_path / "top.yaml", "OUTPUT_DIR", tmp_path / "out")
    assert "loss_my_area" in printed

    config = tmp_path / "out/config.yaml"
    printed = run(in_world, "train", "--config-file", config, "MODEL.DENSE_CLIP.MINE.TAU", -1.0)
    assert "MODEL.DENSE_CLIP.MINE.TAU is -1.0; expected more than 0" in printed
