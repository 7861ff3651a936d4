"""Labeled images to train on: image and label stay in step, the classes that are drawn, their share of a batch."""

from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from tcl_d2 import load_config
from tcl_d2.data import LabeledDatasets, SemSegDatasetMapper, build_image_text_train_loader, check_datasets
from tcl_d2.data.labeled import is_labeled, split_batch
from tcl_d2.data.shapes import NOVEL
from tests.conftest import ROOT


@pytest.fixture
def labeled(tmp_path):
    """A function that writes and registers a labeled dataset in Detectron2's way, and returns its rows."""
    names = []

    def register(name: str, labels: list[np.ndarray], classes: list[str], **metadata) -> list[dict]:
        rows = []
        for i, label in enumerate(labels):
            paths = [str(tmp_path / f"{name}_{i}_{part}.png") for part in ("image", "label")]
            gray = np.repeat((label & 255)[..., None], 3, 2).astype(np.uint8)  # of the class
            Image.fromarray(gray).save(paths[0])
            Image.fromarray(label).save(paths[1])
            rows.append({"file_name": paths[0], "sem_seg_file_name": paths[1]})
        DatasetCatalog.register(name, lambda: rows)
        MetadataCatalog.get(name).set(stuff_classes=classes, **{"ignore_label": 255, **metadata})
        names.append(name)
        return rows

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def random_label(*size: int, classes: int = 5, dtype: type = np.uint8) -> np.ndarray:
    """Draw blocks of 8 x 8 pixels of random classes."""
    blocks = np.random.default_rng(0).integers(0, classes, [-(-side // 8) for side in size])
    return np.kron(blocks, np.ones((8, 8)))[: size[0], : size[1]].astype(dtype)


CLASSES = ["cat", "dog", "cow", "hen", "pig"]


# ------------------------------------------------------------------------------------------- the mapper


@pytest.mark.parametrize("size", [(64, 96), (20, 30)])  # the second is smaller than the crop
def test_image_and_label_stay_in_step(labeled, size):
    """Each pixel of the image has the value of its class; after a resize by nearest, still each of them."""
    (row,) = labeled("t_step", [random_label(*size)], CLASSES)
    nearest = T.ResizeShortestEdge((16, 90), sample_style="range", interp=Image.NEAREST)
    crop = T.FixedSizeCrop((32, 32), pad_value=0, seg_pad_value=255)
    mapper = SemSegDatasetMapper(["t_step"], augmentations=[nearest, T.RandomFlip(), crop])
    np.random.seed(0)
    samples = [mapper({**row, "dataset_name": "t_step"}) for _ in range(30)]
    for sample in samples:
        counts = sample["sem_seg"] != 255
        assert sample["image"].shape == (3, 32, 32) and sample["sem_seg"].shape == (32, 32)
        assert counts.any() and torch.equal(sample["image"][0][counts].long(), sample["sem_seg"][counts])
    assert len({str(sample["sem_seg"].tolist()) for sample in samples}) > 20


def test_labels_of_16_bits_stay_whole(labeled):
    classes = [f"word {k}" for k in range(700)]
    label = random_label(64, 64, classes=700, dtype=np.uint16)
    label[:8, :8] = 65535
    (row,) = labeled("t_16", [label], classes, ignore_label=65535)
    mapper = SemSegDatasetMapper(["t_16"], augmentations=[T.Resize((32, 32))], num_absent=0)
    sample = mapper({**row, "dataset_name": "t_16"})
    assert torch.equal(sample["sem_seg"], torch.from_numpy(label[::2, ::2].astype(np.int64)))
    assert sample["classes"].tolist() == sorted(set(label.ravel().tolist()) - {65535})


def test_classes_that_are_there_come_first_then_drawn_absent_ones(labeled):
    """Without the background; ignored pixels are of no class, and no class of a name that is there is absent."""
    label = np.full((16, 16), 255, np.uint8)
    label[:4], label[4:8] = 0, 2
    metadata = {"background": True, "class_words": [["kitten"], ["puppy"], ["calf", "kitten"], ["piglet"]]}
    (row,) = labeled("t_absent", [label], ["background", *CLASSES[:4]], **metadata, shared_words=True)
    mapper = SemSegDatasetMapper(["t_absent"], augmentations=[], num_absent=1)
    drawn = {tuple(mapper({**row, "dataset_name": "t_absent"})["classes"].tolist()) for _ in range(40)}
    assert drawn == {(2, 1), (2, 3), (2, 4)}
    MetadataCatalog.get("t_absent").class_words[0] = ["puppy"]
    mapper = SemSegDatasetMapper(["t_absent"], augmentations=[], num_absent=9)
    sample = mapper({**row, "dataset_name": "t_absent"})
    assert sample["classes"][0] == 2 and sorted(sample["classes"].tolist()) == [2, 3, 4]  # 1 has the word of 2


@pytest.mark.fault("a label of another size than its image, or a value of no class", "an error that names the file")
@pytest.mark.parametrize(
    "label, message",
    [
        (np.zeros((5, 9), np.uint8), r"label .*_label.png has 5 x 9 pixels, but its image .* 16 x 16"),
        (np.full((16, 16), 7, np.uint8), r"Label .*_label.png has the value 7, which stands for no class"),
    ],
)
def test_labels_that_do_not_fit(labeled, label, message):
    (row,) = labeled("t_unfit", [np.zeros((16, 16), np.uint8)], CLASSES)
    Image.fromarray(label).save(row["sem_seg_file_name"])
    with pytest.raises(OSError, match=f"Dataset 't_unfit': {message}"):
        SemSegDatasetMapper(["t_unfit"], augmentations=[])({**row, "dataset_name": "t_unfit"})


@pytest.mark.fault("a labeled picture whose size is not that of its row", "an error names it")
def test_images_of_another_size_than_their_rows(labeled):
    (row,) = labeled("t_size", [random_label(16, 24)], CLASSES)
    mapper = SemSegDatasetMapper(["t_size"], augmentations=[])
    assert mapper({**row, "dataset_name": "t_size", "height": 16, "width": 24})["height"] == 16
    with pytest.raises(OSError, match=r"Dataset 't_size': .* image .*, got \(24, 16\), expect \(16, 24\)"):
        mapper({**row, "dataset_name": "t_size", "height": 24, "width": 16})


@pytest.mark.fault("masks of 0 and 255 as labels to train on", "a warning: 255 is ignored")
def test_masks_of_0_and_255_are_told(labeled, caplog):
    for name, value in (("t_masks", 255), ("t_labels", 1)):
        labeled(name, [random_label(16, 16, classes=2) * value] * 3, CLASSES[:2])
        LabeledDatasets([name], mapper=dict)
    assert "'t_masks'" in caplog.text and "0 and 255" in caplog.text and "t_labels" not in caplog.text


@pytest.mark.fault("a labeled picture so thin that a resize leaves no pixel", "an error names it and its size")
def test_a_picture_that_is_too_thin_is_named(labeled):
    (row,) = labeled("t_thin", [np.zeros((1, 9000), np.uint8)], CLASSES)
    resize = T.ResizeShortestEdge((48, 48), 96)
    mapper = SemSegDatasetMapper(["t_thin"], augmentations=[resize])
    with pytest.raises(OSError, match=r"'t_thin': .*t_thin_0_image.png \(9000 x 1 pixels\)"):
        mapper({**row, "dataset_name": "t_thin"})


def test_default_augmentation_is_detectron2s(in_world):
    """Short sides of INPUT.MIN_SIZE_TRAIN, a flip, and a crop of the size of the image-text mapper's."""
    cfg = load_config(ROOT / "configs/shapes/finetune.yaml")
    mapper = SemSegDatasetMapper(cfg, ["shapes_sem_seg_train"])
    resize, flip, crop = mapper.augmentations.augs
    assert tuple(resize.short_edge_length) == (48, 54) and crop.crop_size == (48, 48) and isinstance(flip, T.RandomFlip)


# ------------------------------------------------------------------------------------------- the small world


def test_novel_classes_of_the_small_world_are_ignored(in_world):
    whole, base = (DatasetCatalog.get(f"shapes_{name}_train") for name in ("sem_seg", "base_sem_seg"))
    without_names = [[{**row, "dataset_name": ""} for row in rows] for rows in (whole, base)]
    assert without_names[0] == without_names[1] and len(whole) == 12
    labels = []
    for name in ("shapes_sem_seg_train", "shapes_base_sem_seg_train"):
        mapper = SemSegDatasetMapper([name], augmentations=[])
        rows = [mapper({**row, "dataset_name": name}) for row in whole]
        classes = np.array([*MetadataCatalog.get(name).stuff_classes, *["ignored"] * 256])
        labels.append(np.stack([classes[row["sem_seg"]] for row in rows]))

    is_novel = np.isin(labels[0], NOVEL)
    assert is_novel.any() and (labels[1][is_novel] == "ignored").all()
    assert (labels[1][~is_novel] == labels[0][~is_novel]).all()


# ------------------------------------------------------------------------------------------- the loader


@pytest.mark.parametrize(
    "batch_size, ratio, has_captions, has_labels, expected",
    [
        (32, 0.25, True, True, (24, 8)),
        (10, 0.25, True, True, (7, 3)),  # 2.5 becomes 3
        (4, 0.01, True, True, (3, 1)),
        (4, 0.99, True, True, (1, 3)),
        (4, 0.0, True, False, (4, 0)),
        (4, 0.0, False, True, (0, 4)),
        (4, 0.5, False, True, (0, 4)),
    ],
)
def test_a_batch_is_split_by_the_ratio(batch_size, ratio, has_captions, has_labels, expected):
    assert split_batch(batch_size, ratio, has_captions, has_labels) == expected


@pytest.mark.fault("a share of labeled images that does not fit the datasets or the batch", "refused, with the key")
@pytest.mark.parametrize(
    "batch_size, ratio, has_labels, message",
    [
        (8, 0.5, False, "LABELED_RATIO is 0.5; expected 0, or a labeled dataset"),
        (8, 0.0, True, "LABELED_RATIO is 0.0; expected the share"),
        (8, 1.0, True, "more than 0 and less than 1"),
        (1, 0.5, True, "SOLVER.IMS_PER_BATCH is 1 for each process; expected at least 2"),
    ],
)
def test_shares_that_do_not_fit(batch_size, ratio, has_labels, message):
    with pytest.raises(ValueError, match=message):
        split_batch(batch_size, ratio, True, has_labels)


def label_names(batch: list[dict]) -> list[str]:
    return [sample.get("sem_seg_file_name", "pair") for sample in batch]


def make_loader(names: list[str], workers: int = 0, seed: int = 3, **options):
    datasets = LabeledDatasets(names, mapper=dict, subset_ratio=options.pop("subset_ratio", 1.0))
    options = {"total_batch_size": 4, "labeled_ratio": 0.5, **options}
    return build_image_text_train_loader(
        ["shapes_train"], mapper=dict, labeled=datasets, num_workers=workers, buffer=20, seed=seed, **options
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_has_its_share_and_each_label_comes_once_an_epoch(in_world, workers):
    """12 images, 2 a batch: six batches are an epoch; the same seed gives the same ones, a later start the rest."""
    loader = make_loader(["shapes_sem_seg_train"], workers)
    batches = [label_names(batch) for batch in islice(loader, 12)]
    assert all(batch[:2] == ["pair", "pair"] and "pair" not in batch[2:] for batch in batches)
    for epoch in (batches[:6], batches[6:]):
        assert len({name for batch in epoch for name in batch[2:]}) == 12
    loader.restart(3, 0)
    assert batches == [label_names(batch) for batch in islice(loader, 12)]
    loader.restart(3, 16)  # after 4 batches
    assert batches[4:] == [label_names(batch) for batch in islice(loader, 8)]
    loader.restart(4, 0)
    assert batches != [label_names(batch) for batch in islice(loader, 12)]


def test_processes_have_different_labels(in_world, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    images = []
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        stream = LabeledDatasets(["shapes_sem_seg_train"], mapper=dict).stream(seed=3, num_drawn=2, chunk_size=2)
        images += [sample["file_name"] for sample in islice(stream, 4)]
    assert len(set(images)) == 8  # those of an epoch of 12 that are left after 4


def test_a_subset_is_drawn_by_the_seed(in_world):
    def subset(seed: int) -> set[str]:
        loader = make_loader(["shapes_sem_seg_train"], seed=seed, subset_ratio=0.25)
        return {name for batch in islice(loader, 6) for name in label_names(batch)[2:]}

    assert len(subset(1)) == 3 and subset(1) == subset(1) and subset(1) != subset(2)


def test_datasets_of_other_classes_come_together(labeled, in_world):
    """Each image says of which dataset it is; without captions every image has labels."""
    labeled("t_other", [random_label(48, 48)] * 4, CLASSES)
    cfg = load_config(ROOT / "configs/shapes/finetune.yaml", ["SOLVER.IMS_PER_BATCH", 16, "DATALOADER.NUM_WORKERS", 0])
    cfg.DATASETS.TRAIN = ("shapes_sem_seg_train", "t_other")
    (batch,) = islice(build_image_text_train_loader(cfg), 1)
    names = [sample["dataset_name"] for sample in batch]
    assert sorted(names) == ["shapes_sem_seg_train"] * 12 + ["t_other"] * 4
    (rows,) = islice(build_image_text_train_loader(cfg, labeled_mapper=dict), 1)
    assert {sample["file_name"] for sample in rows} == {sample["file_name"] for sample in batch}
    for sample in batch:
        assert sample["classes"].max() < len(MetadataCatalog.get(sample["dataset_name"]).stuff_classes)


@pytest.mark.fault("a labeled dataset without labels or images, or an empty subset of it", "refused, with its name")
def test_labeled_datasets_that_cannot_be_trained_on(labeled):
    rows = labeled("t_bad", [random_label(16, 16)], CLASSES)
    labeled("t_clash", [random_label(16, 16)], CLASSES, ignore_label=3)
    assert is_labeled("t_bad") and not is_labeled("shapes_train") and not is_labeled("no_set")
    check_datasets(train=["t_bad"])
    with pytest.raises(ValueError, match="RANDOM_SUBSET_RATIO is 0.5; .* 1 labeled images"):
        LabeledDatasets(["t_bad"], mapper=dict, subset_ratio=0.5)

    with pytest.raises(ValueError, match="'t_clash': The ignored label 3 is also the index"):
        check_datasets(train=["t_clash"])
    del rows[0]["sem_seg_file_name"]
    with pytest.raises(ValueError, match="'t_bad' cannot .*: 1 of its 1 rows have no 'sem_seg_file_name'"):
        check_datasets(train=["t_bad"])
    rows.clear()
    with pytest.raises(ValueError, match="'t_bad' cannot be trained on as a labeled dataset: it has no rows"):
        check_datasets(train=["t_bad"])
