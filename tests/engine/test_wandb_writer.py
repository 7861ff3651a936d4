"""Weights & Biases: what a run gets, that a resumed training goes on with it, and what is missing."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tcl_d2.engine import Trainer
from tcl_d2.engine.wandb_writer import WandbWriter
from tests.engine.test_trainer import logged, train
from tests.running import check_error, run


class FakeRun:
    """What a run of wandb's is asked for."""

    def __init__(self, **options):
        self.options = options
        self.rows = []
        self.exit_code = None

    def define_metric(self, name: str, **_: object) -> None:
        pass

    def log(self, row: dict) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def cfg(shapes_cfg):
    os.makedirs(shapes_cfg.OUTPUT_DIR)
    shapes_cfg.WANDB.PROJECT = "tcl"
    return shapes_cfg


@pytest.fixture
def runs(monkeypatch) -> list[FakeRun]:
    """The runs that are started, by a module in wandb's place."""
    runs = []

    def init(**options: object) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    module = SimpleNamespace(init=init, Image=lambda picture: picture, Error=ValueError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_a_run_has_metrics_and_pictures_and_is_resumed(cfg, runs):
    """TensorBoard has its pictures too; a new training has a new run."""
    cfg.VIS_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER = 1, 2, 2
    trainer = train(cfg)
    assert runs[0].options["project"] == "tcl" and runs[0].options["dir"] == cfg.OUTPUT_DIR
    assert runs[0].options["config"]["SOLVER"]["MAX_ITER"] == 2 and runs[0].exit_code == 0

    rows = {row["iteration"]: row for row in runs[0].rows}
    assert rows[1]["loss_tcl_image"] == pytest.approx(sum(logged(trainer, "loss_tcl_image").values()) / 2)
    pictures = [value.shape for row in runs[0].rows for value in row.values() if np.ndim(value) == 3]
    assert pictures == [(4 * 48, 3 * 48 + 260, 3)] * 2
    assert not trainer.storage._vis_data

    cfg.SOLVER.MAX_ITER = 4
    train(cfg, resume=True)
    train(cfg)
    ids = [run.options["id"] for run in runs]
    assert ids[0] == ids[1] != ids[2] and all(run.options["resume"] == "allow" for run in runs)
    assert min(row["iteration"] for row in runs[1].rows) >= 2


@pytest.mark.fault("Weights & Biases: a training that ends with an error", "its run is marked as failed")
def test_a_failed_training_is_a_failed_run(cfg, runs, monkeypatch):
    trainer = Trainer(cfg)
    monkeypatch.setattr(trainer, "run_step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert runs[0].exit_code == 1


@pytest.mark.fault("Weights & Biases: a run that cannot be started", "one error says why, and what to do")
def test_a_run_that_cannot_be_started(cfg, runs, monkeypatch):
    def refuse(**_: object) -> None:
        raise ValueError("not logged in")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(OSError, match="WANDB.PROJECT 'tcl': .*not logged in.*WANDB_MODE=offline"):
        Trainer(cfg).train()


@pytest.mark.fault("Weights & Biases: the package is missing", "an error before anything is built; else not looked for")
def test_missing_package_is_told(cfg, in_world, tmp_path, monkeypatch):
    (tmp_path / "no_wandb.py").write_text("import sys; sys.modules['wandb'] = None")
    command = ["train_net.py", "--import", tmp_path / "no_wandb.py", "--config-file", "configs/shapes/tcl.yaml"]
    command += ["WANDB.PROJECT", "tcl", "DATASETS.TRAIN", "('no_such_set',)", "OUTPUT_DIR", tmp_path / "out"]
    check_error(run(in_world, *command), "no_such_set", "WANDB.PROJECT needs wandb", "pip install wandb")

    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg.WANDB.PROJECT = ""
    assert not any(isinstance(hook, WandbWriter) for hook in Trainer(cfg)._hooks)


def test_only_the_main_process_writes(cfg, runs, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    assert not any(isinstance(hook, WandbWriter) for hook in Trainer(cfg)._hooks)


def test_wandb_itself_offline(cfg, tmp_path, monkeypatch):
    """It writes its files below OUTPUT_DIR without a network."""
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    cfg.VIS_PERIOD = 2
    train(cfg)
    (folder,) = (tmp_path / "output/wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb")) and list(folder.glob("files/media/images/*.png"))
