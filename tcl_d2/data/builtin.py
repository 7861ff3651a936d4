"""The datasets that come with the project. Importing this registers them; their files are not read then."""

import json
from itertools import chain

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ..assets import FOLDER as ASSETS
from ..segmentation.drawing import distinct_colors
from ..utils.files import path_within
from ..words.files import read_class_words
from ..words.parsing import BACKGROUND, unique_names
from .benchmarks import register_benchmark
from .dataset_files import PREFIX, datasets_root
from .labels import parse_range, parse_rule
from .pairs.register import register_coco_captions, register_webdataset
from .shapes import GROUNDS, INSTANCES, NOVEL, OBJECTS, PANOPTIC

_PREPARE_SHAPES = "tcl-d2 prepare shapes"
_MANY = 200  # classes: from here on, these measures stand beside mIoU
_MEASURES_OF_MANY = ("PresentIoU", "ZeroIoU")


# --------------------------------------------------------------------------------------------- pairs to train on


def _register_pairs() -> None:
    for name, num_published in (("cc3m", 2_881_393), ("cc12m", 11_286_526)):
        advice = f"img2dataset, from {name.upper()}'s list, or ready shards (see datasets/README.md)"
        register_webdataset(f"{name}_train", f"{name}/*.tar", prepare=advice, num_published=num_published)
    register_webdataset("redcaps_train", "redcaps/*.tar", prepare="img2dataset, from RedCaps' lists")
    register_webdataset("yfcc14m_train", "yfcc14m/*.tar", prepare="img2dataset, from a list of YFCC100M with captions")
    register_webdataset("shapes_train", "shapes/train/*.tar", prepare=_PREPARE_SHAPES)

    for split in ("train2014", "train2017"):
        register_coco_captions(
            f"coco_captions_{split}",
            f"coco/annotations/captions_{split}.json",
            f"coco/{split}",
            f"annotations_trainval{split[-4:]} and {split} from https://cocodataset.org",
        )


# --------------------------------------------------------------------------------------------- benchmarks


def _read_json(path: str) -> dict:
    return json.loads((ASSETS / path).read_text(encoding="utf-8"))


def _register_benchmarks() -> None:
    """Register the unified protocol's eight benchmarks, two large ones, and train splits for model selection."""
    for name, entry in _read_json("benchmarks.json").items():
        # Read the classes: names with colors, or a list of words
        colors = {BACKGROUND: entry["background"]} if "background" in entry else {}
        for file in entry.get("classes", ()):
            colors |= _read_json(f"classes/{file}.json")
        classes, words = list(colors), {}
        if "words" in entry:
            class_words = read_class_words(ASSETS / "words" / entry["words"], shared_words=True)
            classes, words = unique_names(class_words), {"class_words": class_words, "shared_words": True}

        ignore_label = entry.get("ignore_label", 255)
        label_map = parse_rule(entry["rule"], ignore_label) if "rule" in entry else None
        register_benchmark(
            name,
            classes=classes,
            background=BACKGROUND in colors,
            label_map=label_map,
            ignore_label=ignore_label,
            colors=list(colors.values()),
            prepare=f"tcl-d2 prepare {entry['prepare']}",
            **{key: entry[key] for key in ("images", "labels", "ids", "title", "num_images") if key in entry},
            **words,
        )

        # What the release's labels have, and what a whole dataset must have of it
        values = label_map or (*range(len(classes)), ignore_label)
        required = chain(*map(parse_range, entry["required"])) if "required" in entry else values
        MetadataCatalog.get(name).set(release_values=tuple(values), required_values=tuple(required))
        if len(classes) > _MANY:
            MetadataCatalog.get(name).set(measures=_MEASURES_OF_MANY)


def _register_lvis() -> None:
    """Register LVIS v1 as a benchmark of 1,203 classes."""
    # Label files hold category IDs, and 0 where nothing is annotated. 255 is a class.
    ignore_label = 65535
    categories = sorted(LVIS_CATEGORIES, key=lambda category: category["id"])
    label_map = {0: ignore_label} | {category["id"]: k for k, category in enumerate(categories)}

    register_benchmark(
        "zeroshot_lvis_val",
        images="coco/{}.jpg",
        labels="lvis/semantic/{}.png",
        ids="lvis/semantic/val.txt",
        classes=[category["name"].replace("_", " ") for category in categories],
        label_map=label_map,
        ignore_label=ignore_label,
        prepare="tcl-d2 prepare lvis",
        title="LVIS",
        num_images=(19809,),
    )
    MetadataCatalog.get("zeroshot_lvis_val").set(
        release_values=tuple(label_map), required_values=(0,), measures=_MEASURES_OF_MANY
    )


# --------------------------------------------------------------------------------------------- the small world


def _register_shapes() -> None:
    """Register the small world: benchmarks with and without background, and with stuff; labeled scenes to train on.

    A second dataset has labels only of the scenes' base classes: the other pixels are ignored.
    """
    everything = OBJECTS + GROUNDS
    things = range(len(OBJECTS))
    grounds = range(len(OBJECTS), len(everything))
    base = [name for name in everything if name not in NOVEL]
    base_map = {k: base.index(name) if name in base else 255 for k, name in enumerate(everything)}

    variants = {
        "shapes_val": ("val", (BACKGROUND, *OBJECTS), True, {k: k + 1 for k in things} | {k: 0 for k in grounds}),
        "shapes_objects_val": ("val", OBJECTS, False, {k: k for k in things} | {k: 255 for k in grounds}),
        "shapes_stuff_val": ("val", everything, False, None),
        "shapes_sem_seg_train": ("labeled", everything, False, None),
        "shapes_base_sem_seg_train": ("labeled", base, False, base_map),
    }
    for name, (folder, *classes, label_map) in variants.items():
        images, labels = f"shapes/{folder}/images", f"shapes/{folder}/labels"
        register_benchmark(name, images, labels, *classes, label_map=label_map, prepare=_PREPARE_SHAPES)


def _load_panoptic() -> list[dict]:
    """Return a row for each image, with its panoptic segments; Detectron2's own reader knows .jpg alone."""
    folder = datasets_root() / "shapes/val"
    content = json.loads((folder / PANOPTIC).read_text())
    return [
        {
            "dataset_name": "shapes_panoptic_val",
            "file_name": str(path_within(folder / "images", annotation["file_name"], PANOPTIC)),
            "image_id": annotation["image_id"],
            "pan_seg_file_name": str(path_within(folder / "panoptic", annotation["file_name"], PANOPTIC)),
            "segments_info": annotation["segments_info"],
        }
        for annotation in content["annotations"]
    ]


def _register_shapes_objects() -> None:
    """Register the small world's validation scenes as a dataset of instances, and as one of panoptic segments."""
    everything = OBJECTS + GROUNDS
    things = {k + 1: k for k in range(len(OBJECTS))}
    register_coco_instances(
        "shapes_instances_val",
        {
            "thing_classes": list(OBJECTS),
            "thing_colors": distinct_colors(len(OBJECTS) + 1)[1:],
            "thing_dataset_id_to_contiguous_id": things,
            "prepare": _PREPARE_SHAPES,
        },
        f"{PREFIX}shapes/val/{INSTANCES}",
        f"{PREFIX}shapes/val/images",
    )

    DatasetCatalog.register("shapes_panoptic_val", _load_panoptic)
    MetadataCatalog.get("shapes_panoptic_val").set(
        evaluator_type="coco_panoptic_seg",
        thing_classes=list(everything),
        stuff_classes=list(everything),
        thing_dataset_id_to_contiguous_id=things,
        stuff_dataset_id_to_contiguous_id={k + 1: k for k in range(len(everything))},
        panoptic_json=f"{PREFIX}shapes/val/{PANOPTIC}",
        panoptic_root=f"{PREFIX}shapes/val/panoptic",
        prepare=_PREPARE_SHAPES,
    )


_register_pairs()
_register_benchmarks()
_register_lvis()
_register_shapes()
_register_shapes_objects()
