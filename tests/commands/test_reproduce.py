"""`tcl-d2 reproduce`: everything but the network, with stand-ins for the models and the dataset on a server here."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tcl_d2 import load_config
from tcl_d2.checkpoint import read_checkpoint, to_official
from tcl_d2.commands import FIGURES
from tcl_d2.evaluation.published import PUBLISHED
from tcl_d2.utils.downloads import PathManager
from tests import running
from tests.conftest import ROOT
from tests.data import distributed
from tests.modeling.test_groupvit import write_hub_folder
from tests.web import serve

ARCHIVE = "VOCtrainval_11-May-2012.tar"
# The process of the user: the network is the server here, and PASCAL VOC has the miniature's four images
PROGRAM = """
import os
import sys
from dataclasses import replace

os.environ["FVCORE_CACHE"] = {cache!r}
from detectron2.data import MetadataCatalog
from huggingface_hub import constants

from tcl_d2 import commands
from tcl_d2.commands.prepare import voc
from tcl_d2.utils import downloads

downloads.PAUSES = ()
constants.HF_HUB_CACHE = {cache!r}
constants.ENDPOINT = {site!r}
constants.HUGGINGFACE_CO_URL_TEMPLATE = {site!r} + "/{{repo_id}}/resolve/{{revision}}/{{filename}}"
for name, count in (("voc_val", 3), ("voc20_val", 3), ("voc20_train", 1)):
    MetadataCatalog.get(f"zeroshot_{{name}}").__dict__["num_images"] = (count,)
release = replace(voc.VOC, address={site!r} + "/voc.tar")
voc.PREPARATION = replace(voc.PREPARATION, release=release)
commands.main({words!r})
"""
SMALL = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 48, "TEST.ZERO_SHOT.CROP_SIZE", 48, "TEST.ZERO_SHOT.STRIDE", 24]
SMALL += ["DATALOADER.NUM_WORKERS", 0, "TEST.ZERO_SHOT.TEXT_CACHE", ""]


@pytest.fixture
def site(tmp_path):
    """A server that has a miniature of PASCAL VOC."""
    distributed.voc(tmp_path / "distributed")
    with serve() as site:
        site.files["/voc.tar"] = (tmp_path / "distributed" / ARCHIVE).read_bytes()
        yield site


def run(site, tmp_path: Path, figure: str, *options: object) -> subprocess.CompletedProcess:
    words = ["reproduce", figure, *map(str, [*options, *SMALL, "OUTPUT_DIR", tmp_path / "output"])]
    program = PROGRAM.format(cache=str(tmp_path / "cache"), site=site.address, words=words)
    return running.run(tmp_path / "data", "-c", program)


def stand_in(figure: str, site, folder: Path) -> list[object]:
    """Put a small model on the server where the figure's model is, and return the options that small models need."""
    if figure == "groupvit":
        write_hub_folder(folder / "groupvit")
        for path in (folder / "groupvit").iterdir():
            site.files[f"/nvidia/groupvit-gcc-yfcc/resolve/main/{path.name}"] = path.read_bytes()
        return []

    # The small world's CLIP; its TCL in the official release's layout
    cfg = load_config(ROOT / "configs/shapes/trained.yaml")
    with PathManager.open(cfg.MODEL.CLIP.PRETRAINED, "rb") as file:
        site.files["/clip.safetensors"] = file.read()
    options = ["MODEL.CLIP.NAME", cfg.MODEL.CLIP.NAME, "MODEL.CLIP.PRETRAINED", f"{site.address}/clip.safetensors"]
    if figure == "maskclip":
        return options
    state = read_checkpoint(PathManager.get_local_path(cfg.MODEL.WEIGHTS))["model"]
    torch.save({"model": to_official(state, cfg.MODEL.TCL.FREEZE)}, folder / "tcl.pth")
    site.files["/tcl.pth"] = (folder / "tcl.pth").read_bytes()
    return [*options, "MODEL.TCL.FREEZE", cfg.MODEL.TCL.FREEZE, "MODEL.WEIGHTS", f"{site.address}/tcl.pth"]


@pytest.mark.parametrize("figure", FIGURES)
def test_model_and_data_are_downloaded_evaluated_and_compared(site, tmp_path, figure):
    (tmp_path / "data").mkdir()
    options = stand_in(figure, site, tmp_path)
    done = run(site, tmp_path, figure, *options)
    assert (tmp_path / "output/results.json").exists(), done.stderr
    report = json.loads((tmp_path / "output/results.json").read_text())
    (row,) = report["datasets"]
    assert (row["dataset"], row["images"], row["skipped"]) == ("zeroshot_voc_val", 3, 0), done.stderr
    assert report["published"][0]["miou"]["zeroshot_voc_val"] == row["published mIoU"]

    # A small model that saw no photo misses the published figure
    assert done.returncode == 1 and "Result verification failed" in done.stdout
    if figure != "maskclip":  # the quickest
        return

    # The figure that it has is that of a second run, which downloads nothing
    requests = site.paths()
    expected = [["zeroshot_voc_val", "mIoU", row["mIoU"], 1e-6]]
    done = run(site, tmp_path, figure, *options, "TEST.EXPECTED_RESULTS", expected)
    assert done.returncode == 0 and "Results verification passed" in done.stdout, done.stderr
    assert site.paths() == requests


@pytest.mark.fault("tcl-d2 reproduce without a network", "one error: what is missing, where it would lie, what to give")
def test_without_a_network_one_error_says_what_to_do(site, tmp_path):
    (tmp_path / "data").mkdir()
    options = stand_in("maskclip", site, tmp_path)
    del site.files["/voc.tar"]
    done = run(site, tmp_path, "maskclip", *options)
    running.check_error(done, "--source: ", "/voc.tar is not in the cache", f"{tmp_path}/cache", "HTTP 404")

    site.files["/voc.tar"] = b"no archive"
    running.check_error(run(site, tmp_path, "maskclip", *options), "voc.tar is broken, or no archive", "get it again")
    gone = ["MODEL.WEIGHTS", f"{site.address}/gone.pth"]
    running.check_error(run(site, tmp_path, "tcl", *options, *gone), "MODEL.WEIGHTS: ", "gone.pth", "could not be")


def test_expected_figures_are_the_published_ones():
    """Each configuration names a row's figure on the one benchmark that it evaluates."""
    for figure in FIGURES:
        cfg = load_config(ROOT / f"configs/reproduce/{figure}.yaml")
        ((dataset, metric, value, tolerance),) = cfg.TEST.EXPECTED_RESULTS
        assert (dataset,) == tuple(cfg.DATASETS.TEST) and metric == "mIoU" and 0.05 < tolerance <= 0.5
        rows = [row for row in PUBLISHED if row.protocol == "unified" and row.source.startswith("TCL paper")]
        assert value in [row.miou[dataset] for row in rows if row.method.lower() == figure], figure
