"""Downloads by address: whole or not at all, once, also where the connection, the site or the network fails."""

import multiprocessing
import os
import random

import pytest
import torch

from tcl_d2 import load_config
from tcl_d2.checkpoint import TCLCheckpointer
from tcl_d2.checkpoint.checkpointer import fetch_weights
from tcl_d2.commands import train
from tcl_d2.commands.options.train import argument_parser
from tcl_d2.modeling.encoders.clip_loading import check_clip
from tcl_d2.predictor import TCLPredictor
from tcl_d2.utils import downloads, http_stream
from tcl_d2.utils.downloads import PathManager, cache_path
from tcl_d2.utils.http_stream import HTTPStream, UnreadableAddress
from tests.conftest import ROOT
from tests.web import serve

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server that has /model.pth; the cache is a folder of the test's, and nobody waits before another try."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "PAUSES", (0, 0))
    with serve() as site:
        site.files["/model.pth"] = CONTENT
        yield site


def fetch(site, path: str = "/model.pth") -> bytes:
    with open(PathManager.get_local_path(site.address + path), "rb") as file:
        return file.read()


def cached_files(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_is_downloaded_once(site, tmp_path, capsys):
    assert fetch(site) == CONTENT == fetch(site)
    assert site.paths() == ["/model.pth"] and cached_files(tmp_path) == ["model.pth"]
    assert "model.pth: 100%" in capsys.readouterr().err


def test_two_hosts_files_of_one_path_are_two_files(site):
    with serve() as other:
        other.files["/model.pth"] = b"other"
        assert fetch(other) == b"other" and fetch(site) == CONTENT


@pytest.mark.fault("a download is cut in the middle", "goes on where it was cut, and the file is whole")
@pytest.mark.parametrize("takes_ranges", [True, False])
@pytest.mark.parametrize("versions", [True, False])
def test_cut_downloads_go_on(site, tmp_path, caplog, takes_ranges, versions):
    site.takes_ranges, site.versions = takes_ranges, versions
    site.faults["/model.pth"] = [("cut", 100_000), ("status", 503), ("cut", 150_000)]
    assert fetch(site) == CONTENT and cached_files(tmp_path) == ["model.pth"]
    assert "cut after 100,000 of 300,000 bytes" in caplog.text and "HTTP 503" in caplog.text
    assert site.requests[1][1]["Range"] == "bytes=100000-"


@pytest.mark.fault("a download is cut for good", "one error; the next run goes on where it stopped")
@pytest.mark.parametrize("versions", [True, False])
def test_a_later_run_goes_on_with_a_cut_download(site, tmp_path, versions):
    site.versions = versions
    site.faults["/model.pth"] = [("cut", 100_000), ("status", 404)]
    with pytest.raises(OSError, match="could not be downloaded: HTTP 404"):
        fetch(site)
    assert "model.pth" not in cached_files(tmp_path)
    assert fetch(site) == CONTENT and cached_files(tmp_path) == ["model.pth"]
    ranges = [headers.get("Range") for _, headers in site.requests[2:]]
    assert ranges == ([None, "bytes=100000-"] if versions else [None])  # what it is of must be known


@pytest.mark.fault("a file changes on the server during a download, or between two", "never mixed")
def test_two_versions_are_never_mixed(site, tmp_path):
    site.faults["/model.pth"] = [("cut", 100_000), ("status", 404)]
    with pytest.raises(OSError):
        fetch(site)
    site.files["/model.pth"] = CONTENT[::-1]
    assert fetch(site) == CONTENT[::-1] and cached_files(tmp_path) == ["model.pth"]

    site.faults["/model.pth"] = [("cut", 100_000)]
    stream = HTTPStream(site.address + "/model.pth", pauses=(0,))
    stream.read(1)
    site.files["/model.pth"] = CONTENT
    with pytest.raises(UnreadableAddress, match="has changed on the server"):
        stream.readall()


@pytest.mark.fault("a server says a larger size than it sends", "an error that says how much came; no file is kept")
def test_too_large_a_length_is_an_error(site, tmp_path):
    site.takes_ranges, site.always["/model.pth"] = False, ("length", 400_000)
    with pytest.raises(OSError, match="cut after 300,000 of 400,000 bytes"):
        fetch(site)
    assert "model.pth" not in cached_files(tmp_path)


@pytest.mark.fault("a server says a smaller size than the weights have", "an error that names address and file")
def test_too_small_a_length_is_found_when_the_file_is_read(site, tmp_path):
    torch.save({"model": {"weight": torch.zeros(1000)}}, tmp_path / "whole.pth")
    site.files["/model.pth"] = (tmp_path / "whole.pth").read_bytes()
    site.always["/model.pth"] = ("length", 2000)
    address = f"{site.address}/model.pth"
    with pytest.raises(ValueError, match=f"cache.*model.pth' is cut off.*what {address} gave: remove it"):
        TCLCheckpointer(torch.nn.Linear(2, 2)).load(address)


@pytest.mark.fault("a site sends a web page, or nothing, in place of a file", "an error that says so; nothing is kept")
@pytest.mark.parametrize("content, reason", [(b"\n<!DOCTYPE html><title>Log in", "sent a web page"), (b"", "is empty")])
def test_web_pages_are_not_kept(site, tmp_path, content, reason):
    site.files["/model.pth"] = content
    with pytest.raises(OSError, match=f"{reason}.*give its path"):
        fetch(site)
    assert cached_files(tmp_path) == []
    site.files["/page.html"] = b"<html>"
    assert fetch(site, "/page.html") == b"<html>"


@pytest.mark.fault("weights by an address without a network", "one error: the address, the cache, and what to give")
def test_without_a_network_one_error_says_what_to_do(site, tmp_path):
    with serve() as gone:
        address = f"{gone.address}/models/tcl.pth"
    parts = f"{address} is not in the cache .*{tmp_path}/cache.*FVCORE_CACHE.*refused.*"
    with pytest.raises(OSError, match=f"MODEL.WEIGHTS: {parts}: MODEL.WEIGHTS /path/tcl.pth"):
        fetch_weights(address)
    with pytest.raises(OSError, match="MODEL.WEIGHTS /path/tcl.pth"):
        TCLPredictor(ROOT / "configs/shapes/trained.yaml", "MODEL.WEIGHTS", address)
    with pytest.raises(OSError, match=f"MODEL.CLIP.PRETRAINED: {parts}"):
        check_clip("ViT-B-16", address)

    arguments = ["--config-file", "shapes/tcl.yaml", "MODEL.WEIGHTS", address, "DATASETS.TRAIN", "('no_set',)"]
    with pytest.raises(ValueError, match=f"cannot start:.*\n.*'no_set'.*(\n.*)*{parts}"):
        train.setup(argument_parser().parse_args(arguments))

    # A file that is put there is used
    cache_path(address).parent.mkdir(parents=True, exist_ok=True)
    cache_path(address).write_bytes(b"weights")
    assert fetch_weights(address) == str(cache_path(address))


def test_weights_and_clip_are_taken_by_their_addresses(site):
    """The small world's model, with MODEL.WEIGHTS and CLIP.PRETRAINED on a server."""
    cfg = load_config(ROOT / "configs/shapes/trained.yaml")
    for name, key in (("/w.safetensors", cfg.MODEL.WEIGHTS), ("/clip.safetensors", cfg.MODEL.CLIP.PRETRAINED)):
        with PathManager.open(key, "rb") as file:
            site.files[name] = file.read()
    cfg.MODEL.WEIGHTS, cfg.MODEL.CLIP.PRETRAINED = f"{site.address}/w.safetensors", f"{site.address}/clip.safetensors"
    state = TCLPredictor(cfg).model.state_dict()
    for name, value in TCLPredictor(ROOT / "configs/shapes/trained.yaml").model.state_dict().items():
        assert torch.equal(state[name], value)


def test_the_official_checkpoint_has_its_address():
    """As the official README names it."""
    address = "https://github.com/kakaobrain/tcl/releases/download/v1.0.0/tcl.pth"
    assert address == load_config(ROOT / "configs/eval/official.yaml").MODEL.WEIGHTS


def _fetch_in_process(address: str, size: int) -> None:
    path = PathManager.get_local_path(address)
    os._exit(0 if os.path.getsize(path) == size else 1)


def test_of_several_processes_one_downloads(site):
    site.always["/model.pth"] = ("slow", 0.001)
    context = multiprocessing.get_context("fork")
    arguments = (f"{site.address}/model.pth", len(CONTENT))
    processes = [context.Process(target=_fetch_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert site.paths() == ["/model.pth"]


def test_a_token_goes_to_its_host_alone(site):
    """A hub sends readers on to another host, whose address has a signature of its own."""
    with serve() as store:
        store.files["/file"] = b"content"
        site.redirects = {"/here": "/there", "/there": f"{store.address}/file"}
        with HTTPStream(f"{site.address}/here", {"Authorization": "Bearer secret"}, pauses=()) as stream:
            assert stream.readall() == b"content"
        assert [headers.get("Authorization") for _, headers in site.requests] == ["Bearer secret"] * 2
        assert "Authorization" not in store.requests[0][1]


@pytest.mark.fault("a server that sends no more, though the connection stands", "counts as cut after a minute")
def test_a_stalled_connection_is_made_anew(site, monkeypatch):
    monkeypatch.setattr(http_stream, "_TIMEOUT", 0.1)
    site.faults["/model.pth"] = [("slow", 0.5)]
    with HTTPStream(f"{site.address}/model.pth", pauses=(0,)) as stream:
        assert stream.readall() == CONTENT
    assert len(site.requests) == 2
