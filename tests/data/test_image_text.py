"""Image-text sources as catalog entries: what each format gives, and the one clear error when something is missing."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tcl_d2.data import (
    build_image_text_train_loader,
    check_datasets,
    register_caption_folder,
    register_caption_list,
    register_coco_captions,
    register_webdataset,
)
from tcl_d2.data.pairs.shards import expand_shards
from tests.data.distributed import write_tar


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def register():
    """Registers under names that are gone after the test."""
    names = []

    def call(function, name, *args, **options):
        names.append(name)
        function(name, *args, **options)
        return lambda: DatasetCatalog.get(name)

    yield call
    for name in names:
        DatasetCatalog.remove(name)


def save_image(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


def test_builtin_names_are_registered_without_touching_the_disk(root):
    assert {"cc3m_train", "cc12m_train", "coco_captions_train2017", "shapes_train"} <= set(DatasetCatalog.list())
    assert not list(root.iterdir())


def test_shards_brace_patterns_and_globs(root):
    for name in ("a/00000.tar", "a/00001.tar", "b/x.tar"):
        write_tar(root / name, {})
    assert expand_shards("a/{00000..00001}.tar", root) == [str(root / f"a/0000{i}.tar") for i in range(2)]
    assert expand_shards(["a/*.tar", "b/x.tar"], root) == [
        str(root / n) for n in ("a/00000.tar", "a/00001.tar", "b/x.tar")
    ]


def test_shards_sizes(root, register):
    for i, count in enumerate((7, 5)):
        write_tar(root / f"s/0000{i}.tar", {})
        (root / f"s/0000{i}_stats.json").write_text(json.dumps({"successes": count}))
    rows = register(register_webdataset, "t_shards", "s/*.tar")()
    assert [row["num_samples"] for row in rows] == [7, 5]
    rows = register(register_webdataset, "t_told", "s/*.tar", num_samples=40)()
    assert sum(row["num_samples"] for row in rows) == 40


def test_shards_of_which_nothing_says_their_size_are_counted(root, register):
    """Each image is a pair; of many shards some are counted, and the others taken for alike."""
    for i in range(20):
        samples = {f"{k}.{suffix}": b"x" for k in range(3 if i < 10 else 5) for suffix in ("JPG", "txt", "json")}
        write_tar(root / f"s/{i:05d}.tar", samples)
    (root / "s/00000_stats.json").write_text(json.dumps({"successes": 7}))
    rows = register(register_webdataset, "t_counted", "s/*.tar")()
    assert (
        rows[0]["num_samples"] == 7
        and rows[1]["num_samples"] == 3
        and {3, 4, 5} >= {row["num_samples"] for row in rows[1:]}
    )
    assert sum(row["num_samples"] for row in rows) == pytest.approx(84, abs=5)
    (root / "s/00002.tar").write_bytes(b"no tar")
    assert register(register_webdataset, "t_broken", "s/00002.tar")()[0]["num_samples"] == 0


def test_one_list_of_sizes_serves_all_shards(root, register):
    splits = {"train": {"filenames": ["a.tar", "b.tar"], "shard_lengths": [7, 5]}, "val": {}}
    splits["val"] = {"filenames": ["c.tar"], "shard_lengths": [2]}
    for name in "abc":
        write_tar(root / f"s/{name}.tar", {})
    (root / "s/_info.json").write_text(json.dumps({"splits": splits}))
    rows = register(register_webdataset, "t_info", "s/{a,c}.tar")()
    assert [row["num_samples"] for row in rows] == [7, 2]


def test_a_warning_says_what_is_left_of_a_published_dataset(root, register, caplog):
    write_tar(root / "s/00000.tar", {})
    (root / "s/00000_stats.json").write_text(json.dumps({"successes": 620}))
    load = register(register_webdataset, "t_published", "s/*.tar", num_published=1000)
    with caplog.at_level(logging.WARNING):
        assert load()[0]["num_samples"] == 620
    assert "Dataset 't_published' has about 620 pairs, 62 % of the published 1,000" in caplog.text

    (root / "s/00000_stats.json").write_text(json.dumps({"successes": 1001}))
    caplog.clear()
    assert load()[0]["num_samples"] == 1001 and "t_published" not in caplog.text


@pytest.mark.fault("a broken *_stats.json beside a shard", "refused, with the file's name and what was expected")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"count": 7}', '{"successes": null}'])
def test_broken_statistics_of_shards_are_named(root, register, text):
    write_tar(root / "s/00000.tar", {})
    (root / "s/00000_stats.json").write_text(text)
    with pytest.raises(ValueError, match="'t_shards': .*00000_stats.json is broken .* expected .*'successes'"):
        register(register_webdataset, "t_shards", "s/*.tar")()


@pytest.mark.fault("a broken _info.json beside shards", "refused, with the file's name and what was expected")
@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"splits": {"train": {}}}', '{"splits": {"train": {"filenames": 3}}}']
)
def test_broken_lists_of_sizes_are_named(root, register, text):
    write_tar(root / "s/00000.tar", {})
    (root / "s/_info.json").write_text(text)
    with pytest.raises(ValueError, match="'t_shards': .*s/_info.json is broken .* expected .*'splits'.*num_samples"):
        register(register_webdataset, "t_shards", "s/*.tar")()


def test_missing_shards(root, register):
    load = register(register_webdataset, "t_missing", "s/{0..3}.tar", 10, prepare="fetch them")
    with pytest.raises(FileNotFoundError, match=r"t_missing.*4 of 4 shards.*DETECTRON2_DATASETS=.*fetch them"):
        load()


@pytest.mark.fault("COCO captions of images that are missing or not listed", "an error before anything is built")
def test_coco_captions_groups_by_image(root, register):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [{"image_id": i, "caption": c} for i, c in ((1, "one"), (2, "two"), (1, "uno"))],
    }
    (root / "c.json").write_text(json.dumps(content))
    for name in "ab":
        save_image(root / f"img/{name}.jpg")
    load = register(register_coco_captions, "t_coco", "c.json", "img")
    assert load() == [
        {"file_name": str(root / "img/a.jpg"), "captions": ["one", "uno"]},
        {"file_name": str(root / "img/b.jpg"), "captions": ["two"]},
    ]

    (root / "img/b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images of .*c.json are missing, such as .*b.jpg"):
        load()
    content["annotations"][1] |= {"id": 5, "image_id": 7}
    (root / "c.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 5: no image has the ID 7"):
        load()
    (root / "c.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="no COCO Captions"):
        load()
    (root / "c.json").unlink()
    with pytest.raises(FileNotFoundError, match="c.json"):
        load()


@pytest.mark.fault("a list or COCO captions with an image outside of their folder", "one error names list and path")
@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.jsonl", "c.json"])
@pytest.mark.parametrize("image", ["../outside.png", "below/../../outside.png", "/outside.png"])
def test_lists_name_no_images_outside(root, register, name, image):
    """Also where there is such an image; absolute paths below the folder will do."""

    def write(path: str) -> None:
        texts = {"csv": f"image,caption\n{path},one\n", "tsv": f"image\tcaption\n{path}\tone\n"}
        texts["jsonl"] = json.dumps({"image": path, "caption": "one"})
        content = {"images": [{"id": 1, "file_name": path}], "annotations": [{"image_id": 1, "caption": "one"}]}
        (root / name).write_text({**texts, "json": json.dumps(content)}[name.partition(".")[2]])

    save_image(root / "outside.png")
    save_image(root / "images/a.png")
    register_pairs = register_coco_captions if name == "c.json" else register_caption_list
    load = register(register_pairs, "t_list", name, "images")
    write(str(root / image.strip("/")) if image.startswith("/") else image)
    with pytest.raises(ValueError) as raised:
        load()
    assert all(part in str(raised.value) for part in ("'t_list'", name, image, str(root / "images")))
    write(str(root / "images/a.png"))
    assert load() == [{"file_name": str(root / "images/a.png"), "captions": ["one"]}]


@pytest.mark.parametrize(
    "name, text",
    [
        ("l.csv", 'image,caption\na.png,"one, with comma"\nsub/b.png,two\na.png,uno\n'),
        ("l.tsv", "image\tcaption\na.png\tone, with comma\nsub/b.png\ttwo\na.png\tuno\n"),
        (
            "l.jsonl",
            '{"image": "a.png", "caption": ["one, with comma", "uno"]}\n\n{"image": "sub/b.png", "caption": "two"}\n',
        ),
    ],
)
def test_lists_of_every_format_give_the_same_pairs(root, register, name, text):
    save_image(root / "lists/a.png")
    save_image(root / "lists/sub/b.png")
    (root / "lists" / name).write_text(text)
    assert register(register_caption_list, "t_list", f"lists/{name}")() == [
        {"file_name": str(root / "lists/a.png"), "captions": ["one, with comma", "uno"]},
        {"file_name": str(root / "lists/sub/b.png"), "captions": ["two"]},
    ]


@pytest.mark.fault("line separators, quotes and line ends within captions", "the caption is as it was written")
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_captions_are_read_as_they_are_written(root, register, suffix, end):
    save_image(root / "a.png")
    captions = ["one\u2028two\x85three\x0cfour", '"quoted" word', '"a lone quote', "ä 你好"]
    if suffix != "tsv":
        captions.append("two\nlines")
    if suffix == "csv":
        rows = ["image,caption", *('a.png,"{}"'.format(text.replace('"', '""')) for text in captions)]
    elif suffix == "tsv":
        rows = ["image\tcaption", *(f"a.png\t{text}" for text in captions)]
    else:
        rows = [json.dumps({"image": "a.png", "caption": text}, ensure_ascii=False) for text in captions]
    (root / f"l.{suffix}").write_bytes(("\ufeff" + end.join(rows) + end).encode())
    load = register(register_caption_list, "t_list", f"l.{suffix}")
    assert load() == [{"file_name": str(root / "a.png"), "captions": captions}]


@pytest.mark.fault("a list of captions that is not UTF-8", "an error at the start; of some captions, a warning")
def test_a_caption_that_is_no_text_spoils_no_list(root, register, caplog):
    """It is counted as broken when it is its turn."""
    save_image(root / "a.png")
    (root / "l.csv").write_bytes(b"image,caption\na.png,stra\xdfe\na.png,street\n")
    load = register(register_caption_list, "t_list", "l.csv")
    assert load()[0]["captions"] == ["stra\udcdfe", "street"]
    assert "1 of the 2 captions" in caplog.text
    (root / "l.csv").write_bytes(b"image,caption\na.png,stra\xdfe\n")
    with pytest.raises(ValueError, match="'t_list': 1 of the 1 captions of .*l.csv are not UTF-8"):
        load()


@pytest.mark.fault("broken rows in a list of captions", "one error that names the row and what is wrong with it")
@pytest.mark.parametrize(
    "name, text, error, message",
    [
        ("l.csv", "picture,caption\na.png,one\n", ValueError, "row 1 .* has no 'image'"),
        ("l.csv", "image,caption\na.png\n", ValueError, "row 1 .* has no 'caption'"),
        ("l.csv", "image,caption\nnone.png,one\n", FileNotFoundError, "none.png"),
        ("l.csv", "image,caption\n", ValueError, "no rows"),
        ("l.jsonl", '{"image": "a.png", "caption": "one"}\n{oops\n', ValueError, "row 2 .* no JSON object"),
        ("l.csv", 'image,caption\na.png,one\na.png,"two\na.png,three\n', ValueError, "row 2 .* is a quote left open"),
        ("l.csv", 'image,caption\na.png,"two"s\n', ValueError, "row 1 .* is a quote left open, or not doubled"),
        ("l.csv", "image,caption\na.png," + "x" * 200_000, ValueError, "row 1 .* larger than field limit"),
        ("l.csv", "image,caption\na.png,one, two\n", ValueError, "row 1 .* more fields than the head line"),
        ("l.jsonl", '{"image": 7, "caption": "one"}\n', ValueError, "row 1 .* has a value of type int as 'image'"),
        (
            "l.jsonl",
            '{"image": "a.png", "caption": ["one", 2.5]}\n',
            ValueError,
            "row 1 .* has a value of type float as 'caption'",
        ),
        (
            "l.jsonl",
            '{"image": "a.png", "caption": {"en": "one"}}\n',
            ValueError,
            "row 1 .* has a value of type dict as 'caption'",
        ),
        ("l.txt", "a.png one\n", ValueError, "must end in"),
    ],
)
def test_broken_list_files(root, register, name, text, error, message):
    save_image(root / "a.png")
    (root / name).write_text(text)
    with pytest.raises(error, match=message):
        register(register_caption_list, "t_list", name)()


def test_all_missing_datasets_are_named_at_once(root):
    with pytest.raises(FileNotFoundError) as error:
        check_datasets(["cc3m_train", "shapes_val", "no_such_set"])
    for part in (
        "cc3m",
        "img2dataset",
        "shapes/val/images",
        "tcl-d2 prepare shapes",
        "'no_such_set' is not registered",
    ):
        assert part in str(error.value)


@pytest.mark.fault(
    "a training source in DATASETS.TEST, what has neither captions nor classes of pixels in DATASETS.TRAIN",
    "refused before anything is built",
)
def test_datasets_of_the_wrong_use_are_refused(in_world, tmp_path, forget):
    folder = str(tmp_path / "benchmark")
    shutil.copytree(in_world / "shapes/val", folder)
    Path(folder, "classes.txt").write_text("brick\nlava")
    forget(folder)
    check_datasets(train=["shapes_train"], test=["shapes_val", folder])
    check_datasets(train=["shapes_train", "shapes_val", folder])  # the last two have labels
    with pytest.raises(ValueError) as error:
        check_datasets(train=["shapes_train", "coco_2017_val", "no_set"], test=["shapes_train"])
    boxes, unknown, to_train_on = str(error.value).split("\n  ")
    assert "'coco_2017_val' is of the wrong kind: DATASETS.TRAIN takes image-text pairs" in boxes
    assert "tcl-d2 prepare labels " in boxes and "instances_val2017.json --images " in boxes
    assert "and labeled datasets" in boxes and "'no_set' is not registered" in unknown
    assert "'shapes_train' is of the wrong kind: DATASETS.TEST" in to_train_on

    # The same of a path that is met in DATASETS.TRAIN first
    captions = str(tmp_path / "captions")
    save_image(Path(captions, "a.png"))
    Path(captions, "a.txt").write_text("red")
    forget(captions)
    with pytest.raises(ValueError, match=f"'{captions}' is of the wrong kind: DATASETS.TEST"):
        check_datasets(train=[captions], test=[captions])


@pytest.fixture
def forget():
    """Takes names that are registered in the test out of the catalogs after it."""
    names = []
    yield names.append
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("name", ["captions", "my/a.csv", "my/a.jsonl", "my/s/{00000..00001}.tar", "my/s/*.tar"])
def test_a_path_is_a_source_to_train_on(tmp_path, monkeypatch, forget, name):
    """Below the working directory, as a benchmark's; also a folder there without a slash."""
    monkeypatch.chdir(tmp_path)
    for path in ("captions/a.jpg", "captions/deep/my.photo.png", "my/a.jpg", "my/b.jpg"):
        save_image(Path(path))
    Path("captions/a.txt").write_text("one")
    Path("captions/deep/my.photo.txt").write_text("\ufefftwo", encoding="utf-8")
    Path("my/a.csv").write_text("image,caption\na.jpg,one\nb.jpg,two\n")
    Path("my/a.jsonl").write_text('{"image": "a.jpg", "caption": "one"}\n{"image": "b.jpg", "caption": "two"}\n')
    for i, caption in enumerate((b"one", b"two")):
        write_tar(Path(f"my/s/0000{i}.tar"), {"a.jpg": Path("my/a.jpg").read_bytes(), "a.txt": caption})

    forget(name)
    check_datasets(train=[name])
    check_datasets(train=[name])  # registered once
    monkeypatch.chdir("/")  # a path does not move with the working directory
    loader = build_image_text_train_loader([name], mapper=lambda sample: sample, total_batch_size=2)
    texts = {
        caption if isinstance(caption, str) else caption.decode()
        for s in next(iter(loader))
        for caption in s["captions"]
    }
    assert texts == {"one", "two"}


def test_images_without_a_caption_are_left_out(root, register, caplog):
    for name in ("a.png", "b.webp", "c.jpg"):
        save_image(root / "set" / name)
    os.mkfifo(root / "set/c.txt")
    (root / "set/b.txt").write_text("red\nand round")
    load = register(register_caption_folder, "t_folder", "set")
    with caplog.at_level(logging.WARNING):
        assert load() == [{"file_name": str(root / "set/b.webp"), "captions": ["red\nand round"]}]
    assert (
        "'t_folder': 2 of 3 images have no caption in UTF-8, such as" in caplog.text
        and "set/a.txt: left out" in caplog.text
    )


@pytest.mark.fault(
    "a folder to train on without images, captions or names of its own", "an error that says what to put"
)
@pytest.mark.parametrize(
    "files, message",
    [
        ((), "no folder .*set. Looked below .* put a caption in NAME.txt beside each image NAME.jpg; shards are"),
        (("a.txt",), "no images in .*set. Looked below"),
        (("a.jpg", "b.jpg"), "2 of 2 images have no caption in UTF-8, such as .*set/a.txt"),
        (("a.jpg", "a.png", "a.txt"), "two images have the name 'a'"),
    ],
)
def test_folders_that_cannot_be_trained_on(root, register, files, message):
    for name in files:
        (root / "set").mkdir(exist_ok=True)
        (root / "set" / name).write_text("x")
    with pytest.raises((FileNotFoundError, ValueError), match=f"'t_folder': {message}"):
        register(register_caption_folder, "t_folder", "set")()


@pytest.mark.fault("a path in DATASETS.TRAIN that is nothing to train on", "an error that says what can be given")
def test_paths_that_cannot_be_trained_on(tmp_path, forget):
    (tmp_path / "notes.txt").write_text("x")
    forget(str(tmp_path / "gone.csv"))
    with pytest.raises(FileNotFoundError) as error:
        check_datasets(train=[str(tmp_path / name) for name in ("notes.txt", "no_folder", "gone.csv")])
    notes, no_folder, gone = str(error.value).split("\n  ")
    for text in (notes, no_folder):
        assert "no path of pairs to train on: expected a folder of images with captions" in text
    assert "there is no list" in gone


def test_a_catalog_entry_without_metadata_can_be_trained_on(register):
    register(DatasetCatalog.register, "t_plain", lambda: [{"file_name": "a.png", "captions": ["a"]}])
    check_datasets(train=["t_plain"])
    with pytest.raises(ValueError, match="'t_plain' is of the wrong kind"):
        check_datasets(test=["t_plain"])
