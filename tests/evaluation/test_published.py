"""Published figures: whole, from the papers' own tables, and found by the setting of an evaluation."""

import re

import pytest

from tcl_d2 import load_config
from tcl_d2.evaluation.published import PUBLISHED, PublishedRow, find_published, published_for
from tests.conftest import ROOT
from tests.data.test_benchmarks import EIGHT

SETTINGS = {  # method, backbone, PAMR, protocol -> the average over the eight that its source has
    ("TCL", "ViT-B-16", True, "unified"): 37.2,
    ("TCL", "ViT-B-16", False, "unified"): 33.9,
    ("MaskCLIP", "ViT-B-16", False, "unified"): 27.9,
    ("SCLIP", "ViT-B-16", False, "own"): 38.2,
    ("ClearCLIP", "ViT-B-16", False, "own"): 38.1,
    ("NACLIP", "ViT-B-16", False, "own"): 39.4,
    ("NACLIP", "ViT-B-16", True, "own"): 42.46,
    ("ProxyCLIP", "ViT-B-16", False, "own"): 42.3,
    ("ProxyCLIP", "ViT-H-14", False, "own"): 44.4,
    ("CLIP-DINOiser", "ViT-B-16", False, "own"): 40.3,
    ("LPOSS", "ViT-B-16", False, "own"): 41.3,
    ("Talk2DINO", "ViT-B-16", None, "own"): 46.3,
    ("Trident", "ViT-H-14", None, "own"): 48.6,
    ("CorrCLIP", "ViT-L-14", None, "own"): 53.6,
    ("OV-Stitcher", "ViT-L-14", None, "own"): 51.6,
}
LARGE = {"zeroshot_context459_val", "zeroshot_ade847_val"}


@pytest.mark.parametrize("setting", SETTINGS)
def test_figures_have_the_averages_of_their_sources(setting):
    first = find_published(*setting)[0]
    assert (first.method, first.backbone, first.pamr, first.protocol) == setting and len(first.miou) == 8
    assert sum(first.miou.values()) / 8 == pytest.approx(SETTINGS[setting], abs=0.051)


def test_every_row_is_of_known_benchmarks_and_says_its_source():
    for row in PUBLISHED:
        assert row.miou and set(row.miou) <= EIGHT.keys() | LARGE
        assert all(0 < value < 100 for value in row.miou.values())
        assert row.source and row.protocol and row.source in row.describe()
    assert len({row[:1] + row[2:] + tuple(row.miou.items()) for row in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize("pamr, said", [(True, "with PAMR, "), (False, "no PAMR, "), (None, "")])
def test_a_row_says_of_pamr_what_its_source_does(pamr, said):
    assert PublishedRow("X", {}, "a table", "own", pamr=pamr).describe() == f"X, {said}own protocol: a table"


def test_what_no_row_has_does_not_narrow():
    """A small CLIP, or another protocol, is compared with what there is."""
    assert find_published("tcl", "small", pamr=True, protocol="own") == find_published(
        "TCL", "ViT-B-16", True, "unified"
    )
    assert {row.backbone for row in find_published("SCLIP", "small", False, "own")} == {"ViT-B-16"}
    assert find_published("no such method", "ViT-B-16", False, "own") == []


def test_configurations_find_their_rows():
    configs = {"configs/tcl.yaml": 55.0, "configs/eval/no_pamr.yaml": 51.2, "configs/eval/official.yaml": 55.0}
    configs["configs/reco/reco.yaml"] = 25.1
    for config, value in configs.items():
        (row,) = published_for(load_config(ROOT / config))
        assert row.miou["zeroshot_voc_val"] == value
    rows = published_for(load_config(ROOT / "configs/tcl.yaml", ["MODEL.META_ARCHITECTURE", "MaskCLIP"]))
    assert [row.miou["zeroshot_voc_val"] for row in rows] == [38.8, 29.3]
    for config in ("configs/dense_clip/clip_dinoiser.yaml", "configs/unified/clip_dinoiser.yaml"):
        assert published_for(load_config(ROOT / config))[0].miou["zeroshot_voc_val"] == 62.1


@pytest.mark.parametrize("refine, method", [("lposs", "LPOSS"), ("lposs_plus", "LPOSS+")])
def test_methods_under_lposs_are_others(refine, method):
    rows = published_for(load_config(ROOT / f"configs/dense_clip/{refine}.yaml"))
    assert [row.method for row in rows] == ["LPOSS"] * (method == "LPOSS")  # of LPOSS+ only an average is known
    assert not published_for(load_config(ROOT / "configs/tcl.yaml", ["TEST.ZERO_SHOT.REFINE", refine]))


@pytest.mark.parametrize(
    "config, voc",
    [("yfcc", 49.5), ("redcaps", 50.4), ("yfcc_own_protocol", 52.3), ("redcaps_own_protocol", 50.8)],
)
def test_groupvits_find_the_row_of_their_weights(config, voc):
    (row,) = published_for(load_config(ROOT / f"configs/groupvit/{config}.yaml"))
    assert row.miou["zeroshot_voc_val"] == voc


def test_documentation_has_the_same_figures():
    """The table in MODEL_ZOO.md: each row begins with the figures of a row here."""
    table = (ROOT / "MODEL_ZOO.md").read_text().split("## Published")[1].split("\n## ")[0]
    rows = [[float(value) for value in re.findall(r"\| ([\d.]+)", line)] for line in table.splitlines()]
    rows = [row[:8] for row in rows if row]
    known = [[row.miou.get(name) for name in EIGHT] for row in PUBLISHED if row.protocol == "unified"]
    order = ("voc", "context", "coco_object", "voc20", "context59", "coco_stuff", "cityscapes", "ade20k")
    assert list(EIGHT) == [f"zeroshot_{name}_val" for name in order]
    assert len(rows) > 3 and all(row in known for row in rows)


def test_the_page_of_methods_has_the_means_of_these_rows():
    """docs/methods.md: the average, the method and what follows its name, the refiner, the protocol."""
    table = (ROOT / "docs/methods.md").read_text().split("## Published averages")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([\d.]+) \| ([\w-]+).*? \| (.+?) \| (.+?) \|", table, re.MULTILINE)
    assert len(rows) > 15
    for average, method, refiner, protocol in rows:
        pamr = None if refiner == "not said" else refiner == "PAMR"
        known = [row for row in PUBLISHED if row.method == method and row.pamr == pamr]
        means = [sum(row.miou.values()) / 8 for row in known if row.protocol == protocol and len(row.miou) == 8]
        assert any(mean == pytest.approx(float(average), abs=0.051) for mean in means), (method, average, means)


def test_the_page_of_methods_has_the_costs_of_the_model_zoo():
    table = (ROOT / "docs/methods.md").read_text().split("| GFLOPs |")[1].split("\n\n")[0]
    zoo = (ROOT / "MODEL_ZOO.md").read_text() + (ROOT / "docs/dense_clip.md").read_text()
    counted = {f"{float(value):.1f}" for value in re.findall(r"(?<=[ |])\d+\.\d+", zoo)}
    costs = re.findall(r"\d+\.\d", table)
    assert len(costs) == 12 and set(costs) <= counted
