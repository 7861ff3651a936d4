"""The loader of training batches: mixtures, seeds, starts, and numbers out of range."""

from collections import Counter
from itertools import islice

import pytest
from detectron2.data import DatasetCatalog

from tcl_d2.data import build_image_text_train_loader, check_datasets, register_webdataset
from tcl_d2.data.image_text_stream import ImageTextStream
from tcl_d2.data.loader import Mixture
from tests.data.distributed import write_tar
from tests.data.test_image_text_stream import identity, make_shards


def test_mixture_is_in_proportion():
    def stream(name):
        return ImageTextStream(name, [{"file_name": name, "captions": [name]}], identity, 1, 0)

    counts = Counter(s["caption"] for s in islice(Mixture([stream("a"), stream("b")], [1, 3], seed=0), 4000))
    assert counts["b"] / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.fault("no usable sample in a whole pass of a loader process", "the training process gets its error")
def test_nothing_usable_stops_from_a_worker_too(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.jpg": b"x", "2.jpg": b"x"})
    register_webdataset("t_all_broken", str(tmp_path / "a.tar"), num_samples=2)
    try:
        loader = build_image_text_train_loader(["t_all_broken"], mapper=identity, total_batch_size=2, num_workers=1)
        with pytest.raises(RuntimeError, match="no usable sample"):
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
        ({"total_batch_size": 0}, 1, "SOLVER.IMS_PER_BATCH is 0; expected at least 1"),
        ({"total_batch_size": 6}, 4, "SOLVER.IMS_PER_BATCH is 6; expected a positive multiple of the 4 processes"),
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


def test_a_loader_that_is_restarted_gives_what_one_built_so_gives(tmp_path):
    """Another seed and start, also with workers, of which the first loader had some running."""
    register_webdataset("t_restart", [str(tmp_path / "*.tar")], num_samples=40)
    make_shards(tmp_path, 4, 10)
    options = {"mapper": identity, "total_batch_size": 2, "num_workers": 1, "buffer": 7}
    try:
        loader = build_image_text_train_loader(["t_restart"], **options)
        first = next(iter(loader))
        loader.restart(seed=5, start=10)
        restarted = list(islice(loader, 5))
        assert restarted == list(islice(build_image_text_train_loader(["t_restart"], seed=5, start=10, **options), 5))
        assert first not in restarted
    finally:
        DatasetCatalog.remove("t_restart")
