"""The catalog of benchmarks: what is registered, label rules, own folders, and errors for what is missing."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tcl_d2.data import check_datasets, register_benchmark, register_benchmark_folder
from tcl_d2.data.dataset_files import find_images, subsample
from tcl_d2.data.labels import LabelMapper, parse_rule

EIGHT = {  # classes, images, and whether there is a background, as published
    "zeroshot_voc_val": (21, 1449, True),
    "zeroshot_context_val": (60, 5104, True),
    "zeroshot_coco_object_val": (81, 5000, True),
    "zeroshot_voc20_val": (20, 1449, False),
    "zeroshot_context59_val": (59, 5104, False),
    "zeroshot_coco_stuff_val": (171, 5000, False),
    "zeroshot_cityscapes_val": (19, 500, False),
    "zeroshot_ade20k_val": (150, 2000, False),
}


@pytest.mark.parametrize("name", EIGHT)
def test_the_eight_are_registered(name):
    metadata = MetadataCatalog.get(name)
    classes, images, background = EIGHT[name]
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == classes
    assert len(metadata.stuff_colors) == classes and all(len(color) == 3 for color in metadata.stuff_colors)
    assert images in metadata.num_images and metadata.background == background
    assert (metadata.stuff_classes[0] == "background") == background
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "zero_shot_sem_seg")


def test_pairs_have_the_same_words():
    words = {name: MetadataCatalog.get(name).stuff_classes for name in EIGHT}
    assert words["zeroshot_voc_val"][1:] == words["zeroshot_voc20_val"]
    assert words["zeroshot_context_val"][1:] == words["zeroshot_context59_val"]
    assert words["zeroshot_coco_object_val"][1:] == words["zeroshot_coco_stuff_val"][:80]
    assert words["zeroshot_ade20k_val"][7] == "bed "  # the published prompts had the blank


def test_lvis_has_1203_words_and_its_own_ignored_value():
    metadata = MetadataCatalog.get("zeroshot_lvis_val")
    assert len(set(metadata.stuff_classes)) == len(metadata.stuff_classes) == 1203
    rule = LabelMapper.of("zeroshot_lvis_val")
    values = np.array([[0, 1, 255, 256, 1203]], np.uint16)
    assert rule(values, "x").tolist() == [[1203, 0, 254, 255, 1202]]


@pytest.mark.parametrize("name, classes, images", [("ade847", 847, [2000]), ("context459", 459, [5104, 5105])])
def test_large_benchmarks_are_registered(name, classes, images):
    metadata = MetadataCatalog.get(f"zeroshot_{name}_val")
    assert len(set(metadata.stuff_classes)) == len(set(metadata.stuff_colors)) == classes
    assert list(metadata.num_images) == images and (metadata.ignore_label, metadata.background) == (65535, False)
    mapped = LabelMapper.of(metadata.name)(np.array([[0, 255, classes - 1, 65535]], np.uint16), "x")
    assert mapped.tolist() == [[0, 255, classes - 1, classes]]
    with pytest.raises(ValueError, match=f"has the value {classes}, which stands for no class"):
        LabelMapper.of(metadata.name)(np.array([[classes]], np.uint16), "x")


def test_rules_are_spelled_out_as_label_maps():
    assert parse_rule({"0": "ignore", "1..3": "0..2", "7..8": 2}, 255) == {0: 255, 1: 0, 2: 1, 3: 2, 7: 2, 8: 2}
    with pytest.raises(ValueError):
        parse_rule({"1..3": "0..1"}, 255)


def test_ignored_value_must_not_be_a_class():
    with pytest.raises(ValueError, match="label 255 is also the index"):
        LabelMapper(300, None, 255)


def test_a_quick_look_meets_all_of_a_dataset():
    assert subsample(range(10), 4) == [0, 2, 5, 7]
    assert subsample(range(3), 0) == subsample(range(3), 9) == [0, 1, 2]


def test_all_that_is_missing_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        check_datasets([*EIGHT, "zeroshot_lvis_val"])
    lines = str(error.value).splitlines()
    assert len(lines) == 9
    for name, line in zip([*EIGHT, "zeroshot_lvis_val"], lines):
        assert name in line and f"DETECTRON2_DATASETS={tmp_path}" in line and "tcl-d2 prepare " in line


def test_half_prepared_data_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "VOC2012/ImageSets/Segmentation/val.txt").write_text("a\nb\n", encoding="utf-8-sig")
    with pytest.raises(FileNotFoundError, match="'zeroshot_voc_val': 2 of 2 images are missing, such as .*a.jpg"):
        DatasetCatalog.get("zeroshot_voc_val")

    (tmp_path / "VOC2012/JPEGImages").mkdir()
    for key in "ab":
        (tmp_path / f"VOC2012/JPEGImages/{key}.jpg").touch()
    with pytest.raises(FileNotFoundError, match="no folder .*SegmentationClass"):
        DatasetCatalog.get("zeroshot_voc_val")

    (tmp_path / "VOC2012/SegmentationClass").mkdir()
    (tmp_path / "VOC2012/SegmentationClass/a.png").touch()
    with pytest.raises(FileNotFoundError, match="1 of 2 labels are missing, such as .*b.png"):
        DatasetCatalog.get("zeroshot_voc_val")

    (tmp_path / "VOC2012/ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(ValueError, match="'zeroshot_voc_val': the list .*val.txt is empty"):
        DatasetCatalog.get("zeroshot_voc_val")


@pytest.mark.fault("a benchmark's list with an ID that leads out of its folder", "an error names list and ID")
def test_lists_name_no_images_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "VOC2012/ImageSets/Segmentation/val.txt").write_text("a\n../outside\n")
    with pytest.raises(ValueError) as raised:
        DatasetCatalog.get("zeroshot_voc_val")
    assert all(part in str(raised.value) for part in ("zeroshot_voc_val", "val.txt", "'../outside'"))


# ------------------------------------------------------------------------------------------------------ own folders


@pytest.fixture
def folder(tmp_path):
    for subfolder in ("images/x", "labels/x"):
        (tmp_path / "own" / subfolder).mkdir(parents=True)
    for key, suffix in (("a", "jpg"), ("x/b", "webp")):
        Image.new("RGB", (8, 6)).save(tmp_path / f"own/images/{key}.{suffix}")
        Image.new("L", (8, 6), 1).save(tmp_path / f"own/labels/{key}.png")
    (tmp_path / "own/classes.txt").write_text("background\nred car\nstraße\n", encoding="utf-8")
    yield tmp_path / "own"
    for name in (str(tmp_path / "own"), "t_own"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_a_folder_becomes_a_benchmark(folder):
    register_benchmark_folder(str(folder), "t_own")
    metadata = MetadataCatalog.get("t_own")
    assert metadata.stuff_classes == ["background", "red car", "straße"] and metadata.background
    assert [row["image_id"] for row in DatasetCatalog.get("t_own")] == ["a", "x/b"]
    with pytest.raises(AssertionError, match="'t_own' is already"):
        register_benchmark_folder(str(folder), "t_own")


def test_classes_of_a_folder_have_further_words(folder):
    """The first word is the class's name; that of the background is no word to look for."""
    (folder / "classes.txt").write_text("background\nred car, van\ncat\n")
    register_benchmark_folder(str(folder), "t_own")
    metadata = MetadataCatalog.get("t_own")
    assert metadata.stuff_classes == ["background", "red car", "cat"] and metadata.background
    assert metadata.class_words == [["red car", "van"], ["cat"]]

    (folder / "classes.txt").write_text("background; sky; wall\ncat\n")
    register_benchmark_folder(str(folder))
    assert MetadataCatalog.get(str(folder)).class_words == [["sky", "wall"], ["cat"]]


def test_a_benchmark_has_words_besides_its_names():
    options = {"images": "x", "labels": "x", "classes": ["background", "boat", "cat"], "background": True}
    try:
        register_benchmark("t_own", **options, class_words=[["sky", "cat"], "ship", ("cat", "kitten")])
        assert MetadataCatalog.get("t_own").class_words == [["sky", "cat"], ["ship"], ["cat", "kitten"]]
        assert MetadataCatalog.get("t_own").stuff_classes == ["background", "boat", "cat"]
    finally:
        DatasetCatalog.remove("t_own")
        MetadataCatalog.remove("t_own")


@pytest.mark.fault("a benchmark with words for another number of classes, or with a word twice", "an error names it")
@pytest.mark.parametrize(
    "class_words, message",
    [
        ([["ship"]], "'t_own': words for 1 classes, but the dataset has 3"),
        ([["ship"], []], "'t_own', class 2: a class without words"),
        ([["ship"], ["cat", "ship"]], "'t_own', class 2: the word 'ship' also stands for class 1"),
        ([["sky"], ["ship"], ["boat"]], "'t_own', class 2: 'boat' is the name of another class, which has class 1"),
    ],
)
def test_class_words_that_do_not_fit_are_refused(class_words, message):
    options = {"images": "x", "labels": "x", "classes": ["background", "boat", "cat"], "background": True}
    with pytest.raises(ValueError, match=message):
        register_benchmark("t_own", **options, class_words=class_words)
    assert "t_own" not in DatasetCatalog.list()


def test_a_byte_order_mark_hides_no_background(folder):
    (folder / "classes.txt").write_text("background\ncat\n", encoding="utf-8-sig")
    register_benchmark_folder(str(folder), "t_own")
    metadata = MetadataCatalog.get("t_own")
    assert metadata.stuff_classes == ["background", "cat"] and metadata.background


@pytest.mark.fault("a class word twice in classes.txt", "refused, with the word and its two labels")
def test_a_word_for_two_labels_is_refused(folder):
    (folder / "classes.txt").write_text("crane\ncat\ncrane\n")
    with pytest.raises(ValueError, match=r"classes.txt, line 3: the word 'crane' .* line 1\..*'crane \(bird\)'"):
        register_benchmark_folder(str(folder), "t_own")
    assert "t_own" not in DatasetCatalog.list()


def test_a_folders_path_is_a_name(folder):
    check_datasets([str(folder)])
    assert len(DatasetCatalog.get(str(folder))) == 2


@pytest.mark.fault("._* and __MACOSX in a benchmark's folder", "no images of it")
def test_leftovers_of_macos_are_no_images(folder):
    for name in ("images/._a.jpg", "labels/._a.png", "images/__MACOSX/c.jpg", "images/x/@eaDir/b.jpg/thumb.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    register_benchmark_folder(str(folder), "t_own")
    assert [row["image_id"] for row in DatasetCatalog.get("t_own")] == ["a", "x/b"]


@pytest.mark.fault("links that lead back to a folder that they are in, in a folder of images", "skipped, and named")
def test_links_that_lead_back_are_skipped(folder, caplog):
    """Of a benchmark, of pairs or an archive; links to other folders are followed."""
    (folder / "more").mkdir()
    for name, target in (
        ("images/up", ".."),
        ("images/x/self", "."),
        ("images/more", "../more"),
        ("more/x", "../images"),
    ):
        (folder / name).symlink_to(target)
    Image.new("RGB", (8, 6)).save(folder / "more/c.png")
    assert find_images(str(folder / "images")).keys() == {"a", "x/b", "more/c"}
    assert all(f"images/{name}," in caplog.text for name in ("up", "x/self", "more/x"))


def test_unfit_folders_are_refused(folder):
    Image.new("RGB", (8, 6)).save(folder / "images/a.png")
    with pytest.raises(ValueError, match=f"'{folder}': two images have the name 'a', .*; rename or remove one"):
        check_datasets([str(folder)])
    (folder / "classes.txt").write_text("\n")
    with pytest.raises(ValueError, match="classes.txt names no class"):
        register_benchmark_folder(str(folder), "t_own")
    (folder / "classes.txt").write_text("\n".join(map(str, range(256))))
    register_benchmark_folder(str(folder), "t_own")
    with pytest.raises(ValueError, match="'t_own': .* 255 .* 256 classes"):
        check_datasets(["t_own"])
    (folder / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no file .*classes.txt.*images/, labels/"):
        register_benchmark_folder(str(folder), "t_own")
    with pytest.raises(FileNotFoundError, match="/no/such"):
        check_datasets(["/no/such"])


def test_small_worlds_three_benchmarks_read_the_same_files(in_world):
    names = ("shapes_val", "shapes_objects_val", "shapes_stuff_val")
    files = [[row["sem_seg_file_name"] for row in DatasetCatalog.get(name)] for name in names]
    assert len(files[0]) == 12 and files[0] == files[1] == files[2]
    label = np.array(Image.open(files[0][0]))
    rules = [LabelMapper.of(name)(label, "x") for name in names]
    things = label < 23
    assert (rules[0][~things] == 0).all() and (rules[0][things] == label[things] + 1).all()
    assert (rules[1][~things] == 23).all() and (rules[1][things] == label[things]).all()  # 23 classes: ignored
    assert (rules[2] == label).all()
