"""Shards over a cluster of Ray: the results of one process, each whole or not at all, once; and what can go wrong.

One cluster serves all tests that need one; the others call the workers as Ray does, in this process.
"""

import io
import json
import pickle
import signal
import socket
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from tcl_d2.commands import features, index, segment_ray
from tcl_d2.commands.options.features import argument_parser as features_parser
from tcl_d2.commands.options.index import argument_parser as index_parser
from tcl_d2.commands.options.segment import argument_parser
from tcl_d2.commands.segment import main
from tcl_d2.data.shapes import draw_scene
from tcl_d2.predictor import TCLPredictor
from tcl_d2.ray import ImageSegmenter
from tcl_d2.ray.results import ShardResults
from tcl_d2.ray.shards import group_files, list_shards, read_shard
from tcl_d2.runs import ray_cluster
from tcl_d2.utils.http_stream import UnreadableAddress
from tcl_d2.utils.tensors import read_metadata, read_tensors
from tests.test_docs import blocks

MODEL = ["INPUT.MIN_SIZE_TEST", "0", "TEST.ZERO_SHOT.REFINE", "none", "DATALOADER.NUM_WORKERS", "1"]
WORDS = "brick, lava"
ONE = ["--ray-workers", 1]


def png(index: int, height: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw_scene(7, index, size=48).image[:height]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def no_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))


@pytest.fixture
def pictures(tmp_path) -> dict[str, Path]:
    """The same five pictures, the fourth one broken, as a folder, a .tar and a parquet file."""
    contents = {f"{index:03d}": png(index, 40 + index) for index in range(5)} | {"003": b"no image"}
    photos, tar, table = tmp_path / "photos", tmp_path / "shard.tar", tmp_path / "table.parquet"
    photos.mkdir()
    with tarfile.open(tar, "w") as file:
        for name, content in contents.items():
            (photos / f"{name}.png").write_bytes(content)
            for member, data in ((f"{name}.png", content), (f"{name}.txt", b"a caption")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    pq.write_table(pa.table({"jpg": list(contents.values()), "key": list(contents)}), table)
    return {"photos": photos, "tar": tar, "parquet": table}


@pytest.fixture
def in_process(monkeypatch):
    """Workers in this process, in place of a cluster's; returns the names of the shards that they were given."""
    given = []

    def map_here(worker, arguments, items, share):
        call = worker(*pickle.loads(pickle.dumps(arguments)))
        for item in items:
            given.append(getattr(item, "name", item))
            yield call(item)

    @ray_cluster.contextmanager
    def no_cluster(address, folder):
        yield

    monkeypatch.setattr(ray_cluster, "map_on_actors", map_here)
    monkeypatch.setattr(ray_cluster, "cluster", no_cluster)
    return given


def segment(*arguments: object) -> int:
    """Run the command, and return its exit code."""
    words = [*map(str, arguments), "--classes", WORDS, "--background", "--opts", *MODEL]
    with pytest.raises(SystemExit) as end:
        main(argument_parser().parse_args(words))
    return end.value.code


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def labels_of(row: dict, words: list[str]) -> np.ndarray:
    """The labels of a row of a parquet file; 0 where there is no segment."""
    labels = np.zeros((row["height"], row["width"]), np.uint8)
    for part in row["segments"]:
        rle = {"size": list(labels.shape), "counts": part["counts"]}
        labels[coco_masks.decode(rle) == 1] = words.index(part["word"])
    return labels


# ------------------------------------------------------------------------------------------- one cluster


@pytest.fixture(autouse=True)
def disconnected():
    """No test leaves a connection, nor the way in which Ray ends a process that gets SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def address():
    """The address of a cluster of one node: a CPU for an actor, and one for what Ray Data reads before it."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)
    node = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    yield cluster.address
    cluster.shutdown()
    signal.signal(signal.SIGTERM, handler)


def test_results_over_a_cluster_are_those_of_one_process(address, pictures, tmp_path, capsys):
    """Of a folder and a .tar, also for Ray's own columns of pictures; the broken picture is named and counted."""
    handler = signal.getsignal(signal.SIGTERM)
    assert segment(pictures["photos"], pictures["tar"], "--output", tmp_path / "out", "--ray", address, *ONE) == 1
    assert signal.getsignal(signal.SIGTERM) == handler
    printed = capsys.readouterr().out
    assert "8 images segmented, in 2 of 2 shards" in printed and "2 images left out" in printed

    one = tmp_path / "one"
    assert segment(pictures["photos"], "--output", one, "--no-overlay") == 1
    expected = {path.name: path.read_bytes() for path in one.glob("*_labels.png")}
    for name in ("00000-of-00001", "shard"):
        files = read_tar(tmp_path / f"out/{name}.tar")
        assert {file: content for file, content in files.items() if file.endswith(".png")} == expected
        record = json.loads((tmp_path / f"out/{name}.json").read_text())
        assert record["images"] == 4 and "unreadable image" in record["broken"]["003"]
        assert json.loads(files["004.json"])["areas"] == json.loads((one / "004.json").read_text())["areas"]


def test_snippets_of_the_page_run(address, world, tmp_path, monkeypatch, capsys):
    """docs/scale.md: the pipeline on the cluster that is there, and reading what its first command has written."""
    (tmp_path / "datasets").symlink_to(world)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", address)
    reading, pipeline = blocks("docs/scale.md", "python")
    exec(pipeline, {})
    assert "'counts'" in capsys.readouterr().out

    results = ShardResults(tmp_path / "output/rle", "parquet", "settings")
    predictor = TCLPredictor.from_pretrained("shapes")
    picture = "datasets/shapes/val/images/00000.png"
    segmentation = predictor(picture, WORDS, labels_only=True, label_scores=True)
    results.write(group_files({Path("a.png"): "a"}, 1)[0], [("a", segmentation)])
    exec(reading, found := {})
    assert found["pixels"].shape == segmentation.labels.shape


# ------------------------------------------------------------------------------------------- without one


def test_the_class_takes_pictures_of_mixed_sizes():
    """As Ray gives them, and in any form; rows have the columns that are kept."""
    segmenter = ImageSegmenter("shapes", WORDS, True, image="jpg", keep=["key"], options=MODEL)
    files = [png(index, 40 + index) for index in range(2)]
    images = np.empty(3, object)
    images[:] = [*(np.asarray(Image.open(io.BytesIO(file))) for file in files), b"no image"]
    table = segmenter({"jpg": images, "key": np.array(["a", "b", "c"]), "more": np.arange(3)})
    assert table.column_names == ["key", "height", "width", "segments", "error"]
    assert table["height"].to_pylist() == [40, 41, None] and "unreadable image" in table["error"][2].as_py()
    assert table.slice(0, 2) == segmenter({"jpg": files, "key": ["a", "b"]})
    with pytest.raises(ValueError, match="There is no column 'jpg' in a batch, which has image"):
        segmenter({"image": images})


def test_rows_of_parquet_have_the_labels_areas_and_scores(in_process, pictures, tmp_path):
    inputs = [pictures["parquet"], "--columns", "jpg", "key", "--format", "parquet", "--output", tmp_path / "out"]
    assert segment(*inputs, "--ray") == 1
    rows = pq.read_table(tmp_path / "out/table.parquet").to_pylist()
    assert [row["name"] for row in rows] == [f"{index:03d}" for index in range(5)]
    assert rows[3]["segments"] is None and rows[3]["error"].startswith("unreadable image")

    predictor = TCLPredictor.from_pretrained("shapes", *MODEL)
    for number in (0, 4):
        whole = predictor(png(number, 40 + number), WORDS, True)
        assert np.array_equal(labels_of(rows[number], whole.classes), whole.labels)
        for part in rows[number]["segments"]:
            mask = whole.mask(part["word"])
            assert part["area"] == mask.mean()
            assert part["score"] == pytest.approx(whole.class_scores(part["word"])[mask].mean().item(), rel=1e-5)

    # Byte for byte the same when it is done again
    before = (tmp_path / "out/table.parquet").read_bytes()
    segment(*inputs, "--ray")
    assert (tmp_path / "out/table.parquet").read_bytes() == before and in_process == ["table", "table"]


@pytest.mark.fault("segment --ray --resume: shards done, changed, of a lost result", "what is not done is done, once")
def test_what_is_done_is_left_out(in_process, pictures, tmp_path):
    command = [pictures["photos"], "--shard-size", 2, "--output", tmp_path / "out", "--ray"]
    names = [f"{number:05d}-of-00003" for number in range(3)]
    segment(*command)
    (tmp_path / "out" / f"{names[2]}.tar").write_bytes(b"cut off")
    (pictures["photos"] / "003.png").write_bytes(png(3))  # mended
    assert segment(*command, "--resume") == 0 and in_process == [*names, names[1], names[2]]
    assert read_tar(tmp_path / "out" / f"{names[1]}.tar").keys() >= {"002_labels.png", "003_labels.png"}

    # Other settings, and files of others, are refused
    with pytest.raises(SystemExit, match=r"--resume: .* other settings .*--format\)"):
        main(argument_parser().parse_args([*map(str, command), "--resume", "--format", "parquet", "--classes", WORDS]))


def test_a_shard_that_another_worker_has_done_is_not_done_again(tmp_path, pictures):
    """A worker that is lost after the result is at its place, but before it is reported: the next one finds it."""
    [shard] = list_shards([str(pictures["tar"])], [])
    results = ShardResults(tmp_path, "png", "settings")
    record = results.write(shard, [("a", ValueError("broken"))])
    assert ShardResults(tmp_path, "png", "settings").read(shard) == record and record["broken"] == {"a": "broken"}
    assert ShardResults(tmp_path, "png", "others").read(shard) is None


@pytest.mark.fault("a worker is lost while it writes a shard's result", "no part of a result stands in its place")
def test_results_are_whole_or_not_there(tmp_path, pictures):
    def stopped():
        yield "a", ValueError("broken")
        raise KeyboardInterrupt

    [shard] = list_shards([str(pictures["tar"])], [])
    for kind in ("png", "parquet"):
        with pytest.raises(KeyboardInterrupt):
            ShardResults(tmp_path, kind, "settings").write(shard, stopped())
        assert not list(tmp_path.glob("shard.[jp]*")) and not list(tmp_path.glob(".shard*"))


@pytest.mark.fault(
    "a shard on which every worker is lost, as for lack of memory", "after five it is named and left out"
)
def test_a_shard_may_cost_five_workers(in_process, pictures, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    begin = segment_ray._begin

    def begin_with_remains(*arguments):
        for pid in range(5):
            (out / f".shard.tar.otherhost-{pid}.tmp").touch()
        return begin(*arguments)

    monkeypatch.setattr(segment_ray, "_begin", begin_with_remains)
    assert segment(pictures["tar"], "--output", out, "--ray") == 1
    assert "shard: 5 workers were lost at it" in capsys.readouterr().out and not (out / "shard.tar").exists()


def test_pictures_of_tables_and_archives_are_read_safely(tmp_path, pictures):
    """Hugging Face's cells of bytes and paths; paths lead out of no folder, and a name comes once."""
    cells = [{"bytes": b"x", "path": "y"}, {"bytes": None, "path": "photos/000.png"}, {"bytes": None, "path": "../no"}]
    cells += [{"bytes": None, "path": "https://host/a.jpg"}, None]
    names = ["a", "b", "c", "a", "../e"]
    pq.write_table(pa.table({"image": cells, "name": names}), tmp_path / "hub.parquet")
    [shard] = list_shards([str(tmp_path / "hub.parquet")], ["image", "name"])
    first, second, *errors = (picture for _, picture in read_shard(shard, ["image", "name"]))
    assert first == b"x" and second == str(tmp_path / "photos/000.png")
    assert ["may lead out" in str(error) for error in errors] == [True, False, True] and "a name twice" in str(
        errors[1]
    )

    # A .tar that is cut off has what is before the cut
    content = pictures["tar"].read_bytes()
    pictures["tar"].write_bytes(content[: len(content) // 2])
    pictured = list(read_shard(list_shards([str(pictures["tar"])], [])[0], []))
    assert pictured[0] == ("000", png(0)) and "unreadable shard" in str(pictured[-1][1])


def test_a_shard_on_the_web_that_fails_is_left_for_later(in_process, pictures, tmp_path, capsys, monkeypatch):
    def fail(shard, columns):
        yield "000", png(0)
        raise UnreadableAddress("https://host/shard.tar", "gone")

    monkeypatch.setattr(segment_ray, "read_shard", fail)
    assert segment(pictures["tar"], "--output", tmp_path / "out", "--ray") == 1
    assert "https://host/shard.tar cannot be read: gone" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("shard*"))


def test_files_are_grouped_in_order():
    files = {Path(f"/photos/{index}.png"): str(index) for index in range(5)}
    shards = group_files(files, 2)
    assert [shard.names for shard in shards] == [["0", "1"], ["2", "3"], ["4"]]
    assert [shard.name for shard in shards] == [f"{number:05d}-of-00003" for number in range(3)]
    assert shards[0].source != group_files(dict(reversed(files.items())), 2)[0].source


def test_indexes_and_features_are_those_of_one_process(in_process, pictures, tmp_path, capsys, monkeypatch):
    """Each part is a task; a part that is there is not made again."""
    monkeypatch.setattr(features, "setup_logger", lambda **options: None)
    monkeypatch.setattr(index, "setup_logger", lambda **options: None)
    for command, parser, words, option in (
        (index, index_parser, [pictures["tar"], "--workers", 0], "--output"),
        (
            features,
            features_parser,
            ["--config-file", "shapes/talk2dino.yaml", "--threads", 0],
            "MODEL.TALK2DINO.FEATURES",
        ),
    ):
        files = []
        for name, more in (("one", []), ("ray", ["--ray", "local"]), ("ray", ["--ray", "local"])):
            data = [] if command is index else ["DATASETS.TRAIN", f"('{pictures['tar']}',)"]
            folder = tmp_path / command.__name__ / name
            command.main(parser().parse_args([*map(str, [*words, *more, *data, option, folder])]))
            [path] = folder.glob("*.safetensors")
            files.append((read_metadata(path), {key: value.tolist() for key, value in read_tensors(path).items()}))
        assert files[0] == files[1] == files[2]
        assert "1 broken" in capsys.readouterr().out.splitlines()[-1] and len(in_process) == 1
        in_process.clear()


# ------------------------------------------------------------------------------------------- bad input


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.fault("segment --ray with an address where no cluster is", "one message, within seconds")
def test_missing_cluster_is_named():
    address = f"127.0.0.1:{closed_port()}"
    with (
        pytest.raises(ConnectionError, match=f"--ray {address}: no cluster answers there"),
        ray_cluster.cluster(address, "."),
    ):
        pass


@pytest.mark.fault("a node of the cluster has other versions", "one message names the node and both versions")
def test_other_versions_are_named(address, monkeypatch, tmp_path):
    monkeypatch.setattr(ray_cluster, "__version__", "9.9")
    with (
        pytest.raises(RuntimeError, match="has other versions: tcl_d2 .*here 9.9"),
        ray_cluster.cluster(address, str(tmp_path)),
    ):
        pass


class FullDisk:
    def __call__(self, item):
        raise OSError(28, "No space left on device", item)


@pytest.mark.fault("a worker meets a full disk, or other weights on its node", "one message, without Ray's pages of it")
def test_an_error_of_a_worker_is_one_text():
    actor = ray_cluster._Actor(".", FullDisk, ())
    assert actor({"item": [pickle.dumps("/a")]})["error"] == ["[Errno 28] No space left on device: '/a'"]
    actor = ray_cluster._Actor("/no/folder", FullDisk, ())
    assert "/no/folder" in actor({"item": [b""]})["error"][0]


BAD = {
    "--columns": (["{parquet}", "--columns", "photo"], "table.parquet has no column 'photo', but jpg, key"),
    "damaged table": (["{tar}.parquet"], "cannot be read as parquet"),
    "missing shard": (["{tar}", "/none/{{0..3}}.tar"], "4 of 5 shards are missing, such as /none/0.tar"),
    "output": (["{photos}", "--output", "{tar}"], "--output '.*' is no folder that can be written"),
    "one name": (["{tar}", "{photos}/../more/shard.tar"], "several shards are named 'shard'"),
    "input in output": (["{tar}", "--output", "{photos}/.."], "lies in --output"),
    "--boxes": (["{photos}", "--boxes"], "--boxes is not of --ray"),
    "--num-processes": (["{photos}", "--num-processes", "2"], "--ray has --ray-workers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message(case, pictures, tmp_path):
    (tmp_path / "more").mkdir()
    for path in (tmp_path / "more/shard.tar", tmp_path / "shard.tar.parquet"):
        path.write_bytes(pictures["tar"].read_bytes())
    words, message = BAD[case]
    words = [word.format(**pictures) for word in words]
    with pytest.raises(SystemExit, match=message):
        main(argument_parser().parse_args([*words, "--ray", "--classes", WORDS]))


def test_an_input_after_ray_is_said(pictures, capsys):
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["--ray", str(pictures["tar"]), "--classes", WORDS])
    assert "give --ray after the inputs" in capsys.readouterr().err


def test_a_result_of_others_is_not_replaced(in_process, pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/shard.json").touch()
    words = [str(pictures["tar"]), "--output", str(tmp_path / "out"), "--ray", "--classes", WORDS]
    with pytest.raises(SystemExit, match="shard.json is no result of an earlier run"):
        main(argument_parser().parse_args(words))
