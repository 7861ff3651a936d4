"""The stream of training pairs: no sample comes to two workers, seeds, and broken samples."""

import logging
from collections import Counter
from itertools import islice

import pytest

from tcl_d2.data.image_text_stream import ImageTextStream, SkipCounter
from tcl_d2.utils.images import BrokenSample
from tests.data.distributed import write_tar


def identity(sample: dict) -> dict:
    caption = sample["captions"][0]
    name = sample.get("key") or sample["file_name"]
    return {"key": name, "caption": caption.decode() if isinstance(caption, bytes) else caption}


def make_shards(folder, shards: int, per_shard: int) -> list[dict]:
    for s in range(shards):
        samples = {}
        for i in range(per_shard):
            samples |= {f"{s:02d}{i:03d}.jpg": b"image", f"{s:02d}{i:03d}.txt": f"caption {s} {i}".encode()}
        write_tar(folder / f"{s:05d}.tar", samples)
    return [{"shard": str(folder / f"{s:05d}.tar"), "num_samples": per_shard} for s in range(shards)]


def make_list(size: int) -> list[dict]:
    return [{"file_name": str(i), "captions": [f"caption {i // 10} {i % 10}"]} for i in range(size)]


def read_epoch(rows, worker, num_workers, seed=0, epoch=0, skip_samples=0) -> list[str]:
    """The captions that come to a worker in an epoch."""
    stream = ImageTextStream("t", rows, identity, buffer=7, seed=seed)
    samples = stream._read_epoch(epoch, worker, num_workers, skip_samples, SkipCounter())
    return [stream._map_sample(sample)["caption"] for sample in samples]


@pytest.mark.parametrize("shards, num_workers", [(6, 1), (6, 2), (6, 4), (3, 8)])
def test_each_sample_of_shards_comes_to_one_worker(tmp_path, shards, num_workers):
    """Also with fewer shards than workers."""
    rows = make_shards(tmp_path, shards, 10)
    parts = [read_epoch(rows, worker, num_workers) for worker in range(num_workers)]
    assert Counter(caption for part in parts for caption in part) == Counter(
        f"caption {s} {i}" for s in range(shards) for i in range(10)
    )
    assert all(parts)


def test_each_sample_of_a_list_comes_to_one_worker():
    rows = make_list(31)
    parts = [read_epoch(rows, worker, 4) for worker in range(4)]
    assert Counter(caption for part in parts for caption in part) == Counter(row["captions"][0] for row in rows)


def test_each_epoch_has_another_order_and_a_seed_repeats_it(tmp_path):
    rows = make_shards(tmp_path, 4, 10)
    first = read_epoch(rows, 0, 1)
    assert first != sorted(first)
    assert first == read_epoch(rows, 0, 1)
    assert first != read_epoch(rows, 0, 1, epoch=1)
    assert first != read_epoch(rows, 0, 1, seed=1)


@pytest.mark.parametrize(
    "source, rank, num_ranks, start, first_20",
    [
        ("shards", 1, 2, 0, "11 16 18 13 17 14 41 15 10 42 43 19 46 12 47 01 49 44 40 04"),
        ("shards", 1, 2, 85, "53 56 52 54 57 10 11 12 51 15 55 16 17 58 50 13 59 18 14 19"),
        ("shards", 5, 8, 0, "59 25 51 03 35 13 47 21 35 05 13 57 43 29 45 51 13 33 27 59"),
        ("shards", 5, 8, 85, "01 53 25 17 09 45 51 13 33 27 59 05 15 45 23 59 37 51 03 01"),
        ("list", 1, 2, 85, "53 50 42 24 58 55 35 48 10 01 17 37 02 15 22 27 08 46 12 34"),
    ],
)
def test_the_samples_of_a_seed_stay_the_same(tmp_path, monkeypatch, source, rank, num_ranks, start, first_20):
    """A resumed training goes on with the samples of the one that was stopped: also after an update of this package."""
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: rank)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: num_ranks)
    rows = make_shards(tmp_path, 6, 10) if source == "shards" else make_list(60)
    stream = ImageTextStream("t", rows, identity, buffer=7, seed=3, start=start)
    captions = [sample["caption"] for sample in islice(stream, 20)]
    assert captions == [f"caption {number[0]} {number[1]}" for number in first_20.split()]


def test_stream_is_endless(tmp_path):
    stream = ImageTextStream("t", make_shards(tmp_path, 2, 3), identity, buffer=2, seed=0)
    assert len(set(s["caption"] for s in islice(stream, 20))) == 6


def test_broken_samples_are_skipped_with_a_counted_warning(tmp_path, caplog):
    """A missing caption, a missing image, a sample the mapper refuses, a shard cut in the middle, one that is empty,
    and one that is gone."""
    rows = make_shards(tmp_path, 2, 5)
    write_tar(tmp_path / "odd.tar", {"a.jpg": b"x", "b.txt": b"no image", "c.jpg": b"bad", "c.txt": b"bad one"})
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 2 + 100])
    (tmp_path / "empty.tar").write_bytes(b"")
    rows += [{"shard": str(tmp_path / name)} for name in ("odd.tar", "empty.tar", "gone.tar")]

    def mapper(sample):
        if sample["image_bytes"] == b"bad":
            raise BrokenSample("unreadable image", sample["key"])
        return identity(sample)

    with caplog.at_level(logging.WARNING):
        stream = ImageTextStream("t", rows, mapper, buffer=3, seed=0)
        captions = {s["caption"] for s in islice(stream, 40)}
    assert {f"caption 0 {i}" for i in range(5)} <= captions
    assert "bad one" not in captions and "no image" not in captions
    for reason in ("no caption", "no image", "unreadable image", "unreadable shard"):
        assert f"({reason}: 1 so far" in caplog.text
    assert caplog.text.count("(no caption:") <= 4  # not one line for each of many


def test_names_with_dots_are_read_by_their_last_suffix(tmp_path):
    samples = {"my.photo.png": b"x", "my.photo.txt": b"dots", "v1.2.JPG": b"x", "v1.2.json": b"{}", "v1.2.txt": b"more"}
    samples |= {"a.jpg": b"x", "a.seg.png": b"no photo", "a.txt": b"exact"}
    write_tar(tmp_path / "a.tar", samples)
    assert sorted(read_epoch([{"shard": str(tmp_path / "a.tar")}], 0, 1)) == ["dots", "exact", "more"]


@pytest.mark.fault("several images or captions under one key of a shard", "counted, none is guessed")
def test_ambiguous_samples_are_counted(tmp_path, caplog):
    samples = {"a.x.png": b"x", "a.y.png": b"x", "a.txt": b"?", "b.jpg": b"x", "b.x.txt": b"?", "b.y.txt": b"?"}
    write_tar(tmp_path / "a.tar", {**samples, "c.jpg": b"x", "c.txt": b"clear"})
    stream = ImageTextStream("t", [{"shard": str(tmp_path / "a.tar")}], identity, 3, 0)
    assert {sample["caption"] for sample in islice(stream, 5)} == {"clear"}
    assert "several images: 1 so far" in caplog.text and "a.tar/a (x.png, y.png)" in caplog.text
    assert "several captions: 1 so far" in caplog.text


@pytest.mark.fault("no usable sample in a whole pass", "stops with the counts by reason")
def test_nothing_usable_stops_with_the_reasons(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.jpg": b"x", "2.jpg": b"x"})
    stream = ImageTextStream("broken_set", [{"shard": str(tmp_path / "a.tar")}], identity, 3, 0)
    with pytest.raises(RuntimeError, match="'broken_set': a whole epoch .* no usable sample .no caption: 2"):
        next(iter(stream))


@pytest.mark.parametrize("source", ["shards", "fewer shards than workers", "list"])
def test_a_later_start_gives_the_rest_of_the_epoch(tmp_path, source):
    """30 samples in shards of 5: from the 17th on, an epoch goes on with the shard that holds it."""
    num_workers = 8 if source == "fewer shards than workers" else 1
    rows = make_list(30) if source == "list" else make_shards(tmp_path, 6, 5)

    def read_from(start: int) -> list[str]:
        captions = []
        for worker in range(num_workers):
            stream = ImageTextStream("t", rows, identity, buffer=1, seed=0, start=start)
            length = len(read_epoch(rows, worker, num_workers, epoch=1, skip_samples=start % 30))
            samples = islice(stream.iterate_worker(worker, num_workers), length)
            captions += [sample["caption"] for sample in samples]
        return captions

    whole, rest = read_from(30), read_from(30 + 17)
    assert len(whole) == len(set(whole)) == 30
    expected = 13 if source == "list" else 15
    assert len(rest) == expected and set(rest) <= set(whole)
    if num_workers == 1:
        assert set(rest) == set(whole[-expected:])
