"""The comparison of configurations: table, figure, costs, and going on where it was stopped."""

import csv
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tcl_d2.commands.compare import main
from tcl_d2.commands.options.compare import argument_parser
from tcl_d2.evaluation.comparison import Comparand, write_comparison
from tcl_d2.evaluation.cost import COST, CostMeter, read_cost
from tcl_d2.evaluation.published import find_published
from tests import running
from tests.conftest import ROOT

CONFIGS = [str(ROOT / f"configs/shapes/{name}.yaml") for name in ("maskclip", "trained")]
FEW = ["TEST.ZERO_SHOT.MAX_IMAGES", "4", "DATALOADER.NUM_WORKERS", "0", "TEST.ZERO_SHOT.REFINE", "none"]
CODED_NAMES = [("läva", "utf-8"), ("böse", "latin-1")]
FEW += ["TEST.ZERO_SHOT.IMS_PER_BATCH", "1"]


class Forked:
    """In place of a subprocess.Popen of Python: a process that needs no seconds of imports."""

    def __init__(self, command: list[str], **_: object):
        self._running = running.started(Path(os.environ["DETECTRON2_DATASETS"]), *command[1:])
        self._script = self._running.__enter__()

    @property
    def stdout(self) -> list[str]:
        return self._script.wait().stdout.splitlines(keepends=True)

    def send_signal(self, number: int) -> None:
        os.kill(self._script.pid, number)

    def wait(self) -> int:
        status = self._script.poll()
        self._running.__exit__(None, None, None)
        return status


@pytest.fixture
def forked(monkeypatch):
    monkeypatch.setattr("tcl_d2.commands.compare.subprocess", SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE))


def compare(output, *arguments: str, options: list[str] = FEW, configs: list[str] = CONFIGS) -> None:
    command = ["--configs", *configs, "--datasets", "shapes_val", "shapes_stuff_val", "--output", str(output)]
    main(argument_parser().parse_args([*command, *arguments, "--opts", *options]))


def costs(output) -> dict[str, dict]:
    """The cost of each configuration."""
    return {path.parent.name: read_cost(path.parent) for path in output.glob(f"*/{COST}")}


def results(output) -> dict[str, list]:
    """The results of each configuration that was evaluated."""
    return {path.parent.name: json.loads(path.read_text())["datasets"] for path in output.glob("*/results.json")}


def test_configs_are_compared_and_what_is_done_is_not_done_again(in_world, tmp_path, capsys, forked):
    options = [*FEW, "TEST.ZERO_SHOT.MEASURES", "['SoftIoU']"]
    compare(tmp_path, options=options)
    first, first_costs = results(tmp_path), costs(tmp_path)
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert [row["configuration"] for row in rows] == ["maskclip", "trained"]
    for row in rows:
        evaluated = json.loads((tmp_path / row["configuration"] / "results.json").read_text())
        for dataset_row in evaluated["datasets"]:
            assert float(row[dataset_row["dataset"]]) == dataset_row["mIoU"] and dataset_row["images"] == 4
        assert float(row["average"]) == pytest.approx(evaluated["average"]["mIoU"])
        assert float(row["average soft_mIoU"]) == pytest.approx(evaluated["average"]["soft_mIoU"])
        assert 0 < float(row["seconds per image"]) < 60 and 100 < float(row["peak memory in MB"]) < 10_000
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert (tmp_path / "comparison.md").read_text() in printed and "maskclip, trained: in one pass" in printed
    for log in (printed, *((tmp_path / name / "log.txt").read_text() for name in ("maskclip", "trained"))):
        assert log.count("Start inference on 4 batches") == 1

    # Again: no image goes through a model, so none is measured
    compare(tmp_path, options=options, configs=CONFIGS[:1])
    assert results(tmp_path) == first
    for name, cost in costs(tmp_path).items():
        assert cost["seconds"] == first_costs[name]["seconds"] and cost["images"] == 3


@pytest.mark.fault("a comparison is stopped by Ctrl-C", "the same command goes on, and ends with the same figures")
def test_stopped_comparison_goes_on(in_world, tmp_path, forked):
    options = [*FEW[2:], "TEST.ZERO_SHOT.MAX_IMAGES", "12"]

    def stop() -> None:
        log = tmp_path / "stopped/trained/log.txt"
        while not (log.exists() and "Start inference" in log.read_text()):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as stopped:
        compare(tmp_path / "stopped", options=options, configs=CONFIGS[1:])
    thread.join()
    assert stopped.value.code == 128 + signal.SIGINT
    before = costs(tmp_path / "stopped")["trained"]["images"]
    assert not results(tmp_path / "stopped")
    assert before < 11 and not (tmp_path / "stopped/comparison.md").exists()

    # Taken up
    for folder in ("stopped", "whole"):
        compare(tmp_path / folder, options=options, configs=CONFIGS[1:])
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    assert before < costs(tmp_path / "stopped")["trained"]["images"] <= 11


@pytest.mark.fault("a damaged file of what a comparison has measured", "taken for none")
@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_measurements_are_none(tmp_path, content):
    (tmp_path / COST).write_text(content)
    assert read_cost(tmp_path) == read_cost(tmp_path / "none") == {}


@pytest.mark.fault("a comparison of a config or dataset that is not there, or of two configs of one name", "one error")
@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--configs", "configs/none.yaml"], ["--configs configs/none.yaml"]),
        (["--configs", CONFIGS[0], CONFIGS[0]], ["--configs", "no two files of one name"]),
        (["--configs", CONFIGS[0], "--datasets", "shapes_val", "no_such_set"], ["'no_such_set' is not registered"]),
        (["--configs", CONFIGS[0], "--datasets", "/no/such"], ["/no/such"]),
        (["--configs", CONFIGS[0], "--opts", "MODEL.NONE", "1"], [f"--configs {CONFIGS[0]}", "MODEL.NONE"]),
        (["--configs", CONFIGS[0], "--opts", "MODEL.WEIGHTS", "/none.pth"], [f"--configs {CONFIGS[0]}", "'/none.pth'"]),
        (
            ["--configs", CONFIGS[0], "--opts", "DATASETS.TEST", "()"],
            [f"--configs {CONFIGS[0]}", "DATASETS.TEST is empty"],
        ),
        (["--configs", CONFIGS[0], "--opts", "TEST.ZERO_SHOT.TEMPLATES", "tlc"], [CONFIGS[0], "TEMPLATES: 'tlc'"]),
        (["--configs", CONFIGS[0], "--opts", "TEST.ZERO_SHOT.WORDS", "none.txt"], ["WORDS is 'none.txt'"]),
        (["--configs", CONFIGS[0], "--opts", "MODEL.DENSE_CLIP.HEAD", "none"], ["DENSE_CLIP.HEAD is 'none'"]),
    ],
)
def test_comparison_names_what_is_wrong(world, tmp_path, arguments, parts):
    done = running.run(world, "-m", "tcl_d2", "compare", "--output", tmp_path / "out", *arguments)
    running.check_error(done, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("weights that cannot be read, in a comparison", "it ends with their error, without a table")
def test_comparison_ends_where_an_evaluation_fails(in_world, tmp_path, capfd):
    (tmp_path / "weights.pth").write_text("no weights")
    with pytest.raises(SystemExit) as error:
        compare(tmp_path, options=[*FEW, "MODEL.WEIGHTS", str(tmp_path / "weights.pth")])
    assert error.value.code == 1 and not (tmp_path / "comparison.md").exists()
    assert f"error: --configs {CONFIGS[0]}: " in capfd.readouterr().err


@pytest.mark.fault("a process of a comparison is killed", "an error names the config and the signal")
def test_comparison_names_a_killed_evaluation(in_world, tmp_path, forked):
    lock = tmp_path / "maskclip/.evaluation.lock"

    def kill() -> None:
        while not (lock.exists() and lock.read_text().endswith("\n")):
            time.sleep(0.005)
        os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(SystemExit, match="of 'maskclip', 'trained' was ended by SIGKILL; the same command goes on"):
        compare(tmp_path)
    thread.join()


# ------------------------------------------------------------------------------------------------ table and costs


def test_published_rows_stand_below_the_measured_ones(tmp_path):
    names = ("zeroshot_voc_val", "zeroshot_voc20_val")
    rows = find_published("NACLIP", "ViT-B-16", pamr=True, protocol="own")
    results = {name: {"mIoU": 50.0 + i, "images": 1449 - i, "skipped": 0} for i, name in enumerate(names)}
    cost = {"seconds": 3.0, "images": 12, "peak_memory": 900.0}
    nothing = {"seconds": 0.0, "images": 0, "peak_memory": 0.0}
    comparands = {"a": Comparand(results, cost, rows), "b": Comparand(results, nothing, ())}
    lines = write_comparison(comparands, tmp_path).splitlines()

    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:6]]
    assert table[0] == ["mIoU, %", "", "VOC", "VOC20", "average", "s / image", "peak MB"]
    assert table[2] == ["a", "measured", "50.0", "51.0", "50.5", "0.250", "900"]
    assert table[3][:5] == ["a", "published [1]", "64.1", "83.0", "73.5"]
    assert table[4][:4] == ["a", "published [2]", "62.4", "80.6"]
    assert table[5][:2] == ["b", "measured"] and table[5][5] == ""  # nothing was measured
    assert lines[7].startswith("[1] NACLIP, ViT-B-16, with PAMR, own protocol: README of the official release")
    assert lines[9].strip() == "a: zeroshot_voc20_val: 1448 of 1449 images"
    assert list(csv.DictReader((tmp_path / "comparison.csv").open()))[1]["source"] == rows[0].describe()


@pytest.mark.fault("a config's file name that is not ASCII, or not UTF-8", "in the table and the figure")
def test_names_of_any_bytes_are_written_and_drawn(tmp_path):
    """After hours of evaluation; as Python has them where the locale is not UTF-8."""
    cost = {"seconds": 1.0, "images": 1, "peak_memory": 1.0}
    comparand = Comparand({"shapes_val": {"mIoU": 50.0, "images": 1, "skipped": 0}}, cost, ())
    names = [text.encode(encoding).decode("ascii", "surrogateescape") for text, encoding in CODED_NAMES]
    table = write_comparison(dict.fromkeys(names, comparand), tmp_path)
    assert "läva" in table and r"b\udcf6se" in table and (tmp_path / "comparison.png").exists()
    assert all("läva" in (tmp_path / f"comparison.{kind}").read_text("utf-8") for kind in ("md", "csv"))


def test_costs_are_of_all_images_but_the_first_batch_of_each_run():
    class Model(nn.Module):
        device = torch.device("cpu")

        def forward(self, batched_inputs: list) -> list:
            time.sleep(0.02)
            return batched_inputs

    model = Model()
    meter = CostMeter(model, {})
    model([{}, {}])
    assert meter.state()["images"] == 2 and meter.state()["seconds"] >= 0.02  # better than nothing
    for _ in range(2):
        model([{}])
    assert meter.images == 2 and 0.04 <= meter.seconds < 0.4

    state = {**meter.state(), "peak_memory": 1e9}
    model = Model()
    meter = CostMeter(model, state)
    model([{}])
    assert meter.state() == state  # the largest peak stays
    model([{}, {}])
    assert meter.images == 4 and meter.seconds > state["seconds"]
