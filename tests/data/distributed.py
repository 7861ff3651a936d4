"""The benchmarks in miniature, as their owners distribute them, and their ground truth computed by other means."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from PIL import Image
from scipy.io import savemat

from tcl_d2.assets import FOLDER as ASSETS

SIZE = (24, 32)  # of every image, height and width
IGNORED = -1
Truth = dict[str, np.ndarray]  # image ID -> class indices, IGNORED where nothing counts

# COCO's 80 category IDs (with gaps), and the 91 of stuff.
THINGS = [k for k in range(1, 91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
STUFF = range(92, 183)


def picture(seed: int, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(buffer, format)
    return buffer.getvalue()


def png(values: np.ndarray, palette: bool = False) -> bytes:
    image, buffer = Image.fromarray(values), io.BytesIO()
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar of {name in the tar: content}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def without_background(values: np.ndarray) -> np.ndarray:
    """Class 0 ignored, class k as k - 1."""
    return np.where(values > 0, values - 1, IGNORED)


def voc(folder: Path, top: str = "VOCdevkit/VOC2012") -> dict[str, Truth]:
    """Palette PNGs with borders of 255; images without a segmentation are in the archive too."""
    rng = np.random.default_rng(0)
    files = {f"{top}/JPEGImages/2007_{i:06d}.jpg": picture(i) for i in range(6)}
    splits = {"train": ["2007_000003"], "val": ["2007_000000", "2007_000001", "2007_000002"]}
    truths = {"zeroshot_voc_val": {}, "zeroshot_voc20_val": {}, "zeroshot_voc20_train": {}}

    for split, keys in splits.items():
        files[f"{top}/ImageSets/Segmentation/{split}.txt"] = "\n".join(keys).encode()
        for key in keys:
            values = rng.integers(0, 21, SIZE).astype(np.uint8)
            values[:, ::7] = 255
            files[f"{top}/SegmentationClass/{key}.png"] = png(values, palette=True)
            whole = np.where(values == 255, IGNORED, values.astype(int))
            truths[f"zeroshot_voc20_{split}"][key] = without_background(whole)
            if split == "val":
                truths["zeroshot_voc_val"][key] = whole

    write_tar(folder / "VOCtrainval_11-May-2012.tar", files)
    return truths


def context(folder: Path, words: list[str]) -> dict[str, Truth]:
    """MATLAB files of 459 classes, of which `words` (the 59) lie anywhere; some have blanks in the release's list."""
    rng = np.random.default_rng(1)

    # The release's list of values and names
    numbers = {word: 7 * k + 5 for k, word in enumerate(words, start=1)}
    names = {number: word for word, number in numbers.items()}
    spelled = {"pottedplant": "potted plant", "tvmonitor": "tv monitor"}
    lines = [f"{i}: {spelled.get(names.get(i), names.get(i, f'thing{i}'))}" for i in range(1, 460)]
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")

    # Images and MATLAB files
    images, mats = {}, {}
    benchmarks = ("context_val", "context59_val", "context59_train", "context459_val")
    truths = {f"zeroshot_{name}": {} for name in benchmarks}
    for split, keys in {"train": ["2008_000009"], "val": ["2008_000001", "2008_000002"]}.items():
        listed = [*keys, f"2008_{split}"]  # one that nobody annotated
        images[f"VOCdevkit/VOC2010/ImageSets/Main/{split}.txt"] = "\n".join(listed).encode()
        for i, key in enumerate(listed):
            images[f"VOCdevkit/VOC2010/JPEGImages/{key}.jpg"] = picture(i)
        for key in keys:
            values = rng.integers(1, 460, SIZE).astype(np.uint16)
            values[0, :3] = 0  # not annotated
            buffer = io.BytesIO()
            savemat(buffer, {"LabelMap": values})
            mats[f"trainval/{key}.mat"] = buffer.getvalue()
            whole = np.vectorize(lambda v: words.index(names[v]) + 1 if v in names else 0)(values)
            truths[f"zeroshot_context59_{split}"][key] = without_background(whole)
            if split == "val":
                truths["zeroshot_context_val"][key] = whole
                truths["zeroshot_context459_val"][key] = without_background(values.astype(int))

    write_tar(folder / "VOCtrainval_03-May-2010.tar", images)
    write_tar(folder / "trainval.tar.gz", mats)
    return truths


def coco(folder: Path) -> dict[str, Truth]:
    """Stuff maps with the values of all 171 classes, and 255."""
    numbers = [number - 1 for number in (*THINGS, *STUFF)]
    rng = np.random.default_rng(2)
    images, maps = {}, {"train2017/000000000001.png": b"never read"}
    truths = {"zeroshot_coco_object_val": {}, "zeroshot_coco_stuff_val": {}}
    for i in range(3):
        key = f"{i + 10:012d}"
        values = rng.permutation(np.resize([*numbers, 255], SIZE[0] * SIZE[1])).reshape(SIZE).astype(np.uint8)
        images[f"val2017/{key}.jpg"] = picture(i)
        maps[f"val2017/{key}.png"] = png(values)

        things = np.array([THINGS.index(v + 1) + 1 if v + 1 in THINGS else 0 for v in values.ravel().tolist()])
        everything = [*THINGS, *STUFF]
        stuff = np.array([everything.index(v + 1) if v + 1 in everything else IGNORED for v in values.ravel().tolist()])
        truths["zeroshot_coco_object_val"][key] = things.reshape(SIZE)
        truths["zeroshot_coco_stuff_val"][key] = stuff.reshape(SIZE)

    write_zip(folder / "val2017.zip", images)
    write_zip(folder / "stuffthingmaps_trainval2017.zip", maps)
    return truths


def box(x0: int, y0: int, x1: int, y1: int) -> list[int]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco_instances(folder: Path) -> Truth:
    """instances_val2017.json: a crowd under a large dog under a small cat, for the images of `coco`."""
    truth, images, annotations = {}, [], []
    for i in range(3):
        key = f"{i + 10:012d}"
        images.append({"id": i + 10, "height": SIZE[0], "width": SIZE[1], "file_name": f"{key}.jpg"})

        # The annotations: a crowd as runs of a mask, others as polygons
        for category_id, area, (x0, y0, x1, y1), crowd in (
            (17, 16, (6, 6, 10, 10 + i), 0),
            (18, 400, (2, 2, 22, 22), 0),
            (1, 9999, (0, 0, 30, 12), 1),
        ):
            mask = np.zeros(SIZE, np.uint8)
            mask[y0:y1, x0:x1] = 1
            counts = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=2, append=2))).tolist()
            counts = counts if mask[0, 0] == 0 else [0, *counts]  # runs begin with zeros
            segmentation = {"size": list(SIZE), "counts": counts} if crowd else [box(x0, y0, x1, y1)]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": i + 10,
                    "category_id": category_id,
                    "area": area,
                    "iscrowd": crowd,
                    "segmentation": segmentation,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )

        # What is seen in the end
        label = np.zeros(SIZE, int)
        label[0:12, 0:30] = 1
        label[2:22, 2:22] = THINGS.index(18) + 1
        label[6 : 10 + i, 6:10] = THINGS.index(17) + 1
        truth[key] = label

    categories = [{"id": entry["id"], "name": entry["name"]} for entry in COCO_CATEGORIES if entry["isthing"]]
    data = {"images": images, "annotations": annotations, "categories": categories}
    write_zip(
        folder / "annotations_trainval2017.zip", {"annotations/instances_val2017.json": json.dumps(data).encode()}
    )
    return truth


def cityscapes(folder: Path) -> dict[str, Truth]:
    """Polygons, among them a group, a class that is not evaluated, and one that is never drawn."""
    images, polygons, truth = {}, {}, {}
    for i, city in enumerate(["frankfurt", "lindau"]):
        key = f"{city}/{city}_000000_00000{i}"
        images[f"leftImg8bit/val/{key}_leftImg8bit.png"] = picture(i, "PNG")
        images[f"leftImg8bit/train/{key}_leftImg8bit.png"] = b"never read"
        objects = (
            ("road", 0, (0, 0, 20, 15)),
            ("cargroup", 13, (4, 4, 9 + i, 9)),
            ("dynamic", IGNORED, (12, 2, 16, 6)),
            ("license plate", None, (5, 5, 7, 7)),
            ("bicycle", 18, (20, 10, 30, 20)),
        )
        drawn = [{"label": name, "polygon": np.reshape(box(*corners), (4, 2)).tolist()} for name, _, corners in objects]
        data = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": drawn}
        polygons[f"gtFine/val/{key}_gtFine_polygons.json"] = json.dumps(data).encode()

        label = np.full(SIZE, IGNORED)
        for _, value, (x0, y0, x1, y1) in objects:
            if value is not None:
                label[y0 : y1 + 1, x0 : x1 + 1] = value
        truth[key] = label

    write_zip(folder / "leftImg8bit_trainvaltest.zip", images)
    write_zip(folder / "gtFine_trainvaltest.zip", polygons)
    return {"zeroshot_cityscapes_val": truth}


def ade20k(folder: Path) -> dict[str, Truth]:
    rng = np.random.default_rng(3)
    files, truth, top = {}, {}, "ADEChallengeData2016"
    for i in range(2):
        key = f"ADE_val_0000000{i + 1}"
        values = rng.integers(0, 151, SIZE).astype(np.uint8)
        files[f"{top}/images/validation/{key}.jpg"] = picture(i)
        files[f"{top}/annotations/validation/{key}.png"] = png(values)
        files[f"{top}/images/training/ADE_train_0000000{i + 1}.jpg"] = b"never read"
        truth[key] = without_background(values.astype(int))
    write_zip(folder / "ADEChallengeData2016.zip", files)
    return {"zeroshot_ade20k_val": truth}


def ade847(folder: Path, large: tuple[int, int] = SIZE) -> dict[str, Truth]:
    """Label images whose colors are indices of objects, instances in blue; some indices are of no class.

    Args:
        folder: for the archive.
        large: height and width of the second image.
    """
    rng = np.random.default_rng(4)
    indices = json.loads((ASSETS / "classes/ade847_indices.json").read_text())
    top = "ADE20K_2021_17_01/images/ADE"
    files = {"ADE20K_2021_17_01/index_ade20k.pkl": b"never read"}
    truth = {}
    for i, (scene, size) in enumerate((("urban/street", SIZE), ("unsorted", large))):
        # Draw the colors of classes
        key = f"ADE_val_0000000{i + 1}"
        classes = rng.integers(-1, 847, size)
        classes[0, :3] = -1
        values = np.where(classes < 0, 5, np.take(indices, classes.clip(0)))  # 5 is no index of a class
        colors = np.stack([values // 256 * 10 + rng.integers(0, 10, size), values % 256, rng.integers(0, 256, size)], 2)
        truth[key] = classes

        # Write them, and what is not to be read
        image = rng.integers(0, 256, (*size, 3))
        for suffix, pixels, format in ((".jpg", image, "JPEG"), ("_seg.png", colors, "PNG")):
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, format)
            files[f"{top}/validation/{scene}/{key}{suffix}"] = buffer.getvalue()
        files[f"{top}/validation/{scene}/{key}_parts_1.png"] = b"never read"
        files[f"{top}/training/{scene}/ADE_train_0000000{i + 1}_seg.png"] = b"never read"

    write_zip(folder / "ADE20K_2021_17_01.zip", files)
    return {"zeroshot_ade847_val": truth}


def lvis(folder: Path) -> dict[str, Truth]:
    """Images of train2017 and val2017; a small instance lies on a large one."""
    truth, files, images, annotations = {}, {}, [], []
    for i, (split, large, small) in enumerate([("val2017", 1203, 256), ("train2017", 1, 255)]):
        number = i + 10  # the first is an image of `coco` too
        key = f"{split}/{number:012d}"
        files[f"{key}.jpg"] = picture(i)
        url = f"http://images.cocodataset.org/{key}.jpg"
        images.append({"id": number, "height": SIZE[0], "width": SIZE[1], "coco_url": url})

        boxes = ((small, (8, 8, 12, 12)), (large, (2, 2, 30, 20)))
        for category, (x0, y0, x1, y1) in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "area": (x1 - x0) * (y1 - y0),
                    "segmentation": [box(x0, y0, x1, y1)],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )

        label = np.full(SIZE, IGNORED)
        label[2:20, 2:30] = large - 1
        label[8:12, 8:12] = small - 1
        truth[key] = label

    data = {"images": images, "annotations": annotations, "categories": LVIS_CATEGORIES}
    write_zip(folder / "lvis_v1_val.json.zip", {"lvis_v1_val.json": json.dumps(data).encode()})
    write_zip(folder / "train2017.zip", {name: data for name, data in files.items() if name.startswith("train")})
    write_zip(folder / "lvis_val2017.zip", {name: data for name, data in files.items() if name.startswith("val")})
    return {"zeroshot_lvis_val": truth}
