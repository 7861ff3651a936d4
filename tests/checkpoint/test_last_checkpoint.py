"""What --resume goes on from: last_checkpoint and the file that it names: whole, gone, cut off, of other settings."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.checkpoint.card import make_card


class Training:
    """What a checkpoint restores beside the model."""

    def __init__(self):
        self.iteration = 0

    def state_dict(self) -> dict:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict) -> None:
        self.iteration = state["iteration"]


def checkpointer(folder: Path, *options: object, training: bool = True) -> TCLCheckpointer:
    card = make_card(load_config(None, ["SOLVER.MAX_ITER", 10, *options]))
    return TCLCheckpointer(nn.Linear(2, 1), str(folder), card=card, **({"trainer": Training()} if training else {}))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three checkpoints, after 2, 4 and 6 iterations, and the best one, written last."""
    writer = checkpointer(tmp_path)
    for iteration in (1, 3, 5):
        writer.checkpointables["trainer"].iteration = iteration
        writer.save(f"model_{iteration:07d}", iteration=iteration)
    writer.save("model_best", tag=False, iteration=5)
    return tmp_path


def resume(folder: Path, *options: object) -> int:
    """The iterations that the checkpoint had from which a training goes on."""
    reader = checkpointer(folder, *options)
    reader.resume_or_load("", resume=True)
    return reader.checkpointables["trainer"].iteration + 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_goes_on_from_what_last_checkpoint_names(folder):
    assert resume(folder) == 6
    (folder / "last_checkpoint").write_text("model_0000001.pth\n")
    assert resume(folder) == 2


def test_a_fresh_folder_starts_from_the_weights(tmp_path):
    weights = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    torch.save({"model": weights}, tmp_path / "weights.pth")
    reader = checkpointer(tmp_path)
    reader.resume_or_load(str(tmp_path / "weights.pth"), resume=True)
    assert not reader.has_checkpoint() and torch.equal(reader.model.weight, weights["weight"])


def check_way_on(folder: Path, last: str, *parts: str) -> None:
    """The error has these parts, and a command after which --resume goes on from `last`."""
    with pytest.raises(ValueError) as error:
        resume(folder)
    for part in ("--resume", f"The last whole checkpoint is '{folder / last}'", "another OUTPUT_DIR", *parts):
        assert part in str(error.value)
    assert f"`echo {last} > {folder}/last_checkpoint`" in str(error.value)
    (folder / "last_checkpoint").unlink(missing_ok=True)
    (folder / "last_checkpoint").write_text(f"{last}\n")
    resume(folder)


@pytest.mark.fault(
    "last_checkpoint is gone, empty, garbage, a folder, or names a file that is gone; --resume",
    "an error that names the last whole checkpoint and the command to go on; nothing is overwritten",
)
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00garbage", b"model_0000099.pth", b"."])
def test_last_checkpoint_that_names_none(folder, content):
    (folder / "last_checkpoint").unlink()
    if content is not None:
        (folder / "last_checkpoint").write_bytes(content)
    check_way_on(folder, "model_0000005.pth", "names no file beside it")


def test_last_checkpoint_that_cannot_be_read(folder):
    (folder / "last_checkpoint").unlink()
    (folder / "last_checkpoint").symlink_to(folder / "gone")
    check_way_on(folder, "model_0000005.pth", "names no file beside it")


@pytest.mark.fault(
    "the last checkpoint is cut off, empty, or holds weights alone; --resume",
    "an error that names it, the last whole one before it and the command to go on",
)
@pytest.mark.parametrize(
    "spoil, message",
    [
        (cut, "model_0000005.pth' is cut off"),
        (lambda path: path.write_bytes(b""), "model_0000005.pth' is empty"),
        (lambda path: torch.save({"model": nn.Linear(2, 1).state_dict()}, path), "has weights, but no training"),
    ],
)
def test_last_checkpoint_that_is_broken(folder, spoil, message):
    spoil(folder / "model_0000005.pth")
    check_way_on(folder, "model_0000003.pth", message)


def test_the_best_checkpoint_is_named_where_it_is_all_there_is(folder):
    for path in folder.glob("model_0*"):
        path.unlink()
    check_way_on(folder, "model_best.pth")


def test_no_whole_checkpoint_is_said(folder):
    for path in folder.glob("model_*"):
        cut(path)
    with pytest.raises(ValueError, match="--resume.*no whole checkpoint"):
        resume(folder)


def test_an_evaluation_with_given_weights_needs_no_last_checkpoint(folder):
    (folder / "last_checkpoint").unlink()
    reader = checkpointer(folder, training=False)
    reader.resume_or_load(str(folder / "model_0000001.pth"), resume=True)
    with pytest.raises(ValueError, match="last_checkpoint.* is missing"):
        reader.resume_or_load("", resume=True)


@pytest.mark.fault("--resume with other loss heads, or MAX_ITER below the checkpoint", "an error that names both")
@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.TCL.LOSS_HEADS", ["ImageTCLLoss"]], r"HEADS .*\['ImageTCLLoss'\].* trained with \['Image.*MaskTV"),
        (["MODEL.TCL.EXTRA_LOSS_HEADS", ["WholeImageLoss"]], r"HEADS .*, 'WholeImageLoss'\], .* trained with "),
        (["SOLVER.MAX_ITER", 5], "model_0000005.pth' has 6 iterations, more than SOLVER.MAX_ITER 5"),
    ],
)
def test_settings_that_cannot_go_on(folder, options, message):
    with pytest.raises(ValueError, match=f"--resume: .*{message}"):
        resume(folder, *options)


@pytest.mark.fault("--resume of a GroupViT with or without the multi-label loss, as it was not", "an error names both")
def test_the_multi_label_loss_cannot_come_or_go(folder):
    options = ["MODEL.META_ARCHITECTURE", "GroupViT", "MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS", 3]
    with pytest.raises(ValueError, match="NUM_NOUNS .*0000005.pth' was trained with"):
        resume(folder, *options)
    assert resume(folder, *options[:3], 0) == resume(folder, *options[2:]) == 6  # of a TCL it says nothing


def test_the_same_loss_heads_may_stand_in_either_list(folder):
    heads = load_config().MODEL.TCL.LOSS_HEADS
    assert resume(folder, "MODEL.TCL.LOSS_HEADS", heads[:-1], "MODEL.TCL.EXTRA_LOSS_HEADS", heads[-1:]) == 6


@pytest.mark.parametrize(
    "options, message",
    [
        (["SOLVER.IMS_PER_BATCH", 8], "SOLVER.IMS_PER_BATCH is 8, but was 16"),
        (["SEED", 7], "SEED is 7, but was -1"),
        (["SOLVER.MAX_ITER", 6], "Nothing left to train"),
    ],
)
def test_settings_that_make_it_another_training_are_said(folder, caplog, options, message):
    with caplog.at_level(logging.INFO, logger="tcl_d2"):
        assert resume(folder, *options) == 6
    assert message in caplog.text


def test_a_checkpoint_that_the_disk_has_no_room_for(folder, monkeypatch):
    """The error names the last whole one even where last_checkpoint is gone."""
    (folder / "last_checkpoint").unlink()
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="0000007.pth could not be written .no space left.*last whole .*0000005.pth"):
        checkpointer(folder).save("model_0000007", iteration=7)
