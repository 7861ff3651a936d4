"""The index of an image archive: exact search, images that are read again, and going on after a stop."""

import tarfile

import pytest
import torch
import webdataset as wds
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from tcl_d2 import load_config
from tcl_d2.commands.index import main
from tcl_d2.commands.options.index import argument_parser
from tcl_d2.data import archive
from tcl_d2.data.archive import index_archive, list_archive
from tcl_d2.data.shapes import draw_scene
from tcl_d2.modeling import MaskCLIP
from tcl_d2.modeling.reco.index import ImageEmbedder, ImageIndex, ImageRecord, part_path, save_part
from tcl_d2.utils.tensors import read_tensors
from tests.conftest import ROOT
from tests.data import distributed
from tests.running import check_error, run


@pytest.fixture(scope="module")
def embed():
    return ImageEmbedder(MaskCLIP(load_config(ROOT / "configs/shapes/reco.yaml")).eval())


def write_images(folder, count: int) -> list[bytes]:
    """Write scenes into a folder and one below it; return their files' contents."""
    (folder / "below").mkdir(parents=True)
    contents = []
    for number in range(count):
        path = folder / ("below" if number % 2 else ".") / f"{number:03d}.png"
        Image.fromarray(draw_scene(5, number).image).save(path)
        contents.append(path.read_bytes())
    return contents


def write_shards(folder, contents: list[bytes], per_shard: int) -> None:
    folder.mkdir()
    for start in range(0, len(contents), per_shard):
        with wds.TarWriter(str(folder / f"{start:05d}.tar")) as tar:
            for number, content in enumerate(contents[start : start + per_shard], start):
                tar.write({"__key__": f"{number:03d}", "png": content, "txt": b"a caption"})


def write_random_index(folder, sizes: list[int]) -> torch.Tensor:
    """Write an index of images that do not exist; return their features."""
    parts = []
    for number, size in enumerate(sizes):
        features = torch.nn.functional.normalize(torch.randn(size, 16), dim=1)
        records = [ImageRecord(str(folder / f"{number}.tar"), 512 * i, i) for i in range(size)]
        save_part(part_path(folder, number, len(sizes)), records, features, {"clip": "clip", "archive": "archive"})
        parts.append(features.half().float())
    return torch.cat(parts)


# ------------------------------------------------------------------------------------ search


@pytest.mark.parametrize("count", [1, 7, 50, 200])
def test_search_is_exact(tmp_path, monkeypatch, count):
    """Over files and chunks of several sizes, also for more images than a file or all files have."""
    monkeypatch.setattr("tcl_d2.modeling.reco.index._ROWS_AT_ONCE", 8)
    sizes = [20, 0, 3, 41, 11]
    features = write_random_index(tmp_path, sizes)
    text = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    places = [(number, place) for number, size in enumerate(sizes) for place in range(size)]

    index = ImageIndex(tmp_path, "clip")
    assert len(index) == len(features) == 75
    for records, similarity in zip(index.search(text, count), text @ features.T):
        expected = [places[row] for row in similarity.argsort(descending=True)[:count]]
        assert [(record.file, record.start, record.size) for record in records] == [
            (str(tmp_path / f"{number}.tar"), 512 * place, place) for number, place in expected
        ]


def test_search_holds_some_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("tcl_d2.modeling.reco.index._ROWS_AT_ONCE", 16)
    write_random_index(tmp_path, [500, 300])
    chunks = [len(chunk) for chunk in ImageIndex(tmp_path, "clip").iterate_features()]
    assert max(chunks) == 16 and sum(chunks) == 800


def test_folder_and_shards_give_the_same_index(embed, tmp_path, monkeypatch):
    """Each image is found by its own embedding, and read again from where it lies."""
    monkeypatch.setattr(archive, "IMAGES_PER_PART", 4)
    contents = write_images(tmp_path / "images", 10)
    write_shards(tmp_path / "shards", contents, per_shard=3)
    parts = {name: list_archive(str(tmp_path / name)) for name in ("images", "shards/*.tar")}
    assert [len(part) for part in parts["images"]] == [4, 4, 2] and len(parts["shards/*.tar"]) == 4
    assert list_archive(str(tmp_path / "shards")) == parts["shards/*.tar"]

    for name, files in parts.items():
        folder = tmp_path / f"index of {name[:6]}"
        assert index_archive(files, folder, embed, num_workers=1) == {"images": 10, "broken": 0}
        index = ImageIndex(folder, embed.digest())
        for number in range(10):
            image = torch.from_numpy(draw_scene(5, number).image).permute(2, 0, 1)
            ((record,),) = index.search(embed([image]), 1)
            assert torch.equal(pil_to_tensor(record.read()), image)


def test_an_archive_and_its_index_can_be_moved_together(embed, tmp_path):
    write_images(tmp_path / "old/images", 3)
    index_archive(list_archive(str(tmp_path / "old/images")), tmp_path / "old/index", embed)
    (tmp_path / "old").rename(tmp_path / "new")
    (records,) = ImageIndex(tmp_path / "new/index", embed.digest()).search(torch.eye(128)[:1], 3)
    assert all(record.file.startswith(str(tmp_path / "new/images")) and record.read() for record in records)


# ------------------------------------------------------------------------------------ faults


@pytest.mark.fault("._* and __MACOSX in an archive of images", "no images of it")
def test_leftovers_of_macos_are_no_images(tmp_path):
    content = b"\0\5\x16\7"
    distributed.write_tar(tmp_path / "0.tar", {"x/._a.jpg": content, "__MACOSX/x/a.jpg": content, "x/a.jpg": content})
    assert len(archive.list_records([str(tmp_path / "0.tar")])[0]) == 1
    for name in ("._0.tar", "._a.jpg", "__MACOSX/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert list_archive(str(tmp_path)) == [[str(tmp_path / "0.tar")]]


@pytest.mark.fault("a link in a folder of images that leads to a folder above it", "no image comes twice")
def test_a_folder_may_lead_to_itself(tmp_path):
    """Shards may have any case."""
    write_images(tmp_path / "images", 4)
    expected = list_archive(str(tmp_path))
    for name in ("again", "below/again"):
        (tmp_path / "images" / name).symlink_to(tmp_path)
    assert list_archive(str(tmp_path)) == expected
    distributed.write_tar(tmp_path / "0.TAR", {"a.JPG": b"x"})
    assert list_archive(str(tmp_path))[0] == [str(tmp_path / "0.TAR")]
    assert len(archive.list_records([str(tmp_path / "0.TAR")])[0]) == 1


@pytest.mark.fault("broken images and a broken shard in an archive", "left out and counted; the rest is indexed")
def test_broken_images_are_counted(embed, tmp_path):
    contents = write_images(tmp_path / "images", 6)
    write_shards(tmp_path / "shards", [*contents[:2], b"no image", *contents[3:]], per_shard=3)
    last = tmp_path / "shards/00003.tar"
    with tarfile.open(last) as tar:
        end = tar.getmembers()[2].offset_data + 100
    last.write_bytes(last.read_bytes()[:end])  # within the second image of the shard, after its caption

    counts = index_archive(list_archive(str(tmp_path / "shards/*.tar")), tmp_path / "index", embed)
    assert counts == {"images": 3, "broken": 3}  # no image, half an image, and the rest of the shard
    index = ImageIndex(tmp_path / "index", embed.digest())
    (records,) = index.search(torch.eye(128)[:1], 6)
    assert len(index) == len(records) == 3 and all(record.read() for record in records)


@pytest.mark.fault("a link to nothing in an archive", "counted as broken; the rest is indexed")
def test_broken_links_are_counted(embed, tmp_path):
    write_images(tmp_path / "images", 2)
    (tmp_path / "images/link.png").symlink_to(tmp_path / "nothing.png")
    counts = index_archive(list_archive(str(tmp_path / "images")), tmp_path / "index", embed)
    assert counts == {"images": 2, "broken": 1}


@pytest.mark.fault("a damaged header in a shard of an archive", "counted as unreadable, not taken for its end")
def test_damaged_headers_are_counted(embed, tmp_path):
    write_shards(tmp_path / "shards", write_images(tmp_path / "images", 3), per_shard=3)
    (shard,) = (tmp_path / "shards").glob("*.tar")
    with tarfile.open(shard) as tar:
        header = tar.getmembers()[2].offset
    content = bytearray(shard.read_bytes())
    content[header + 100 : header + 110] = b"\xff" * 10
    shard.write_bytes(content)
    assert index_archive([[str(shard)]], tmp_path / "index", embed)["broken"] == 1


@pytest.mark.fault("a compressed shard in an archive", "counted as unreadable: images in it have no place of their own")
def test_compressed_shards_are_counted(embed, tmp_path):
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz") as tar:
        tar.add(ROOT / "docs/page.png", "page.png")
    assert index_archive([[str(tmp_path / "0.tar.gz")]], tmp_path / "index", embed) == {"images": 0, "broken": 1}


@pytest.mark.fault("the making of an index is stopped", "the same command goes on, and ends with the same index")
def test_a_stopped_index_goes_on(embed, tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", write_images(tmp_path / "images", 9), per_shard=3)
    parts = list_archive(str(tmp_path / "shards/*.tar"))
    index_archive(parts, tmp_path / "whole", embed)

    # Stop at the third part
    class StoppedEmbedder(ImageEmbedder):
        calls = 0

        def __call__(self, images):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        index_archive(parts, tmp_path / "stopped", StoppedEmbedder(embed.model))
    files = sorted((tmp_path / "stopped").iterdir())
    assert len(files) == 2
    with pytest.raises(ValueError, match="has 2 of 3 files: the command that made them"):
        ImageIndex(tmp_path / "stopped", embed.digest())

    # Go on
    times = [file.stat().st_mtime_ns for file in files]
    assert index_archive(parts, tmp_path / "stopped", embed) == {"images": 9, "broken": 0}
    assert [file.stat().st_mtime_ns for file in files] == times
    for file in (tmp_path / "whole").iterdir():
        expected, tensors = read_tensors(file), read_tensors(tmp_path / "stopped" / file.name)
        assert all(torch.equal(tensors[name], expected[name]) for name in ("features", "spans", "files"))


@pytest.mark.fault("an index is made in the folder of another CLIP's, or another archive's", "it is refused, and kept")
def test_another_index_is_kept(embed, tmp_path):
    write_images(tmp_path / "images", 3)
    files = list_archive(str(tmp_path / "images"))
    index_archive(files, tmp_path / "index", embed)
    before = part_path(tmp_path / "index", 0, 1).read_bytes()

    with pytest.raises(ValueError, match="index of another archive.*--output FOLDER"):
        index_archive([files[0][:2]], tmp_path / "index", embed)
    other = MaskCLIP(load_config(ROOT / "configs/shapes/reco.yaml", ["MODEL.CLIP.PRETRAINED", ""]))
    with pytest.raises(ValueError, match="index of another CLIP"):
        index_archive(files, tmp_path / "index", ImageEmbedder(other))
    with pytest.raises(ValueError, match="index of another CLIP"):
        ImageIndex(tmp_path / "index", ImageEmbedder(other).digest())
    assert part_path(tmp_path / "index", 0, 1).read_bytes() == before


@pytest.mark.fault("a file of an index is cut off", "one error names it")
def test_a_damaged_index_is_named(tmp_path):
    write_random_index(tmp_path, [4, 4])
    path = part_path(tmp_path, 1, 2)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="00001-of-00002.safetensors' is cut off"):
        ImageIndex(tmp_path, "clip").search(torch.eye(16)[:1], 3)


# ------------------------------------------------------------------------------------ the command


def test_command_makes_the_index_of_a_dataset(in_world, tmp_path, capsys):
    """Captions are not read; a second call finds all done."""
    command = ["shapes_train", "--output", str(tmp_path / "index"), "--workers", "0"]
    for _ in range(2):
        main(argument_parser().parse_args(command))
        assert "300 images, 0 broken ones left out" in capsys.readouterr().out


@pytest.mark.fault("the index of an archive that is not there, or on the web", "one error says what is expected")
@pytest.mark.parametrize(
    "name, parts",
    [
        ("no_such", ["'no_such' is no archive of images", "a folder, shards (.tar), or a registered dataset"]),
        ("none/*.tar", ["'none/*.tar' is no archive of images"]),
        ("none/{0..3}.tar", ["4 of 4 shards of", "are missing, such as none/0.tar"]),
        ("https://example.com/0.tar", ["not on this disk", "download them first"]),
    ],
)
def test_archives_that_are_not_there_are_named(world, tmp_path, name, parts):
    check_error(run(world, "-m", "tcl_d2", "index", name, "--output", tmp_path / "index"), *parts)
    assert not (tmp_path / "index").exists()


def test_command_says_that_an_archive_is_empty(world, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run(world, "-m", "tcl_d2", "index", tmp_path / "empty", "--output", tmp_path / "index")
    assert done.returncode == 0 and "no image that can be read" in done.stdout and "0 images" in done.stdout
