"""The loader of training batches: mixtures, seeds, starts, and numbers out of range."""

import random
from collections import Counter
from contextlib import nullcontext
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from tcl_d2.data import build_image_text_train_loader, check_datasets, register_webdataset
from tcl_d2.data.loader import check_workers, mix
from tcl_d2.data.pairs.stream import ImageTextStream
from tcl_d2.utils.images import BrokenSample
from tests.data.distributed import write_tar
from tests.data.test_image_text_stream import identity, make_shards


def test_mixture_is_in_proportion():
    def stream(name):
        return ImageTextStream(name, [{"file_name": name, "captions": [name]}], identity, 1, 0)

    samples = mix([stream("a"), stream("b")], [1, 3], 0, 0, 1)
    counts = Counter(sample["caption"] for sample, _ in islice(samples, 4000))
    assert counts["b"] / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.fault("no usable sample in a whole pass of a loader process", "the training process gets its error")
def test_nothing_usable_stops_from_a_worker_too(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.jpg": b"x", "2.jpg": b"x"})
    register_webdataset("t_all_broken", str(tmp_path / "a.tar"), num_samples=2)
    try:
        loader = build_image_text_train_loader(["t_all_broken"], mapper=identity, total_batch_size=2, num_workers=1)
        with pytest.raises(OSError, match="no usable sample"):
            next(iter(loader))
    finally:
        DatasetCatalog.remove("t_all_broken")


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_gives_the_same_batches(in_world, workers):
    def batches(seed):
        loader = build_image_text_train_loader(
            ["shapes_train"], mapper=identity, total_batch_size=4, num_workers=workers, buffer=50, seed=seed
        )
        return [sample["key"] for batch in islice(loader, 5) for sample in batch]

    first = batches(3)
    assert len(first) == 20 and first == batches(3) != batches(4)


def test_no_dataset_is_an_error():
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        build_image_text_train_loader([], mapper=identity, total_batch_size=4)


@pytest.mark.fault("batch size, workers or shuffle buffer out of range", "refused, with the config key")
@pytest.mark.parametrize(
    "options, processes, message",
    [
        ({"total_batch_size": 0}, 1, "SOLVER.IMS_PER_BATCH is 0; expected"),
        ({"total_batch_size": 6}, 4, "SOLVER.IMS_PER_BATCH is 6; expected a positive multiple .* 4"),
        ({"total_batch_size": -4}, 4, "SOLVER.IMS_PER_BATCH is -4"),
        ({"buffer": 0}, 1, "DATALOADER.SHUFFLE_BUFFER is 0"),
        ({"num_workers": -1}, 1, "DATALOADER.NUM_WORKERS is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(monkeypatch, options, processes, message):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: processes)
    with pytest.raises(ValueError, match=message):
        build_image_text_train_loader(["shapes_train"], **{"mapper": identity, "total_batch_size": 4, **options})


@pytest.mark.fault("a training set without rows, or with shards of no samples", "refused, with the dataset's name")
@pytest.mark.parametrize("rows", [[], [{"shard": "a.tar", "num_samples": 0}, {"shard": "b.tar", "num_samples": 0}]])
def test_datasets_without_samples_are_refused(rows):
    DatasetCatalog.register("t_empty", lambda: rows)
    try:
        with pytest.raises(ValueError, match="'t_empty' has no samples"):
            check_datasets(train=["t_empty"])
        with pytest.raises(ValueError, match="'t_empty' has no samples"):
            build_image_text_train_loader(["t_empty"], mapper=identity, total_batch_size=4, start=8)
    finally:
        DatasetCatalog.remove("t_empty")


@pytest.fixture
def make_loader(tmp_path):
    """Makes loaders of two datasets of 40 and 20 pairs, and says what is random; every 7th pair is broken."""
    for name, shards in (("t_large", 4), ("t_small", 2)):
        make_shards(tmp_path / name, shards, 10)
        register_webdataset(name, str(tmp_path / name / "*.tar"), num_samples=shards * 10)

    def mapper(sample: dict) -> dict:
        shard, pair = sample["key"].split("/")[-2:]
        if int(pair) % 7 == 6 and mapper.are_some_broken:
            raise BrokenSample("unreadable image", sample["key"])
        draws = (random.random(), np.random.rand(), torch.rand(()).item())
        return {"key": sample["key"].rpartition("t_")[2], "draws": draws}

    def make(workers: int, start: int = 0, are_some_broken: bool = False):
        mapper.are_some_broken = are_some_broken
        return build_image_text_train_loader(
            ["t_large", "t_small"],
            mapper=mapper,
            total_batch_size=6,
            num_workers=workers,
            buffer=7,
            seed=5,
            start=start,
        )

    yield make
    for name in ("t_large", "t_small"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_their_number_alone(make_loader, workers):
    """Begun anew before any batch, a loader gives the rest of the same batches, with the same random choices."""
    whole = list(islice(make_loader(workers), 30))
    for num_batches in (1, 5, 20):
        assert list(islice(make_loader(workers, 6 * num_batches), 30 - num_batches)) == whole[num_batches:]


@pytest.mark.parametrize("processes, workers", [(1, 0), (1, 4), (3, 0), (3, 4)])
@pytest.mark.parametrize("distance", [1, 3, 7])
def test_restarts_lose_and_repeat_no_pair(make_loader, monkeypatch, processes, workers, distance):
    """Over three epochs and restarts each few batches, the pairs of a dataset come about equally often."""
    info = SimpleNamespace(id=0, num_workers=workers)
    monkeypatch.setattr("tcl_d2.data.pairs.stream.get_worker_info", lambda: info if workers else None)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: processes)
    counts, shares = Counter(), max(1, workers)
    for rank in range(processes):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        for start in range(0, 36, distance):  # batches of 6 of all processes
            for info.id in range(min(shares, distance)):  # the process that reads the batches at this place
                batches = range(start + info.id, min(start + distance, 36), shares)
                stream = make_loader(workers, 6 * start)._loader.dataset
                samples = islice(stream, len(batches) * 6 // processes)
                counts.update(sample["key"] for sample in samples)
    assert counts.total() == 36 * 6 and len(counts) == 60
    assert max(counts.values()) - min(counts.values()) <= 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_goes_on_where_some_pairs_are_broken(make_loader, workers):
    """How many they are decides where a worker is: so it is kept."""
    whole = list(islice(make_loader(workers, are_some_broken=True), 24))
    for num_batches in (1, 4, 11):
        loader = make_loader(workers, are_some_broken=True)
        assert list(islice(loader, num_batches)) == whole[:num_batches]
        resumed = make_loader(workers, are_some_broken=True)
        resumed.restart(5, 6 * num_batches, loader.gather_state())
        assert list(islice(resumed, 24 - num_batches)) == whole[num_batches:]


def test_a_state_of_other_settings_is_not_used(make_loader):
    loader = make_loader(0)
    next(iter(loader))
    state = loader.gather_state()
    other = make_loader(2)
    other.restart(5, 6, state)
    assert next(iter(other)) == next(iter(make_loader(2, 6)))


@pytest.mark.fault("loader processes with little or no shared memory (/dev/shm)", "refused at the start, with the need")
def test_too_little_shared_memory_is_told(shapes_cfg, monkeypatch):
    """Processes would wait forever for batches that cannot be handed over; without processes nothing is needed."""
    shapes_cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 256, "INPUT.IMAGE_TEXT.SIZE", 224])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    for num_workers, is_refused in ((0, False), (1, True)):
        shapes_cfg.DATALOADER.NUM_WORKERS = num_workers
        check_workers(shapes_cfg, eval_only=True)
        with pytest.raises(OSError) if is_refused else nullcontext() as raised:
            check_workers(shapes_cfg, eval_only=False)
        assert not is_refused or all(part in str(raised.value) for part in ("/dev/shm", "NUM_WORKERS", "64", "294"))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OSError) as raised:
        check_workers(shapes_cfg, eval_only=True)
    assert "/dev/shm" in str(raised.value)
