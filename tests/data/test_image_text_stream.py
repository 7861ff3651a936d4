"""The stream of training pairs: no sample comes to two workers, seeds, and broken samples."""

import logging
import tarfile
from collections import Counter
from itertools import islice

import pytest

from tcl_d2.data.pairs.stream import ImageTextStream, WorkerIterator
from tcl_d2.utils.images import BrokenSample
from tests.data.distributed import write_tar


def identity(sample: dict) -> dict:
    caption = sample["captions"][0]
    name = sample.get("key") or sample["file_name"]
    return {"key": name, "caption": caption.decode() if isinstance(caption, bytes) else caption}


def make_shards(folder, shards: int, per_shard: int) -> list[dict]:
    folder.mkdir(exist_ok=True)
    for s in range(shards):
        samples = {}
        for i in range(per_shard):
            samples |= {f"{s:02d}{i:03d}.jpg": b"image", f"{s:02d}{i:03d}.txt": f"caption {s} {i}".encode()}
        write_tar(folder / f"{s:05d}.tar", samples)
    return [{"shard": str(folder / f"{s:05d}.tar"), "num_samples": per_shard} for s in range(shards)]


def make_list(size: int) -> list[dict]:
    return [{"file_name": str(i), "captions": [f"caption {i // 10} {i % 10}"]} for i in range(size)]


def captions_of(
    stream: ImageTextStream, count: int, worker: int = 0, num_workers: int = 1, num_drawn: int = 0
) -> list[str]:
    return [sample["caption"] for sample in islice(WorkerIterator(stream, worker, num_workers, num_drawn), count)]


def epoch_parts(rows: list[dict], num_workers: int, epoch: int = 0, seed: int = 0) -> list[list[str]]:
    """The captions that come to each worker in an epoch."""
    size, parts = len(rows) * rows[0].get("num_samples", 1), []
    for worker in range(num_workers):
        first, last = (-(-(n * size - worker) // num_workers) for n in (epoch, epoch + 1))
        stream = ImageTextStream("t", rows, identity, buffer=7, seed=seed)
        parts.append(captions_of(stream, last, worker, num_workers)[first:])
    return parts


def all_captions(shards: int, per_shard: int) -> Counter:
    return Counter(f"caption {s} {i}" for s in range(shards) for i in range(per_shard))


@pytest.mark.parametrize("shards, num_workers", [(6, 1), (6, 2), (6, 4), (3, 8), (7, 3)])
@pytest.mark.parametrize("epoch", [0, 2])
def test_each_sample_of_an_epoch_comes_to_one_worker(tmp_path, shards, num_workers, epoch):
    """Also with fewer shards than workers, and with numbers that do not divide."""
    parts = epoch_parts(make_shards(tmp_path, shards, 10), num_workers, epoch)
    assert Counter(caption for part in parts for caption in part) == all_captions(shards, 10)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1

    rows = make_list(10 * shards)
    assert Counter(caption for part in epoch_parts(rows, num_workers, epoch) for caption in part) == Counter(
        row["captions"][0] for row in rows
    )


def test_each_epoch_has_another_order_and_a_seed_repeats_it(tmp_path):
    rows = make_shards(tmp_path, 4, 10)
    (first,) = epoch_parts(rows, 1)
    assert first != sorted(first)
    assert [first] == epoch_parts(rows, 1)
    assert [first] != epoch_parts(rows, 1, epoch=1)
    assert [first] != epoch_parts(rows, 1, seed=1)


@pytest.mark.parametrize("distance", [1, 7, 30, 64])
@pytest.mark.parametrize("num_workers", [1, 4, 12])
def test_restarts_lose_and_repeat_nothing(tmp_path, distance, num_workers):
    """Two epochs of 60 pairs, begun anew after every few samples of each worker: as if nothing had been."""
    rows = make_shards(tmp_path, 6, 10)
    counts = Counter()
    for worker in range(num_workers):
        whole = captions_of(ImageTextStream("t", rows, identity, 7, 0), 120 // num_workers, worker, num_workers)
        pieces = []
        for start in range(0, len(whole), distance):
            stream = ImageTextStream("t", rows, identity, 7, 0)
            pieces += captions_of(stream, min(distance, len(whole) - start), worker, num_workers, start)
        assert pieces == whole
        counts.update(whole)
    assert counts == all_captions(6, 10) + all_captions(6, 10)


@pytest.mark.fault("shards with more or fewer pairs than their counts say, and broken pairs", "each pair comes once")
@pytest.mark.parametrize("num_workers", [1, 3, 8])
def test_an_epoch_is_whole_whatever_the_counts_say(tmp_path, num_workers):
    """And a position goes on exactly there, at any sample."""
    rows = [row for s in range(5) for row in make_shards(tmp_path / str(s), 1, 2 + 4 * s)]
    for row in rows:
        row["num_samples"] = 10

    def mapper(sample):
        if sample["captions"][0].endswith(b"3"):
            raise BrokenSample("unreadable image", sample["key"])
        return sample["key"]

    seen = Counter()
    for worker in range(num_workers):
        stream = ImageTextStream("t", rows, mapper, 4, 0)
        iterator = WorkerIterator(stream, worker, num_workers)
        samples = [(next(iterator), iterator.position) for _ in range(60)]
        seen.update(sample for sample, position in samples if position.epoch == 0)
        for i in range(0, 50, 7):
            resumed = WorkerIterator(stream, worker, num_workers, i + 1, samples[i][1])
            assert list(islice(resumed, 9)) == [sample for sample, _ in samples[i + 1 : i + 10]]
    assert len(seen) == sum(2 + 4 * s - sum(i % 10 == 3 for i in range(2 + 4 * s)) for s in range(5))
    assert set(seen.values()) == {1}


def test_passing_over_a_shard_reads_no_data(tmp_path, monkeypatch):
    """To go on at the 90th pair, one block of files is read, and of one shard the headers."""
    rows = make_shards(tmp_path, 3, 100)
    read, extract = [], tarfile.TarFile.extractfile
    monkeypatch.setattr(
        tarfile.TarFile, "extractfile", lambda tar, member: read.append(member.name) or extract(tar, member)
    )
    captions_of(ImageTextStream("t", rows, identity, buffer=7, seed=0), 1, num_drawn=190)
    assert len(read) == 2 * 7


@pytest.mark.parametrize(
    "source, rank, num_ranks, start, first_20",
    [
        ("shards", 1, 2, 0, "44 40 42 45 43 46 41 20 47 22 48 23 21 49 27 28 25 00 26 29"),
        ("shards", 1, 2, 85, "40 38 20 48 45 46 47 49 44 26 22 23 21 27 25 24 29 28 24 23"),
        ("shards", 5, 8, 0, "23 20 49 25 21 24 22 07 05 08 10 09 04 06 11 38 36 37 39 34"),
        ("shards", 5, 8, 85, "10 09 04 06 11 38 36 37 39 34 35 33 41 42 44 43 46 40 45 47"),
        ("list", 1, 2, 85, "56 13 49 19 44 33 06 43 51 11 41 40 07 53 23 50 39 42 44 22"),
    ],
)
def test_the_samples_of_a_seed_stay_the_same(tmp_path, source, rank, num_ranks, start, first_20):
    """A resumed training goes on with the samples of the one that was stopped: also after an update of this package."""
    rows = make_shards(tmp_path, 6, 10) if source == "shards" else make_list(60)
    stream = ImageTextStream("t", rows, identity, buffer=7, seed=3)
    captions = captions_of(stream, 20, rank, num_ranks, len(range(rank, start, num_ranks)))
    assert captions == [f"caption {number[0]} {number[1]}" for number in first_20.split()]


def test_stream_is_endless(tmp_path):
    stream = ImageTextStream("t", make_shards(tmp_path, 2, 3), identity, buffer=2, seed=0)
    assert len(set(captions_of(stream, 20))) == 6


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
        captions = set(captions_of(stream, 40))
    assert {f"caption 0 {i}" for i in range(5)} <= captions
    assert "bad one" not in captions and "no image" not in captions
    for reason in ("no caption", "no image", "unreadable image", "unreadable shard"):
        assert f"({reason}: 1 so far" in caplog.text
    assert caplog.text.count("(no caption:") <= 4  # not one line for each of many


def test_names_with_dots_are_read_by_their_last_suffix(tmp_path):
    samples = {"my.photo.png": b"x", "my.photo.txt": b"dots", "v1.2.JPG": b"x", "v1.2.json": b"{}", "v1.2.txt": b"more"}
    samples |= {"a.jpg": b"x", "a.seg.png": b"no photo", "a.txt": b"exact"}
    write_tar(tmp_path / "a.tar", samples)
    stream = ImageTextStream("t", [{"shard": str(tmp_path / "a.tar"), "num_samples": 3}], identity, 3, 0)
    assert sorted(captions_of(stream, 3)) == ["dots", "exact", "more"]


@pytest.mark.fault("several images or captions under one key of a shard", "counted, none is guessed")
def test_ambiguous_samples_are_counted(tmp_path, caplog):
    samples = {"a.x.png": b"x", "a.y.png": b"x", "a.txt": b"?", "b.jpg": b"x", "b.x.txt": b"?", "b.y.txt": b"?"}
    write_tar(tmp_path / "a.tar", {**samples, "c.jpg": b"x", "c.txt": b"clear"})
    stream = ImageTextStream("t", [{"shard": str(tmp_path / "a.tar")}], identity, 3, 0)
    assert {sample["caption"] for sample in islice(WorkerIterator(stream, 0, 1), 5)} == {"clear"}
    assert "several images: 1 so far" in caplog.text and "a.tar/a (x.png, y.png)" in caplog.text
    assert "several captions: 1 so far" in caplog.text


@pytest.mark.fault("no usable sample in a whole pass", "stops with the counts by reason")
def test_nothing_usable_stops_with_the_reasons(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.jpg": b"x", "2.jpg": b"x"})
    stream = ImageTextStream("broken_set", [{"shard": str(tmp_path / "a.tar")}], identity, 3, 0)
    with pytest.raises(OSError, match="'broken_set': a whole epoch .* no usable sample .no caption: 2"):
        next(WorkerIterator(stream, 0, 1))


@pytest.mark.fault("a shard whose images all come first, then the captions", "one error says how to write it")
def test_an_unsorted_shard_says_how_to_sort_it(tmp_path):
    names = [f"{i}.{suffix}" for suffix in ("jpg", "txt") for i in range(3)]
    write_tar(tmp_path / "a.tar", {name: b"x" for name in names})
    with pytest.raises(OSError, match=r"(?s)no caption: 3.*no image: 3.*tar --sort=name"):
        captions_of(ImageTextStream("t", [{"shard": str(tmp_path / "a.tar")}], identity, 3, 0), 1)


@pytest.mark.fault("a file name twice in a shard", "counted as that, with shard and sample")
def test_a_name_that_comes_twice_is_named(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", {"a.jpg": b"x", "a.txt": b"first"})
    write_tar(tmp_path / "b.tar", {"a.jpg": b"y", "b.jpg": b"x", "b.txt": b"second"})
    with tarfile.open(tmp_path / "a.tar", "a") as tar, tarfile.open(tmp_path / "b.tar") as other:
        for member in other:
            tar.addfile(member, other.extractfile(member))
    stream = ImageTextStream("t", [{"shard": str(tmp_path / "a.tar")}], identity, 3, 0)
    assert captions_of(stream, 3) == ["second"] * 3
    assert "a file name twice: 1 so far" in caplog.text and "a.tar/a (a.jpg)" in caplog.text


@pytest.mark.fault("a shard is cut in a pair, and the next one begins with a pair of this name", "no pair is mixed")
def test_a_cut_pair_is_not_completed_by_the_next_shard(tmp_path, caplog):
    rows = make_shards(tmp_path, 2, 3)
    write_tar(tmp_path / "a.tar", {"0.jpg": b"old", "0.txt": b"old" * 500})
    cut = (tmp_path / "a.tar").read_bytes()[: 3 * 512 + 100]
    (tmp_path / "a.tar").write_bytes(cut)
    write_tar(tmp_path / "b.tar", {"0.jpg": b"new", "0.txt": b"new"})
    rows = [{"shard": str(tmp_path / name)} for name in ("a.tar", "b.tar")]
    stream = ImageTextStream("t", rows, lambda sample: (sample["image_bytes"], sample["captions"][0]), 3, 0)
    assert set(islice(WorkerIterator(stream, 0, 1), 6)) == {(b"new", b"new")}
    assert "unreadable shard" in caplog.text and "a.tar" in caplog.text


@pytest.mark.fault("a header in the middle of a shard is damaged", "counted; the pairs before it are used")
def test_a_damaged_header_is_no_end(tmp_path, caplog):
    """tarfile itself takes it for the end of the archive."""
    (row,) = make_shards(tmp_path, 1, 4)
    content = bytearray((tmp_path / "00000.tar").read_bytes())
    content[4 * 1024 + 100 : 4 * 1024 + 110] = b"\xff" * 10  # the third image's
    (tmp_path / "00000.tar").write_bytes(content)
    assert set(captions_of(ImageTextStream("t", [row], identity, 3, 0), 6)) == {"caption 0 0", "caption 0 1"}
    assert "unreadable shard" in caplog.text and "00000.tar" in caplog.text


def test_files_that_macos_adds_are_no_samples(tmp_path, caplog):
    files = {"./._a.jpg": b"\0\5\x16\7", "./a.jpg": b"x", "./._a.txt": b"\0\5\x16\7", "./a.txt": b"good"}
    write_tar(tmp_path / "a.tar", {**files, "__MACOSX/b.jpg": b"x", "__MACOSX/._b.jpg": b"x"})
    assert captions_of(ImageTextStream("t", [{"shard": str(tmp_path / "a.tar")}], identity, 3, 0), 2) == ["good"] * 2
    assert "Skipped" not in caplog.text
