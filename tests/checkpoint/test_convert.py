"""tcl-d2 convert as a user runs it."""

import os

import pytest
import torch

from tcl_d2.checkpoint import from_official, read_checkpoint
from tcl_d2.commands import convert
from tcl_d2.commands.options.convert import argument_parser
from tcl_d2.engine import Trainer
from tests import golden, running


@pytest.fixture
def run(capsys):
    """Runs the command here, for speed; gives its status or message and what it printed."""

    def run_here(*arguments: object) -> tuple[object, str]:
        status = 0
        try:
            convert.main(argument_parser().parse_args(list(map(str, arguments))))
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().out

    return run_here


@pytest.fixture
def trained(shapes_cfg):
    """The path of a checkpoint as a training of two iterations writes it."""
    shapes_cfg.SOLVER.MAX_ITER = 2
    trainer = Trainer(shapes_cfg)
    trainer.iter = 1
    trainer.checkpointer.save("model_final", iteration=1)
    return f"{shapes_cfg.OUTPUT_DIR}/model_final.pth"


def test_ours_to_official_and_back(run, trained, tmp_path):
    assert run(trained, tmp_path / "official.pth", "--to", "official")[0] == 0
    official = torch.load(tmp_path / "official.pth", weights_only=True)
    assert set(official) == {"model"}
    blocks = {name.split("resblocks.")[1][0] for name in official["model"] if "masker" in name and "resblocks" in name}
    assert blocks == {"5"}  # counted in the whole encoder
    run(tmp_path / "official.pth", tmp_path / "ours.pth")
    first, again = (read_checkpoint(str(path))["model"] for path in (trained, tmp_path / "ours.pth"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_official_names_are_the_releases(run, tmp_path):
    torch.save({"model": from_official(golden.load()["model"])}, tmp_path / "ours.pth")
    run(tmp_path / "ours.pth", tmp_path / "official.pth", "--to", "official")
    state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    assert state.keys() == golden.load()["model"].keys()


@pytest.mark.fault("a checkpoint whose CLIP has GELU, in the official layout", "refused: there it would have QuickGELU")
def test_a_checkpoint_with_gelu_is_not_the_official_releases(run, tmp_path):
    torch.save({"model": {"clip.a": torch.zeros(1)}, "card": {"activation": "GELU"}}, tmp_path / "x.pth")
    assert "this checkpoint's has GELU" in run(tmp_path / "x.pth", tmp_path / "y.pth", "--to", "official")[0]


def test_stripped_is_small_and_gives_the_same(run, trained, tmp_path):
    status, out = run(trained, tmp_path / "small.safetensors", "--strip")
    assert status == 0 and "left out: iteration, trainer" in out
    assert (tmp_path / "small.safetensors").stat().st_mode == os.stat(trained).st_mode  # not the owner's alone
    names = read_checkpoint(str(tmp_path / "small.safetensors"))["model"]
    assert names and all(name.startswith(("grounder.", "sim2mask.")) for name in names)
    status, out = run(trained, tmp_path / "small.safetensors", "--check")
    assert status == 0 and out.count("largest difference 0") == 2


def test_stripped_is_the_clip_alone_by_its_whole_name(run, tmp_path):
    """A part of a method of one's own may begin with the same letters."""
    names = ["clip.a", "losses.b", "clip_adapter.a", "clipped", "tcl_head.b", "grounder.c"]
    torch.save({"model": {name: torch.zeros(1) for name in names}}, tmp_path / "x.pth")
    run(tmp_path / "x.pth", tmp_path / "y.pth", "--strip")
    assert list(read_checkpoint(str(tmp_path / "y.pth"))["model"]) == names[2:]


def test_a_stripped_official_file_is_small_too(run, trained, tmp_path):
    run(trained, tmp_path / "y.pth", "--strip", "--to", "official")
    names = read_checkpoint(str(tmp_path / "y.pth"))["model"]
    assert names and all(name.startswith(("grounder.", "sim2mask.")) for name in names)


def test_check_finds_what_differs(run, trained, tmp_path):
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["model"]["sim2mask.b"] += 0.01
    torch.save(checkpoint, tmp_path / "other.pth")
    assert run(trained, tmp_path / "other.pth", "--check")[0] == "the two differ"


def test_a_checkpoint_says_what_it_is(run, trained, tmp_path):
    run(trained, tmp_path / "x.safetensors")
    for path in (trained, tmp_path / "x.safetensors"):
        _, out = run(path)
        assert "model: TCL" in out and "shapes_clip/model.json" in out and "trained on: shapes_train" in out
        assert "versions: tcl_d2 " in out and "MAX_ITER: 2" in out
    assert "iterations: 2" in run(trained)[1]


def test_what_is_missing_or_does_not_go_together_is_named(run, tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "x.pth")
    assert "give --freeze" in run(tmp_path / "x.pth", tmp_path / "y.pth", "--to", "official")[0]
    assert "there is no file" in run(tmp_path / "none.pth")[0]
    assert "give --config-file" in run(tmp_path / "x.pth", tmp_path / "x.pth", "--check")[0]
    assert "y.pth cannot be written" in run(tmp_path / "x.pth", tmp_path / "x.pth/y.pth")[0]
    assert "must end in .pth or .safetensors" in run(tmp_path / "x.pth", tmp_path / "y.onnx")[0]
    assert "--check compares two files" in run(tmp_path / "x.pth", "--check")[0]
    assert "give it without an output" in run(tmp_path / "x.pth", tmp_path / "y.pth", "--hub", tmp_path / "y")[0]
    assert not list(tmp_path.glob("*y*"))


@pytest.mark.fault("--freeze of another number than the checkpoint has", "refused, with that number; no file")
def test_frozen_blocks_are_those_of_the_checkpoint(run, trained, tmp_path):
    target = tmp_path / "y.pth"
    assert "has 5 frozen blocks" in run(trained, target, "--to", "official", "--freeze", "9")[0]
    assert not target.exists() and run(trained, target, "--to", "official", "--freeze", "5")[0] == 0


@pytest.mark.fault("tcl-d2 convert writes over its input, or another file", "refused; both stay")
def test_no_file_is_replaced(run, tmp_path):
    for name in ("x.pth", "other.pth"):
        torch.save({"model": {"clip.a": torch.zeros(1), "b": torch.zeros(1)}}, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("x.pth", "other.pth"):
        assert f"{name} already: give another name" in run(tmp_path / "x.pth", tmp_path / name, "--strip")[0]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.fault("tcl-d2 convert gets a file that holds no model", "one line that names it")
def test_files_without_a_model_are_named(run, tmp_path):
    torch.save({"model": {0: torch.zeros(1)}}, tmp_path / "odd.pth")
    for arguments in ([], [tmp_path / "y.pth"], [tmp_path / "odd.pth", "--check"]):
        assert "odd.pth' holds no model" in run(tmp_path / "odd.pth", *arguments)[0]
    card = {"configuration": "MODEL: [1"}
    torch.save({"model": {"a": torch.zeros(1)}, "card": card}, tmp_path / "card.pth")
    assert "card.pth' has a damaged card" in run(tmp_path / "card.pth", tmp_path / "y.pth", "--to", "official")[0]
    assert "card.pth' has a damaged card" in run(tmp_path / "card.pth", tmp_path / "card.pth", "--check")[0]
    assert not (tmp_path / "y.pth").exists()


def test_a_missing_file_is_one_clear_error_of_the_script(tmp_path):
    done = running.run(tmp_path, "-m", "tcl_d2", "convert", tmp_path / "none.pth")
    running.check_error(done, "none.pth'")
    assert done.returncode == 1
