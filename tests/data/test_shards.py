"""Shards that are read as they come, from a web server, the hub or a command: slow, broken and gone ones too."""

import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tcl_d2.data import build_image_text_train_loader, check_datasets, register_webdataset
from tcl_d2.data.pairs import shards
from tcl_d2.data.pairs.shards import expand_shards
from tcl_d2.data.pairs.stream import ImageTextStream, WorkerIterator
from tcl_d2.engine import Trainer
from tests.data.distributed import write_tar
from tests.data.test_image_text_stream import identity
from tests.web import serve

NUM_SHARDS, PER_SHARD = 4, 10


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of four shards of ten pairs, with _info.json; nobody waits before another try."""
    monkeypatch.setattr(shards, "PAUSES", (0, 0))
    monkeypatch.setattr(shards, "CHECK_PAUSES", (0,))
    with serve() as site:
        for i in range(NUM_SHARDS):
            samples = {}
            for k in range(PER_SHARD):
                samples |= {f"{i}{k}.jpg": os.urandom(3000), f"{i}{k}.txt": f"caption {i} {k}".encode()}
            write_tar(tmp_path / "shard.tar", samples)
            site.files[f"/data/{i}.tar"] = (tmp_path / "shard.tar").read_bytes()
        names = [f"{i}.tar" for i in range(NUM_SHARDS)]
        split = {"filenames": names, "shard_lengths": [PER_SHARD] * NUM_SHARDS}
        site.files["/data/_info.json"] = json.dumps({"splits": {"train": split}}).encode()
        yield site


@pytest.fixture
def register():
    """Registers shards under a name that is gone after the test."""
    names = []

    def call(address, **options):
        names.append(f"t_shards_{len(names)}")
        register_webdataset(names[-1], address, **options)
        return names[-1]

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def read(name: str, count: int, start: int = 0) -> list[str]:
    """The captions of the first samples of a dataset, in the order of a training without loader processes."""
    stream = ImageTextStream(name, DatasetCatalog.get(name), identity, buffer=7, seed=3)
    return [sample["caption"] for sample in islice(WorkerIterator(stream, 0, 1, start), count)]


ALL = Counter(f"caption {i} {k}" for i in range(NUM_SHARDS) for k in range(PER_SHARD))


def test_addresses_and_commands_are_spelled_out():
    hub = "hf://datasets/pixparse/cc3m-wds@main/cc3m-train-{0000..0575}.tar"
    expanded = expand_shards(["https://host/{a,b}.tar", hub, "pipe:cat {0..1}.tar"], Path("/data"))
    assert expanded[:2] == ["https://host/a.tar", "https://host/b.tar"] and len(expanded) == 2 + 576 + 2
    assert (
        expanded[577] == "hf://datasets/pixparse/cc3m-wds@main/cc3m-train-0575.tar" and expanded[-1] == "pipe:cat 1.tar"
    )


def test_shards_of_a_web_server(site, register):
    name = register(f"{site.address}/data/{{0..3}}.tar")
    assert sum(row["num_samples"] for row in DatasetCatalog.get(name)) == NUM_SHARDS * PER_SHARD
    assert Counter(read(name, 40)) == ALL


def test_an_address_can_be_trained_on(site):
    """DATASETS.TRAIN takes it as it is."""
    address = f"{site.address}/data/{{0..3}}.tar"
    check_datasets(train=[address])
    try:
        loader = build_image_text_train_loader([address], mapper=identity, total_batch_size=40)
        assert Counter(sample["caption"] for sample in next(iter(loader))) == ALL
    finally:
        DatasetCatalog.remove(address)
        MetadataCatalog.remove(address)


def test_sizes_are_asked_for_once(site, register):
    del site.files["/data/_info.json"]
    for i in range(NUM_SHARDS):
        site.files[f"/data/{i}_stats.json"] = json.dumps({"successes": i + 1}).encode()
    name = register(f"{site.address}/data/{{0..3}}.tar")
    for _ in range(2):  # a training lists its data at each checkpoint
        assert [row["num_samples"] for row in DatasetCatalog.get(name)] == [1, 2, 3, 4]
    assert max(Counter(site.paths()).values()) == 1


@pytest.mark.fault("shards on the web of which nothing says their size", "an error that says what to give")
def test_unknown_sizes_are_refused(site, register):
    del site.files["/data/_info.json"]
    address = f"{site.address}/data/{{0..3}}.tar"
    with pytest.raises(ValueError, match="its number of pairs is unknown: .*_info.json.*Give num_samples"):
        DatasetCatalog.get(register(address))
    assert [row["num_samples"] for row in DatasetCatalog.get(register(address, num_samples=80))] == [20] * 4
    assert [row["num_samples"] for row in DatasetCatalog.get(register(address, num_published=40))] == [10] * 4


def test_shards_of_the_hub_are_read_with_the_users_token(site, register, monkeypatch):
    """As the hub does, the server sends readers of a large file on to its store, whose address is signed."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", site.address + "/{repo_id}/{filename}")
    with serve() as store:
        for i in range(NUM_SHARDS):
            store.files[f"/{i}"] = site.files.pop(f"/data/{i}.tar")
            site.redirects[f"/datasets/owner/set/{i}.tar"] = f"{store.address}/{i}"
        site.files["/datasets/owner/set/_info.json"] = site.files["/data/_info.json"]
        assert Counter(read(register("hf://datasets/owner/set/{0..3}.tar"), 40)) == ALL
        assert {headers["Authorization"] for _, headers in site.requests} == {"Bearer hf_secret"}
        assert all("Authorization" not in headers for _, headers in store.requests)


@pytest.mark.fault("a private dataset of the hub without a token", "an error before anything is built: log in")
def test_a_private_dataset_asks_for_a_token(site, register, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", site.address + "/{repo_id}/{filename}")
    site.always["/datasets/owner/private/0.tar"] = ("status", 401)
    with pytest.raises(OSError, match="hf://datasets/owner/private/0.tar cannot be read: HTTP 401 .*HF_TOKEN"):
        check_datasets(train=[register("hf://datasets/owner/private/{0..3}.tar")])


@pytest.mark.fault(
    "a slow web server of shards, which fails, and cuts connections", "the same samples in the same order"
)
def test_failures_that_pass_change_no_sample(site, register, caplog):
    name = register(f"{site.address}/data/{{0..3}}.tar")
    expected = read(name, 40)
    site.faults["/data/1.tar"] = [("cut", 5_000), ("status", 503), ("cut", 7_000), ("slow", 0.001)]
    site.faults["/data/2.tar"] = [("slow", 0.001)]
    assert read(name, 40) == expected
    assert "HTTP 503" in caplog.text and "cut after 12,000" in caplog.text and "Skipped" not in caplog.text


@pytest.mark.fault("a shard on the web that fails for good while it is read", "the training ends with its address")
@pytest.mark.parametrize("fault", [("cut", 0), ("status", 503), ("status", 404)])
def test_a_shard_that_is_gone_ends_the_training(site, register, fault):
    name = register(f"{site.address}/data/{{0..3}}.tar")
    check_datasets(train=[name])
    site.always["/data/2.tar"] = fault
    loader = build_image_text_train_loader([name], mapper=identity, total_batch_size=40)
    message = (
        f"'{name}': the shard {site.address}/data/2.tar cannot be read, also after further tries: .*--resume goes on"
    )
    with pytest.raises(OSError, match=message):
        next(iter(loader))


@pytest.mark.fault("shards at an address where nothing is, or a web page", "an error before anything is built")
def test_an_address_without_shards_is_refused_at_the_start(site, register):
    with serve() as gone:
        address = gone.address
    site.files["/page.tar"] = b"<!DOCTYPE html><title>Log in"
    faults = {
        f"{site.address}/no.tar": "HTTP 404",
        f"{address}/0.tar": "refused",
        f"{site.address}/page.tar": "a web page",
    }
    for shard, reason in faults.items():
        with pytest.raises(OSError, match=f"{shard} cannot be read: .*{reason}"):
            check_datasets(train=[register(shard, num_samples=10)])


@pytest.mark.parametrize(
    "address, message",
    [
        (
            "s3://bucket/{0..9}.tar",
            "s3://bucket/0.tar' is no address that can be read.*pipe:aws s3 cp s3://bucket/0.tar -",
        ),
        ("hf://owner/set/0.tar", "expected https://..., hf://datasets/OWNER/NAME/FILE"),
        ("https://host/*.tar", r"\* matches files on this disk alone"),
    ],
)
def test_addresses_that_cannot_be_read_are_refused(register, address, message):
    with pytest.raises(ValueError, match=message):
        check_datasets(train=[register(address, num_samples=10)])


def test_what_a_command_writes_is_a_shard(site, tmp_path, register):
    for i in range(NUM_SHARDS):
        (tmp_path / f"{i}.tar").write_bytes(site.files[f"/data/{i}.tar"])
    name = register(f"pipe:cat {tmp_path}/{{0..3}}.tar", num_samples=40)
    check_datasets(train=[name])
    assert Counter(read(name, 40)) == ALL


@pytest.mark.fault("a command that should write a shard fails, at once or in the middle", "the training ends with it")
@pytest.mark.parametrize("command", ["exit 7", "head -c 15000 {shard}; exit 7", "cat {shard}; exit 7"])
def test_a_command_that_fails_ends_the_training(site, tmp_path, register, command):
    (tmp_path / "0.tar").write_bytes(site.files["/data/0.tar"])
    name = register("pipe:" + command.format(shard=tmp_path / "0.tar"), num_samples=10)
    with pytest.raises(OSError, match=f"'{name}': the shard pipe:.*exit 7 cannot be read.*ended with status 7"):
        read(name, 40)


@pytest.mark.fault("a web server of shards fails in a training, which is resumed", "the losses of an uninterrupted one")
def test_a_training_goes_on_at_the_right_sample(shapes_cfg, in_world, site, tmp_path):
    """With a checkpoint at each second iteration, the server gone before the fifth, and back again."""
    for path in (in_world / "shapes/train").iterdir():
        site.files[f"/train/{path.name}"] = path.read_bytes()
    (shard,) = [path for path in site.files if path.startswith("/train/") and path.endswith(".tar")]
    address = f"{site.address}{shard}"
    check_datasets(train=[address])
    options = ["DATASETS.TRAIN", (address,), "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 6, "VIS_PERIOD", 0]
    shapes_cfg.merge_from_list([*options, "DATALOADER.SHUFFLE_BUFFER", 2, "SOLVER.BASE_LR", 1e-4])

    def train(folder: str) -> dict[int, float]:
        shapes_cfg.OUTPUT_DIR = str(tmp_path / folder)
        os.makedirs(shapes_cfg.OUTPUT_DIR, exist_ok=True)
        trainer = Trainer(shapes_cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        return {iteration: value for value, iteration in trainer.storage.history("total_loss").values()}

    whole = train("whole")
    try:
        num_requests = len(site.requests)
        of_20_pairs = len(site.files[shard]) * 20 // 300
        site.faults[shard] = [("cut", of_20_pairs), *[("status", 503)] * 2]
        with pytest.raises(OSError, match=f"the shard {address} cannot be read"):
            train("resumed")
        assert len(site.requests) == num_requests + 3
        assert train("resumed") == pytest.approx({i: whole[i] for i in range(4, 6)}, abs=1e-4)
    finally:
        DatasetCatalog.remove(address)
        MetadataCatalog.remove(address)
