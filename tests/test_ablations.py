"""The paper's ablations: each config has the losses that it claims, and dev/shapes_ablations.py compares the order."""

import json
import sys

import pytest
import torch
from detectron2.modeling import build_model

from tcl_d2 import load_config, model_zoo
from tests import golden
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "dev"))
import shapes_ablations  # noqa: E402
import shapes_tv  # noqa: E402
from shapes_ablations import TABLES, Row, compare_order, train, train_all  # noqa: E402

AREA, TV = {"PositiveAreaLoss", "NegativeAreaLoss"}, {"ImageTVLoss", "MaskTVLoss"}
IMAGE, FEATURE, WHOLE_IMAGE = {"ImageTCLLoss"}, {"FeatureTCLLoss"}, {"WholeImageLoss"}
LOSSES = {
    "decoder_without_tcl": AREA | TV,
    "image_level": IMAGE | TV,
    "image_and_feature_level": IMAGE | FEATURE | TV,
    "image_level_and_area": IMAGE | AREA | TV,
    "feature_level_and_area": FEATURE | AREA | TV,
    "tcl_and_whole_image": IMAGE | FEATURE | AREA | TV | WHOLE_IMAGE,
    "whole_image": WHOLE_IMAGE | AREA | TV,
}
OTHERS = {"cc3m", "dense_clip", "without_kp", "without_pamr"}
GOOD, MIDDLE, BAD = Row("X", "good", "", (70.0,)), Row("Y", "middle", "", (60.0, 65.0)), Row("Z", "bad", "", (50.0,))


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    """Overrides that make the paper's CLIP a small one with random weights."""
    clip, _ = golden.write_clip(tmp_path_factory.mktemp("clip"))
    return ["MODEL.CLIP.NAME", clip, "MODEL.CLIP.PRETRAINED", "", "MODEL.TCL.FREEZE", 2, "MODEL.DEVICE", "cpu"]


@pytest.mark.parametrize("name", LOSSES)
def test_config_has_the_losses_that_it_claims(name, small_clip):
    """Losses that a batch then has; at the paper's scale and on the small world."""
    cfg, small_cfg = load_config(f"ablations/{name}.yaml", small_clip), load_config(f"shapes/ablations/{name}.yaml")
    paper, small_world = load_config("tcl.yaml", small_clip), load_config("shapes/tcl.yaml")
    model = build_model(cfg)
    assert set(model.losses) == LOSSES[name]
    images, tokens = torch.randn(2, 3, 16, 16), torch.ones(2, 77, dtype=torch.long)
    assert len(model.compute_losses(images, tokens)) == len(LOSSES[name])

    # Nothing else differs
    for ablation, full in ((cfg, paper), (small_cfg, small_world)):
        assert {*ablation.MODEL.TCL.LOSS_HEADS, *ablation.MODEL.TCL.EXTRA_LOSS_HEADS} == LOSSES[name]
        ablation.MODEL.TCL.LOSS_HEADS, ablation.MODEL.TCL.EXTRA_LOSS_HEADS = full.MODEL.TCL.LOSS_HEADS, []
        ablation.OUTPUT_DIR = full.OUTPUT_DIR
        assert ablation.dump() == full.dump()


def test_every_ablation_is_tested():
    names = {path.stem for path in (ROOT / "configs/ablations").glob("*.yaml")}
    assert names == LOSSES.keys() | OTHERS
    assert {path.stem for path in (ROOT / "configs/shapes/ablations").glob("*.yaml")} == LOSSES.keys() | {"without_tv"}


def test_ablations_of_data_and_evaluation(small_clip):
    cc3m, dense_clip, without_kp, without_pamr, full = (
        load_config(name, small_clip)
        for name in (*(f"ablations/{name}.yaml" for name in sorted(OTHERS)), "eval/pamr.yaml")
    )
    assert cc3m.DATASETS.TRAIN == ("cc3m_train",) and len(full.DATASETS.TRAIN) == 2
    assert type(build_model(dense_clip)).__name__ == "MaskCLIP"
    models = [build_model(cfg) for cfg in (without_kp, without_pamr, full)]
    assert [model.kp_weight > 0 for model in models] == [False, True, True]
    assert [model.refiner is not None for model in models] == [True, False, True]


def test_rows_name_configs():
    for row in (row for table in TABLES.values() for row in table):
        assert load_config(f"shapes/{row.config}").DATASETS.TEST == shapes_ablations.DATA


@pytest.mark.parametrize(
    "good, middle, bad, outcomes",
    [
        ([30.0, 31.0], [20.0, 21.0], [10.0, 11.0], ["yes", "yes", "yes"]),
        ([30.0, 31.0], [40.0, 41.0], [10.0, 11.0], ["no", "yes", "yes"]),
        ([30.0, 31.0], [30.5, 31.5], [10.0, 11.0], ["within the spread", "yes", "yes"]),
    ],
)
def test_differences_within_the_spread_say_nothing(good, middle, bad, outcomes):
    results = {GOOD: good, MIDDLE: middle, BAD: bad}
    lines = {
        names: (published, outcome) for names, published, _, outcome in compare_order((BAD, GOOD, MIDDLE), results)
    }
    pairs = ["good > middle", "good > bad", "middle > bad"]
    assert [lines[pair] for pair in pairs] == list(zip(["+5.0 to +10.0", "+20.0", "+10.0 to +15.0"], outcomes))


def test_pairs_of_unknown_published_order_are_left_out():
    unknown = Row("Y", "unknown", "", (60.0, 75.0))
    assert not list(compare_order((GOOD, unknown), {GOOD: [1.0], unknown: [2.0]}))


def write_run(folder, miou):
    folder.mkdir(parents=True)
    (folder / "model_final.pth").touch()
    results = {f"{data}/sem_seg/mIoU": miou for data in shapes_ablations.DATA}
    (folder / "metrics.json").write_text(
        json.dumps({"iteration": 0}) + "\n" + json.dumps({**results, "average/mIoU": 0})
    )


def test_only_what_is_missing_is_trained(tmp_path, monkeypatch):
    """The first seed of all recipes, then the second; results come by recipe, in the order of the seeds."""
    commands = []

    def run(command, **_):
        commands.append(command)
        write_run(tmp_path / command[-1] / f"8_{command[command.index('SEED') + 1]}", len(commands))
        return shapes_ablations.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shapes_ablations.subprocess, "run", run)
    write_run(tmp_path / "a" / "8_1", 50.0)
    recipes = {name: ("tcl.yaml", ["NAME", name]) for name in ("a", "b")}
    results = train_all(recipes, [1, 2], 8, tmp_path, jobs=1)
    assert [command[-1] for command in commands] == ["b", "a", "b"]
    assert {name: [run["shapes_val"] for run in runs] for name, runs in results.items()} == {"a": [50, 2], "b": [1, 3]}
    assert all(
        "--resume" in command and command[command.index("MODEL.TCL.UNFREEZE_ITER") + 1] == "6" for command in commands
    )


@pytest.mark.fault("a training of an ablation fails", "one message with its command and the end of its log")
def test_failed_training_ends_with_its_log(tmp_path, monkeypatch):
    done = shapes_ablations.subprocess.CompletedProcess([], 1, "", "error: no such thing")
    monkeypatch.setattr(shapes_ablations.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(
        SystemExit, match="(?s)train_net.py --config-file configs/shapes/tcl.yaml.* failed.*no such thing"
    ):
        train("tcl.yaml", [], 1, 8, tmp_path, threads=1)


def test_edges_of_labels():
    """Within so many pixels of another label, diagonals too; mIoU is then of these pixels, and of the others."""
    label = torch.zeros(6, 6)
    label[:, 3:] = 1
    assert shapes_tv.near_edges(label, 1).nonzero()[:, 1].unique().tolist() == [2, 3]
    assert shapes_tv.near_edges(label, 2).nonzero()[:, 1].unique().tolist() == [1, 2, 3, 4]

    evaluator = shapes_tv.EdgeEvaluator.__new__(shapes_tv.EdgeEvaluator)
    evaluator.class_names, evaluator._measures = ["left", "right"], ()
    evaluator.statistics = evaluator.empty_statistics()
    label = torch.zeros(20, 20, dtype=torch.long)
    label[:, 10:] = 1
    prediction = label.clone()
    prediction[:, 10] = 0  # one column of the ten near the edge
    evaluator.update_statistics(prediction, label)
    metrics = evaluator.compute_metrics(evaluator.statistics)
    assert metrics["inside"] == 100 and metrics["near edges"] == pytest.approx(100 * (4 / 5 + 3 / 4) / 2)
    assert metrics["near edges"] < metrics["mIoU"] < 100


def test_measures_of_the_world():
    at_image, at_masks, at_patches, of_objects, named = (
        int(share.rstrip(" %")) for _, share in shapes_tv.measure_world(10)
    )
    assert 0 < at_image < at_masks < at_patches < 100 and 0 < of_objects < named < 100


def test_total_variation_holds_gates_closed():
    """Whichever way a gate of the untrained decoder opens, total variation rises."""
    rows = shapes_tv.measure_gates(count=4)
    assert len(rows) == 4 and all(min(negative, positive) > 0.01 for _, negative, positive, _ in rows)
    assert all(gradient != 0 for *_, gradient in rows)


def test_measures_of_a_model():
    measures = shapes_tv.measure_model(model_zoo.get("shapes/tcl.yaml", trained=True, device="cpu"), count=8)
    assert 0 < measures["largest gate"] < 1 and measures["image TV"] > 0
    assert 0 < measures["other area"] < measures["area"] < 100
