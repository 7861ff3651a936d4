"""Stopping and resuming: kills at any moment, signals, a full disk; the resumed losses are the uninterrupted ones."""

import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng

from tcl_d2.engine import Trainer
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "dev"))
import kill_and_resume  # noqa: E402


@pytest.fixture
def cfg(shapes_cfg):
    os.makedirs(shapes_cfg.OUTPUT_DIR, exist_ok=True)
    shapes_cfg.merge_from_list(["VIS_PERIOD", 0, "SOLVER.MAX_ITER", 7, "SOLVER.CHECKPOINT_PERIOD", 5])
    shapes_cfg.SOLVER.BASE_LR = 1e-4  # a large one turns the last bits, which depend on where memory lies, into 1e-4
    return shapes_cfg


class At(HookBase):
    """Does something after one iteration."""

    def __init__(self, iteration: int, act):
        self.iteration, self.act = iteration, act

    def after_step(self) -> None:
        if self.trainer.iter == self.iteration:
            self.act()


def train(cfg, *hooks: HookBase) -> Trainer:
    """Go on with a training; each process begins with a random state of its own."""
    seed_all_rng(None)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer._hooks[0:0] = hooks
    for hook in hooks:
        hook.trainer = trainer
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> dict[int, float]:
    return {iteration: value for value, iteration in trainer.storage.history("total_loss").values()}


def test_losses_after_kills_at_random_moments_are_the_uninterrupted_ones(in_world):
    """dev/kill_and_resume.py with two kills; loader workers, both stages."""
    result = kill_and_resume.run(kills=2, iterations=12, seed=0, options=[])
    assert result["all iterations"] and result["last iteration"] == 11
    assert result["largest difference"] <= 1e-4


@pytest.mark.fault("a closed terminal, SIGTERM or Ctrl-C in a training", "a checkpoint, from which --resume goes on")
@pytest.mark.parametrize("number, seed", [(signal.SIGTERM, 1), (signal.SIGINT, -1), (signal.SIGHUP, 1)])
def test_a_signal_writes_a_checkpoint_between_two(cfg, tmp_path, number, seed):
    """After iteration 2, with one every 5th: goes on with batch 3, stage, optimizer, and a seed that was drawn."""
    cfg.SEED = seed
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        train(cfg, At(2, lambda: os.kill(os.getpid(), number)))
    assert stop.value.code == 128 + number and signal.getsignal(number) == before
    saved = torch.load(f"{cfg.OUTPUT_DIR}/model_0000002.pth", weights_only=True)
    resumed = losses(train(cfg))
    assert set(resumed) == {3, 4, 5, 6}

    # The same without a stop
    cfg.SEED, cfg.OUTPUT_DIR = saved["trainer"]["seed"], str(tmp_path / "whole")
    os.makedirs(cfg.OUTPUT_DIR)
    whole = losses(train(cfg))
    assert resumed == pytest.approx({i: whole[i] for i in resumed}, abs=1e-4)


def test_checkpoints_at_the_end_alone(cfg, tmp_path):
    """SOLVER.CHECKPOINT_PERIOD 0: also one on a signal, from which the samples go on as if nothing had been."""
    cfg.SOLVER.CHECKPOINT_PERIOD = 0
    with pytest.raises(SystemExit):
        train(cfg, At(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    resumed = losses(train(cfg))
    assert {path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")} == {"model_0000002.pth", "model_final.pth"}

    # The same without a stop
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    os.makedirs(cfg.OUTPUT_DIR)
    whole = losses(train(cfg))
    assert [path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")] == ["model_final.pth"]
    assert resumed == pytest.approx({i: whole[i] for i in (3, 4, 5, 6)}, abs=1e-4)


def in_a_process(act) -> int:
    """Call a function in a forked process; return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        except BaseException as error:
            Path(os.environ["T_ERROR"]).write_text(str(error))
            os._exit(3)
    return os.waitpid(child, 0)[1]


@pytest.fixture
def trained(cfg, monkeypatch, tmp_path):
    """A trainer whose last checkpoint is model_0000004.pth."""
    monkeypatch.setenv("T_ERROR", str(tmp_path / "error.txt"))
    trainer = Trainer(cfg)
    trainer.iter = 4
    trainer.checkpointer.save("model_0000004", iteration=4)
    return trainer


def assert_last_is_whole(cfg) -> None:
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000004.pth"
    assert not Path(cfg.OUTPUT_DIR, "model_0000005.pth").exists()
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 5


def test_a_kill_while_a_checkpoint_is_written_leaves_the_last_one(cfg, trained, monkeypatch):
    def die_half_way(data, path):
        Path(path).write_bytes(b"PK half")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", die_half_way)
    assert in_a_process(lambda: trained.checkpointer.save("model_0000005")) == signal.SIGKILL
    assert_last_is_whole(cfg)


def test_full_disk_leaves_the_last_checkpoint_and_says_so(cfg, trained, tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the middle."""

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        trained.checkpointer.save("model_0000005")

    assert in_a_process(save) == 3 << 8
    said = (tmp_path / "error.txt").read_text()
    assert "model_0000005.pth could not be written" in said and "model_0000004.pth" in said and "disk full" in said
    assert not list(Path(cfg.OUTPUT_DIR).glob(".*.tmp"))
    assert_last_is_whole(cfg)


@pytest.mark.fault("the disk is full when a checkpoint is written, and stays so", "the error names the checkpoint")
def test_full_disk_is_said_last(cfg, monkeypatch):
    """Though the last metrics have no room either."""

    def full(*_) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("detectron2.utils.events.JSONWriter.write", full)
    with pytest.raises(OSError, match="model_0000004.pth could not be written .no space left.*no whole checkpoint"):
        train(cfg)
