"""Files of tensors: every format is read, no code of theirs is run, and a bad file is named with its fault."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from omegaconf import OmegaConf
from safetensors.torch import save_file

from tcl_d2.utils.tensors import UnreadableFile, check_finite, read_tensors


class Trap:
    """Makes a folder if it is unpickled as Python would."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Conv2d(3, 4, 2).half()
        self.ln = torch.nn.LayerNorm(4)
        self.turned = torch.nn.Parameter(torch.randn(3, 4).t())
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x):
        return self.ln(x)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_same(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name


@pytest.mark.parametrize("zipped", [True, False])
def test_torchs_own_formats_are_read(tmp_path, zipped):
    state = {"a": torch.randn(3, 4).t(), "b": torch.arange(3)}
    torch.save({"model": state, "step": 3}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    loaded = read_tensors(tmp_path / "x.pth")
    assert_same(loaded["model"], state)
    assert loaded["step"] == 3


@pytest.mark.fault("a file of text or of a few bytes is read as weights", "an error that names it, of any content")
@pytest.mark.parametrize("content", [b"brick\nlava\n", b"\x80\x02M", b"\x80\x02X\x05", b"h\x00.", b"\x80\x02}q\x00.."])
def test_bytes_that_are_no_weights_are_named(tmp_path, content):
    (tmp_path / "odd.pth").write_bytes(content)
    with pytest.raises(UnreadableFile, match="odd.pth' is .*get it again"):
        read_tensors(tmp_path / "odd.pth")


def test_safetensors_are_read(tmp_path):
    state = {"a": torch.randn(3, 4), "b": torch.arange(3).half()}
    save_file(state, tmp_path / "x.safetensors")
    assert_same(read_tensors(tmp_path / "x.safetensors"), state)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_archives_are_read(tmp_path):
    """As OpenAI distributes CLIP: the tensors, of any type and stride, without running its code."""
    model = Small()
    torch.jit.script(model).save(tmp_path / "x.pt")
    assert_same(read_tensors(tmp_path / "x.pt"), model.state_dict())


@pytest.mark.parametrize(
    "settings",
    [
        OmegaConf.create({"train": {"lr": 1.0, "sets": ["a"]}}),
        get_cfg(),
        argparse.Namespace(lr=1.0),
        [np.float64(0.5), np.int64(3), np.float32(1), np.bool_(True), np.str_("a")],
        {"random": np.random.get_state(), "args": argparse.Namespace(lr=np.float32(1), folder=Path("x"))},
    ],
    ids=["omegaconf", "yacs", "argparse", "numpy", "both"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_settings_of_other_libraries_are_passed_over(tmp_path, settings, zipped):
    """Training checkpoints carry them beside the model, and numbers and arrays of numpy."""
    state = {"a": torch.randn(3)}
    content = {"config": settings, "model": state, "best": np.float64(0.5)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(tmp_path / "x.pth")["model"], state)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    mark = tmp_path / "executed"
    trap = {"model": {"a": torch.zeros(1)}, "config": Trap(mark)}
    torch.save(trap, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "y.pth").write_bytes(pickle.dumps({"model": Trap(mark)}, protocol=2))
    for name in "xy":
        with pytest.raises(UnreadableFile, match=f"{name}.pth' carries code .*mkdir.*not run"):
            read_tensors(tmp_path / f"{name}.pth")
    assert not mark.exists()


def rewrite(source, target, change) -> None:
    """Copy a zip archive with changed records: change(name, data) -> (data, compression)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data, compression = change(name, old.read(name))
            new.writestr(name, data, compression)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_code_in_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(Small()).save(tmp_path / "x.pt")
    evil = pickle.dumps(Trap(tmp_path / "executed"), protocol=2)
    swap = lambda name, data: (evil if name.endswith("/data.pkl") else data, 0)  # noqa: E731
    rewrite(tmp_path / "x.pt", tmp_path / "y.pt", swap)
    with pytest.raises(UnreadableFile, match="carries code .*mkdir"):
        read_tensors(tmp_path / "y.pt")
    assert not (tmp_path / "executed").exists()


def test_bombs_are_refused(tmp_path):
    """Compressed records, and a record that is smaller than the file says."""
    torch.save({"model": {"a": torch.zeros(1_000_000)}}, tmp_path / "x.pth")
    rewrite(tmp_path / "x.pth", tmp_path / "deflated.pth", lambda name, data: (data, zipfile.ZIP_DEFLATED))
    assert (tmp_path / "deflated.pth").stat().st_size < 100_000
    with pytest.raises(UnreadableFile, match="compressed records"):
        read_tensors(tmp_path / "deflated.pth")
    cut = lambda name, data: (data[:8] if name.endswith("data/0") else data, 0)  # noqa: E731
    rewrite(tmp_path / "x.pth", tmp_path / "short.pth", cut)
    with pytest.raises(UnreadableFile, match="cut off, damaged"):
        read_tensors(tmp_path / "short.pth")
    (tmp_path / "x.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(UnreadableFile, match="header too large"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "no file of tensors"),
        (b"PK\x03\x04 cut", "no file of tensors"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_without_tensors_are_refused(tmp_path, content, message, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=f"x.{suffix}' .*{message}"):
        read_tensors(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, part):
    state = {"a": torch.randn(1000)}
    save_file(state, tmp_path / "x.safetensors")
    torch.save({"model": state}, tmp_path / "x.pth")
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in list(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
        with pytest.raises(UnreadableFile, match=path.name):
            read_tensors(path)


def test_missing_files_and_other_archives_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*x.pth"):
        read_tensors(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as archive:
        archive.writestr("picture.png", b"")
    with pytest.raises(UnreadableFile, match="without tensors"):
        read_tensors(tmp_path / "y.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bad_numbers_are_named_with_file_and_weight(value, dtype):
    large = torch.full((70_000,), 60_000.0, dtype=dtype)  # their sum is beyond fp16
    tensors = {"count": torch.tensor(1), "none": torch.zeros(0), "w": large}
    check_finite(tensors, "x.pth")
    large[-1] = value
    with pytest.raises(ValueError, match="'x.pth'.* 1 of its 3 weights have NaN or Inf, such as w"):
        check_finite(tensors, "x.pth")
