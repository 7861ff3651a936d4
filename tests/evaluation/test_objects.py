"""Detectron2's own evaluators of objects, on the small world's annotations and on a miniature of LVIS."""

import json
import shutil
import sys
import types
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from tcl_d2.data import check_datasets
from tcl_d2.engine import Trainer
from tcl_d2.evaluation import build_evaluator
from tcl_d2.evaluation.dataset_settings import check_dataset_settings
from tcl_d2.evaluation.evaluation_pass import group_by_images
from tcl_d2.evaluation.objects import needed_outputs
from tcl_d2.evaluation.zero_shot import overall_metrics
from tcl_d2.words.datasets import Category, dataset_categories, dataset_class_names
from tcl_d2.words.vocabulary import dataset_vocabulary
from tests.running import check_error, run

QUICK = ["TEST.ZERO_SHOT.REFINE", "none", "TEST.ZERO_SHOT.BACKGROUND_SCORE", 0.0]


@pytest.fixture
def cfg(shapes_cfg):
    shapes_cfg.merge_from_list(QUICK)
    return shapes_cfg


@pytest.fixture(scope="module")
def content(world) -> dict:
    return json.loads((world / "shapes/val/instances.json").read_text())


@pytest.fixture
def register(in_world, tmp_path):
    """Register changed annotations under a name; they are gone at the end."""
    names = []

    def register_content(content: object, name: str = "changed_val") -> str:
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        register_coco_instances(name, {}, str(path), str(in_world / "shapes/val/images"))
        names.append(name)
        return name

    yield register_content
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def true_instances(dataset_dict: dict) -> Instances:
    """Return what a perfect model gives for an image of a dataset of instances."""
    annotations = dataset_dict["annotations"]
    boxes = torch.tensor([annotation["bbox"] for annotation in annotations]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [pycocotools.mask.decode(annotation["segmentation"]) for annotation in annotations]
    size = (dataset_dict["height"], dataset_dict["width"])
    return Instances(
        size,
        pred_boxes=Boxes(boxes),
        scores=torch.ones(len(boxes)),
        pred_classes=torch.tensor([annotation["category_id"] for annotation in annotations], dtype=torch.int64),
        pred_masks=torch.from_numpy(np.array(masks, bool).reshape(-1, *size)),
    )


def evaluate_truth(cfg, name: str, dataset_dicts: list[dict]) -> dict:
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for dataset_dict in dataset_dicts:
        evaluator.process([dataset_dict], [{"instances": true_instances(dataset_dict)}])
    return evaluator.evaluate()


# ------------------------------------------------------------------------------------ COCO


def test_a_model_is_evaluated_beside_benchmarks(cfg):
    """In one command; what is measured of benchmarks stays as it is."""
    cfg.DATASETS.TEST = ("shapes_val", "shapes_instances_val")
    cfg.TEST.ZERO_SHOT.MAX_IMAGES = 4
    cfg.MODEL.WEIGHTS = "tcl_d2://shapes_tcl/weights.safetensors"
    model = Trainer.build_model(cfg).eval()
    results = Trainer.test(cfg, model)
    cfg.DATASETS.TEST = ("shapes_val",)
    alone = Trainer.test(cfg, model)["average"]
    assert overall_metrics(results["shapes_val"]["sem_seg"]) == alone == results["average"]

    objects = results["shapes_instances_val"]
    assert objects["images"] == 4 and {"AP", "AP50", "AP-brick"} <= objects["bbox"].keys() == objects["segm"].keys()
    assert all(np.isfinite(objects[task]["AP"]) for task in ("bbox", "segm"))
    written = json.loads(Path(cfg.OUTPUT_DIR, "inference/shapes_instances_val/coco_instances_results.json").read_text())
    assert {result["category_id"] for result in written} <= set(range(1, 24))
    assert len({result["image_id"] for result in written}) == 4


def test_the_truth_has_all_points_and_only_images_that_were_segmented_count(cfg):
    dataset_dicts = DatasetCatalog.get("shapes_instances_val")
    for part in (dataset_dicts, dataset_dicts[:4]):
        results = evaluate_truth(cfg, "shapes_instances_val", part)
        assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)


def test_words_may_be_given_and_the_default_dataset_may_be_of_objects(cfg, tmp_path):
    """Words for each class in a file; and Detectron2's own predictor, which gives no vocabulary."""
    cfg.DATASETS.TEST = ("shapes_instances_val",)
    model = Trainer.build_model(cfg).eval()
    (output,) = model([{"image": torch.zeros(3, 48, 48), "instances": True}])
    assert len(output["sem_seg"]) == 24  # with the background

    words = MetadataCatalog.get("shapes_instances_val").thing_classes
    (tmp_path / "words.txt").write_text("\n".join(f"{word}, {word} thing" for word in words))
    cfg.TEST.ZERO_SHOT.WORDS = str(tmp_path / "words.txt")
    check_dataset_settings(cfg, cfg.DATASETS.TEST)
    (tmp_path / "words.txt").write_text("\n".join(words[1:]))
    with pytest.raises(ValueError, match="shapes_instances_val.*words for 22 classes"):
        check_dataset_settings(cfg, cfg.DATASETS.TEST)


def test_what_is_around_objects_is_background(content, register):
    """By a constant score, or by words in the metadata too, or there is none."""
    name = register(content)
    vocabulary = dataset_vocabulary(name)
    assert vocabulary.background and vocabulary.words[0] == "brick" and vocabulary.classes[0] == 1
    assert vocabulary.num_classes == 24

    MetadataCatalog.get(name).background = ["grass", "sand"]
    vocabulary = dataset_vocabulary(name)
    assert vocabulary.words[:3] == ("grass", "sand", "brick") and vocabulary.classes[:3] == (0, 0, 1)

    name = register(content, "all_objects_val")
    MetadataCatalog.get(name).background = False
    vocabulary = dataset_vocabulary(name)
    assert not vocabulary.background and vocabulary.num_classes == 23 and vocabulary.categories[22] == Category(22)


# ------------------------------------------------------------------------------------ empty sets and bad files


@pytest.mark.fault("an image, or a whole dataset, without an object", "evaluated; AP is nan where no object is")
def test_empty_instance_sets(cfg, content, register):
    """An image without annotations counts: what is found there is wrong."""
    others = [annotation for annotation in content["annotations"] if annotation["image_id"] != 0]
    name = register({**content, "annotations": others})
    assert evaluate_truth(cfg, name, DatasetCatalog.get(name))["segm"]["AP"] == pytest.approx(100)
    wrong = [dict(row, annotations=DatasetCatalog.get(name)[1]["annotations"]) for row in DatasetCatalog.get(name)[:2]]
    assert evaluate_truth(cfg, name, wrong)["bbox"]["AP"] < 100

    name = register({**content, "annotations": []}, "empty_val")
    check_datasets(test=[name])
    for predicted in (DatasetCatalog.get(name), DatasetCatalog.get("shapes_instances_val")):
        assert np.isnan(evaluate_truth(cfg, name, predicted)["bbox"]["AP"])


@pytest.mark.fault("a dataset of instances without annotations, such as a test set", "results are written, no AP")
def test_no_annotations(cfg, content, register):
    name = register({key: value for key, value in content.items() if key != "annotations"})
    check_datasets(test=[name])
    assert not evaluate_truth(cfg, name, DatasetCatalog.get("shapes_instances_val"))
    assert Path(cfg.OUTPUT_DIR, "inference", name, "coco_instances_results.json").exists()


def without(content: dict, key: str) -> dict:
    return {name: value for name, value in content.items() if name != key}


BROKEN = {
    "no JSON": (lambda content: "{", ["is no JSON"]),
    "a list": (lambda content: [], ["has no list 'images'"]),
    "no images": (lambda content: without(content, "images"), ["has no list 'images'", "file_name"]),
    "no categories": (
        lambda content: without(content, "categories"),
        ["no list 'categories'", "expected entries with id, name"],
    ),
    "empty categories": (lambda content: {**content, "categories": []}, ["has no list 'categories', or an empty one"]),
    "a category without a name": (
        lambda content: {**content, "categories": [*content["categories"][:1], {"id": 2}]},
        ["category 2 has no 'name'"],
    ),
    "a category with an empty name": (
        lambda content: {**content, "categories": [{"id": 1, "name": ""}]},
        ["category 1 has no 'name'"],
    ),
    "an annotation that is no object": (
        lambda content: {**content, "annotations": [7]},
        ["entry 0 of 'annotations' is no object"],
    ),
    "an image without a size": (
        lambda content: {**content, "images": [{**content["images"][0], "height": "96"}]},
        ["image 0 has the height '96'"],
    ),
    "an image that lies elsewhere": (
        lambda content: {
            **content,
            "images": [{**content["images"][0], "file_name": "../outside.png"}, *content["images"][1:]],
        },
        ["names '../outside.png'", "shapes/val/images"],
    ),
    "an image that comes twice": (
        lambda content: {**content, "images": [*content["images"], content["images"][1]]},
        ["image 1 comes 2 times"],
    ),
}


@pytest.mark.fault(
    "annotations that are no JSON, or lack images, categories, names or boxes", "an error names file and entry"
)
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_annotations(fault, content, register, tmp_path):
    change, parts = BROKEN[fault]
    name = register(change(content))
    with pytest.raises(ValueError) as error:
        check_datasets(test=[name])
    for part in [f"Dataset '{name}'", str(tmp_path / "changed_val.json"), *parts]:
        assert part in str(error.value)


BOX = [10, 10, 40, 10, 40, 30, 10, 30]
MALFORMED = {
    **{f"no {key}": ({key: None}, f"has no '{key}'") for key in ("image_id", "category_id", "bbox", "area", "iscrowd")},
    "no segmentation": ({"segmentation": None}, "has no 'segmentation'"),
    "box of three numbers": ({"bbox": [1, 2, 3]}, "has the bbox"),
    "box that is no number": ({"bbox": [1, 2, float("nan"), 4]}, "has the bbox"),
    "negative box": ({"bbox": [1, 2, -3, 4]}, "has the bbox"),
    "area as text": ({"area": "12"}, "has the area '12'"),
    "crowd as text": ({"iscrowd": "no"}, "has the iscrowd 'no'"),
    "ignored": ({"ignore": 1}, "has the ignore 1"),
    "unknown image": ({"image_id": 777}, "is of image 777"),
    "category 0": ({"category_id": 0}, "has the category_id 0"),
    "category 300": ({"category_id": 300}, "has the category_id 300"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "polygon 0"),
    "two points at last": ({"segmentation": [BOX, [1, 2, 3, 4]]}, "polygon 1"),
    "an empty polygon beside another": ({"segmentation": [BOX, []]}, "polygon 1"),
    "an odd number of coordinates": ({"segmentation": [BOX[:7]]}, "polygon 0"),
    "a flat polygon": ({"segmentation": BOX}, "polygon 0"),
    "points as pairs": ({"segmentation": [[[1, 2], [3, 4], [5, 1]]]}, "polygon 0"),
    "coordinates as texts": ({"segmentation": [list(map(str, BOX))]}, "no numbers"),
    "coordinates that are no numbers": ({"segmentation": [[float("nan"), *BOX[1:]]]}, "no numbers"),
    "coordinates far outside": ({"segmentation": [[1e9, *BOX[1:]]]}, "far outside"),
    "a text": ({"segmentation": "0 0 1 1"}, "expected a list of polygons or RLE"),
    "RLE of another size": ({"segmentation": {"size": [64, 96], "counts": [64 * 96]}}, "RLE of the size [64, 96]"),
    "RLE without a size": ({"segmentation": {"counts": [96 * 96]}}, "RLE of the size None"),
    "RLE that is too short": ({"segmentation": {"size": [96, 96], "counts": [96]}}, "counts do not cover"),
    "RLE that is too long": ({"segmentation": {"size": [96, 96], "counts": [96 * 96, 1]}}, "counts do not cover"),
    "RLE that is cut": ({"segmentation": {"size": [96, 96], "counts": "0"}}, "counts do not cover"),
    "RLE that is damaged": ({"segmentation": {"size": [96, 96], "counts": "~~~~~"}}, "counts do not cover"),
    "RLE without counts": ({"segmentation": {"size": [96, 96]}}, "counts do not cover"),
}


@pytest.mark.fault(
    "an annotation without a key, of an unknown image or category, or with a box, polygon or RLE that cannot be",
    "an error names file and annotation, before an image is segmented",
)
@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_annotations(fault, cfg, content, register, tmp_path):
    """For the command's check, and for whoever builds an evaluator without it."""
    change, part = MALFORMED[fault]
    annotations = json.loads(json.dumps(content["annotations"]))
    annotations[3].update(change)
    name = register({**content, "annotations": annotations})
    for check in (lambda: check_datasets(test=[name]), lambda: build_evaluator(cfg, name)):
        with pytest.raises(ValueError) as error:
            check()
        for expected in (f"Dataset '{name}'", str(tmp_path / "changed_val.json"), "annotation 4 ", part):
            assert expected in str(error.value)


def test_all_malformed_annotations_are_named(content, register):
    annotations = [{**annotation, "area": -1} for annotation in content["annotations"]]
    with pytest.raises(ValueError) as error:
        check_datasets(test=[register({**content, "annotations": annotations})])
    for part in ("annotation 1 has the area -1", f"and {len(annotations) - 1} more", "annotation 2 has", "and "):
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) < 30


@pytest.mark.fault("annotations whose segmentation is an empty list", "left out, with a warning that counts them")
@pytest.mark.parametrize("empty", [[], [[]]])
def test_empty_segmentations(cfg, content, register, empty, caplog):
    annotations = [{**a, "segmentation": empty} if a["id"] in (2, 5) else a for a in content["annotations"]]
    name = register({**content, "annotations": annotations})
    check_datasets(test=[name])
    assert f"2 of {len(annotations)} annotations" in caplog.text and "annotation 2" in caplog.text

    rows = DatasetCatalog.get(name)
    for row in rows:
        row["annotations"] = [annotation for annotation in row["annotations"] if "segmentation" in annotation]
    results = evaluate_truth(cfg, name, rows)
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)


def test_annotation_ids_may_be_any(cfg, content, register):
    """COCO's evaluator takes the ID 0 for "no match", and needs numbers."""
    for number, new_id in enumerate((lambda key: key - 1, lambda key: -key, lambda key: f"a{key}")):
        annotations = [{**annotation, "id": new_id(annotation["id"])} for annotation in content["annotations"][:2]]
        name = register({**content, "annotations": annotations}, f"ids_{number}_val")
        results = evaluate_truth(cfg, name, DatasetCatalog.get(name))
        assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.fault("an annotation ID that comes twice", "an error names it")
def test_annotation_ids_are_unique(content, register):
    name = register({**content, "annotations": [*content["annotations"], content["annotations"][6]]})
    with pytest.raises(ValueError, match="changed_val.json: annotation 7 comes 2 times"):
        check_datasets(test=[name])


@pytest.mark.fault("malformed annotations in rows of a dataset that has no file", "an error names the annotation")
def test_malformed_rows(cfg, in_world):
    """Detectron2 would write a file of them, and find it out at the end."""
    rows = DatasetCatalog.get("shapes_instances_val")
    rows[0]["annotations"][1]["segmentation"] = {"size": [4, 4], "counts": "0@"}
    DatasetCatalog.register("rows_val", lambda: json.loads(json.dumps(rows)))
    things = MetadataCatalog.get("shapes_instances_val").thing_classes
    MetadataCatalog.get("rows_val").set(evaluator_type="coco", thing_classes=things)
    try:
        for check in (lambda: check_datasets(test=["rows_val"]), lambda: build_evaluator(cfg, "rows_val")):
            with pytest.raises(ValueError, match="Dataset 'rows_val': its rows: annotation 2 has RLE of the size"):
                check()

        # What is well-formed is evaluated
        rows[0]["annotations"].pop(1)
        check_datasets(test=["rows_val"])
        assert evaluate_truth(cfg, "rows_val", DatasetCatalog.get("rows_val"))["segm"]["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove("rows_val")
        MetadataCatalog.remove("rows_val")


# ------------------------------------------------------------------------------------ sizes


def with_heights(content: dict, heights: dict[int, int]) -> dict:
    """Return content of boxes as polygons, in which some images have another height than their pictures."""
    annotations = []
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations.append({**annotation, "segmentation": [polygon], "area": width * height})
    images = [{**image, "height": heights.get(image["id"], image["height"])} for image in content["images"]]
    return {**content, "images": images, "annotations": annotations}


@pytest.mark.fault(
    "annotations whose height and width are not the picture's",
    "an error names the picture; or left out and counted, with SKIP_BROKEN",
)
def test_annotated_sizes_are_the_pictures(cfg, content, register):
    """Detectron2's results would be wrong without a word; so would those of a second dataset of the same images."""
    right, wrong = register(with_heights(content, {}), "right_val"), register(with_heights(content, {3: 80, 5: 200}))
    model = Trainer.build_model(cfg).eval()
    cfg.DATASETS.TEST = (right, wrong)
    with pytest.raises(ValueError, match=r"00003.png, got \(96, 96\), expect \(96, 80\)"):
        Trainer.test(cfg, model)

    cfg.TEST.ZERO_SHOT.SKIP_BROKEN = True
    results = Trainer.test(cfg, model)
    assert [results[name]["skipped"] for name in (right, wrong)] == [0, 2]
    assert [results[name]["images"] for name in (right, wrong)] == [12, 10]

    cfg.DATASETS.TEST = (register(with_heights(content, dict.fromkeys(range(12), 80)), "all_wrong_val"),)
    assert Trainer.test(cfg, model)["all_wrong_val"] == {"images": 0, "skipped": 12}


def test_evaluators_compare_sizes_for_other_mappers(cfg, content, register):
    name = register(with_heights(content, {3: 80}))
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    row = DatasetCatalog.get("shapes_instances_val")[3]
    with pytest.raises(SizeMismatchError, match=r"00003.png is annotated at \(80, 96\) and segmented at \(96, 96\)"):
        evaluator.process([row], [{"instances": true_instances(row)}])


# ------------------------------------------------------------------------------------ a whole command


@pytest.mark.fault("train_net.py --eval-only on annotations without names of categories", "one error, at the start")
def test_broken_annotations_end_the_command(world, content, tmp_path):
    path = tmp_path / "nameless.json"
    path.write_text(json.dumps({**content, "categories": [{"id": 1}]}))
    code = tmp_path / "my_data.py"
    code.write_text(
        "from detectron2.data.datasets import register_coco_instances\n"
        f"register_coco_instances('nameless_val', {{}}, {str(path)!r}, '.')\n"
    )
    options = ["DATASETS.TEST", "('nameless_val',)", "OUTPUT_DIR", tmp_path / "output"]
    command = ["train_net.py", "--config-file", "configs/shapes/trained.yaml", "--eval-only", "--import", code]
    check_error(run(world, *command, *options), "Dataset 'nameless_val'", "category 1 has no 'name'")


@pytest.mark.fault("a dataset of instances whose file of annotations is missing", "an error says how to get it")
def test_missing_annotations(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no file {tmp_path}/shapes/val/instances.json.*prepare shapes"):
        check_datasets(test=["shapes_instances_val"])


# ------------------------------------------------------------------------------------ LVIS


@pytest.fixture
def tiny_lvis(in_world, content, tmp_path) -> str:
    """The same objects in LVIS's format: boxes as polygons, frequencies, and what is known to be absent."""
    images = in_world / "shapes/val/images"
    present = defaultdict(set)
    annotations = []
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations.append({**annotation, "segmentation": [polygon], "area": width * height})
        present[annotation["image_id"]].add(annotation["category_id"])

    categories = [
        {**category, "name": category["name"].replace(" ", "_"), "frequency": "rcf"[category["id"] % 3]}
        for category in content["categories"]
    ]
    rows = []
    for image in content["images"]:
        absent = [category["id"] for category in categories if category["id"] not in present[image["id"]]]
        url = f"http://images.example/images/{image['file_name']}"
        rows.append({**image, "coco_url": url, "neg_category_ids": absent, "not_exhaustive_category_ids": []})
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))

    DatasetCatalog.register("tiny_lvis_val", partial(load_lvis_json, str(path), f"{images.parent}/"))
    things = [category["name"] for category in categories]
    MetadataCatalog.get("tiny_lvis_val").set(json_file=str(path), evaluator_type="lvis", thing_classes=things)
    yield "tiny_lvis_val"
    DatasetCatalog.remove("tiny_lvis_val")
    MetadataCatalog.remove("tiny_lvis_val")


def test_lvis_is_measured_by_its_own_metrics(cfg, tiny_lvis):
    """Words without underscores; the metrics of frequencies; the truth has all points, also on a part of the images."""
    check_datasets(test=[tiny_lvis])
    cfg.DATASETS.TEST = (tiny_lvis,)
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())[tiny_lvis]
    assert results["images"] == 12 and {"AP", "APr", "APc", "APf"} <= results["bbox"].keys() == results["segm"].keys()
    assert Path(cfg.OUTPUT_DIR, "inference", tiny_lvis, "lvis_instances_results.json").exists()

    dataset_dicts = DatasetCatalog.get(tiny_lvis)
    for row in dataset_dicts:
        for annotation in row["annotations"]:
            rles = pycocotools.mask.frPyObjects(annotation["segmentation"], row["height"], row["width"])
            annotation["segmentation"] = pycocotools.mask.merge(rles)
    for part in (dataset_dicts, dataset_dicts[:5]):
        results = evaluate_truth(cfg, tiny_lvis, part)
        assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)

    # LVIS's evaluator takes the ID 0 for "no match"
    change_lvis(tiny_lvis, lambda content: [a.update(id=a["id"] - 1) for a in content["annotations"]])
    results = evaluate_truth(cfg, tiny_lvis, dataset_dicts[:1])
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)


def change_lvis(name: str, change) -> None:
    path = Path(MetadataCatalog.get(name).json_file)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def renumber(content: dict) -> None:
    """Number categories from 0, in another place than LVIS's evaluator expects them."""
    for category in content["categories"]:
        category["id"] -= 1
    for annotation in content["annotations"]:
        annotation["category_id"] -= 1


MALFORMED_LVIS = {
    "no frequency": (lambda content: content["categories"][3].pop("frequency"), "category 4 has no 'frequency'"),
    "no address": (lambda content: content["images"][2].pop("coco_url"), "image 2 has no 'coco_url'"),
    "no segmentation": (lambda content: content["annotations"][2].pop("segmentation"), "annotation 3 has no 'segment"),
    "empty segmentation": (
        lambda content: content["annotations"][2].update(segmentation=[]),
        r"annotation 3 has the segmentation \[\]; expected a list of polygons",
    ),
    "RLE": (
        lambda content: content["annotations"][2].update(segmentation={"size": [96, 96], "counts": [96 * 96]}),
        "annotation 3 has the segmentation .*; expected a list of polygons",
    ),
    "an image that lies elsewhere": (
        lambda content: content["images"][2].update(coco_url="http://images.example/../outside.png"),
        "names '../outside.png'",
    ),
    "categories from 0": (renumber, "category 0 is 'brick'; expected no such ID"),
}


@pytest.mark.fault(
    "LVIS's annotations without frequencies, addresses or polygons, or with categories numbered otherwise",
    "an error names file and entry",
)
@pytest.mark.parametrize("fault", MALFORMED_LVIS)
def test_malformed_lvis(tiny_lvis, fault):
    change, message = MALFORMED_LVIS[fault]
    change_lvis(tiny_lvis, change)
    with pytest.raises(ValueError, match=f"lvis.json:? {message}"):
        check_datasets(test=[tiny_lvis])


# ------------------------------------------------------------------------------------ panoptic segmentation


def read_segments(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(np.int64) @ [1, 256, 256**2]


def measure_quality(gt_json: str, pred_json: str, gt_folder: str, pred_folder: str) -> dict:
    """Compute panoptic quality plainly: segments of one category match above IoU 0.5; void counts nowhere."""
    truth, prediction = (json.loads(Path(path).read_text()) for path in (gt_json, pred_json))
    matches, counts = defaultdict(list), defaultdict(int)
    for true, predicted in zip(truth["annotations"], prediction["annotations"], strict=True):
        assert true["image_id"] == predicted["image_id"]
        true_map = read_segments(Path(gt_folder, true["file_name"]))
        predicted_map = read_segments(Path(pred_folder, predicted["file_name"]))
        assert set(np.unique(predicted_map)) - {0} == {segment["id"] for segment in predicted["segments_info"]}
        for segment in [*true["segments_info"], *predicted["segments_info"]]:
            counts[segment["category_id"]] += 1
        for first in true["segments_info"]:
            for second in predicted["segments_info"]:
                masks = true_map == first["id"], (predicted_map == second["id"]) & (true_map > 0)
                iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
                if first["category_id"] == second["category_id"] and iou > 0.5:
                    matches[first["category_id"]].append(iou)

    results = {}
    for group, chosen in (("All", (0, 1)), ("Things", (1,)), ("Stuff", (0,))):
        ids = [category["id"] for category in truth["categories"] if category["isthing"] in chosen]
        quality = [2 * sum(matches[key]) / counts[key] for key in ids if counts[key]]
        results[group] = {"pq": np.mean(quality), "sq": 0.0, "rq": 0.0, "n": len(quality)}
    return results


@pytest.fixture
def panopticapi(monkeypatch):
    """A plain stand-in for panopticapi, which no registry has: what Detectron2's evaluator calls of it."""
    package, utils, evaluation = (types.ModuleType(f"panopticapi{end}") for end in ("", ".utils", ".evaluation"))
    package.__spec__ = types.SimpleNamespace(name="panopticapi")
    utils.id2rgb = lambda ids: np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)
    evaluation.pq_compute = measure_quality
    for module in (package, utils, evaluation):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_panoptic_segments_are_evaluated_by_detectron2(cfg, panopticapi):
    """A model, and the truth, which has all points of things and of stuff."""
    name = "shapes_panoptic_val"
    check_datasets(test=[name])
    cfg.DATASETS.TEST = (name,)
    cfg.MODEL.WEIGHTS = "tcl_d2://shapes_tcl/weights.safetensors"
    quality = Trainer.test(cfg, Trainer.build_model(cfg).eval())[name]
    assert quality["images"] == 12 and quality["panoptic_seg"]["PQ_st"] > 0

    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for dataset_dict in DatasetCatalog.get(name):
        segments = torch.from_numpy(read_segments(dataset_dict["pan_seg_file_name"]))
        infos = [
            {"id": info["id"], "category_id": info["category_id"] - 1, "isthing": info["category_id"] <= 23}
            for info in dataset_dict["segments_info"]
        ]
        evaluator.process([dataset_dict], [{"panoptic_seg": (segments, infos)}])
    results = evaluator.evaluate()["panoptic_seg"]
    assert [results[key] for key in ("PQ", "PQ_th", "PQ_st")] == pytest.approx([100] * 3)


@pytest.fixture
def panoptic(in_world, tmp_path):
    """Register a changed copy of the panoptic annotations, and return its folder; it is gone at the end."""
    shutil.copytree(in_world / "shapes/val", tmp_path / "val")
    metadata = MetadataCatalog.get("shapes_panoptic_val").as_dict()
    paths = {"panoptic_json": str(tmp_path / "val/panoptic.json"), "panoptic_root": str(tmp_path / "val/panoptic")}
    MetadataCatalog.get("changed_panoptic_val").set(**{**metadata, **paths, "name": "changed_panoptic_val"})
    rows = DatasetCatalog.get("shapes_panoptic_val")
    for row in rows:
        row["pan_seg_file_name"] = str(tmp_path / "val/panoptic" / Path(row["pan_seg_file_name"]).name)
    DatasetCatalog.register("changed_panoptic_val", lambda: rows)
    yield tmp_path / "val"
    DatasetCatalog.remove("changed_panoptic_val")
    MetadataCatalog.remove("changed_panoptic_val")


def swap_categories(content: dict) -> None:
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]


MALFORMED_PANOPTIC = {
    "a segment without area": (
        lambda content: content["annotations"][2]["segments_info"][1].pop("area"),
        r"entry 2 of 'annotations' \(00002.png\): entry 1 of 'segments_info' has no 'area'",
    ),
    "a segment of an unknown category": (
        lambda content: content["annotations"][2]["segments_info"][1].update(category_id=300),
        r"entry 2 of 'annotations' \(00002.png\): entry 1 of 'segments_info' has the category_id 300",
    ),
    "an unknown image": (
        lambda content: content["annotations"][2].update(image_id=777),
        "entry 2 of 'annotations' is of image 777",
    ),
    "a picture that lies elsewhere": (
        lambda content: content["annotations"][2].update(file_name="../outside.png"),
        "names '../outside.png'",
    ),
    "categories in another order": (swap_categories, "category 1 is '.*'; expected 'brick'"),
}


@pytest.mark.fault("malformed panoptic segments, or categories in another order", "an error names file and entry")
@pytest.mark.parametrize("fault", MALFORMED_PANOPTIC)
def test_malformed_panoptic_segments(panoptic, fault):
    change, message = MALFORMED_PANOPTIC[fault]
    content = json.loads((panoptic / "panoptic.json").read_text())
    change(content)
    (panoptic / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"Dataset 'changed_panoptic_val': .*panoptic.json:? {message}"):
        check_datasets(test=["changed_panoptic_val"])


@pytest.mark.fault("a picture of panoptic segments that is missing, or of another size", "an error names it")
def test_pictures_of_panoptic_segments(cfg, panoptic, panopticapi):
    """A missing one at the start; one of another size when its image is segmented, not at the end."""
    path = panoptic / "panoptic/00003.png"
    Image.new("RGB", (96, 80)).save(path)
    cfg.DATASETS.TEST = ("changed_panoptic_val",)
    with pytest.raises(SizeMismatchError, match=r"00003.png is annotated at \(80, 96\) and segmented at \(96, 96\)"):
        Trainer.test(cfg, Trainer.build_model(cfg).eval())
    path.unlink()
    with pytest.raises(FileNotFoundError, match="1 of 12 segment pictures are missing, such as .*00003.png"):
        check_datasets(test=["changed_panoptic_val"])


@pytest.mark.fault("panoptic quality of some images alone", "an error names the key")
def test_panoptic_quality_is_of_all_images(cfg, panopticapi):
    cfg.TEST.ZERO_SHOT.MAX_IMAGES = 2
    with pytest.raises(ValueError, match="shapes_panoptic_val.*MAX_IMAGES is 2"):
        check_dataset_settings(cfg, ["shapes_panoptic_val"])


@pytest.mark.fault("panoptic quality without panopticapi", "an error says how to install it, before the model is built")
def test_panopticapi_is_missing(cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "panopticapi", None)
    with pytest.raises(RuntimeError, match="shapes_panoptic_val.*pip install git"):
        check_dataset_settings(cfg, ["shapes_panoptic_val"])


def test_detectron2s_panoptic_classes_are_things_then_stuff():
    """Both ways in which Detectron2 lists them."""
    for name, things, stuff in (
        ("coco_2017_val_panoptic", 80, 53),
        ("coco_2017_val_panoptic_separated", 80, 53),
    ):
        names, categories = dataset_class_names(name), dataset_categories(name)
        assert len(names) == len(categories) == things + stuff and "things" not in names
        assert sum(category.is_thing for category in categories) == things and names[0] == "person"
        metadata = MetadataCatalog.get(name)
        for word, category in zip(names, categories):
            lists = metadata.thing_classes if category.is_thing else metadata.stuff_classes
            assert lists[category.index] == word
    assert dataset_categories("shapes_val") is None and dataset_categories("coco_2017_val")[3] == Category(3)
    assert dataset_class_names("lvis_v1_val")[:3] == ["background", "aerosol can", "air conditioner"]


# ------------------------------------------------------------------------------------ what a model is asked for


def test_a_model_is_asked_for_what_the_evaluators_take(cfg):
    """Also for several joined by Detectron2; datasets of objects have a pass of their own."""
    instances, labels = build_evaluator(cfg, "shapes_instances_val"), build_evaluator(cfg, "shapes_val")
    scores = SemSegEvaluator("shapes_stuff_val", output_dir=None)
    assert needed_outputs(instances) == {"instances"} and needed_outputs(labels) == {"sem_seg_labels"}
    assert needed_outputs(DatasetEvaluators([scores, instances])) == {"sem_seg", "instances"}
    assert needed_outputs(None) == needed_outputs(DatasetEvaluators([])) == {"sem_seg"}
    evaluators = {"shapes_val": labels, "shapes_instances_val": instances, "shapes_stuff_val": scores}
    assert group_by_images([cfg], evaluators) == [["shapes_val", "shapes_stuff_val"], ["shapes_instances_val"]]


def test_scores_and_objects_are_evaluated_together(cfg):
    """As Detectron2 joins evaluators of panoptic models."""

    class JoiningTrainer(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            return DatasetEvaluators([ScoresSeen(), super().build_evaluator(cfg, dataset_name, output_folder)])

    class ScoresSeen(DatasetEvaluator):
        def process(self, inputs, outputs):
            self.shape = outputs[0]["sem_seg"].shape

        def evaluate(self):
            return {"scores": {"classes": self.shape[0]}}

    cfg.DATASETS.TEST = ("shapes_instances_val",)
    cfg.TEST.ZERO_SHOT.MAX_IMAGES = 1
    results = JoiningTrainer.test(cfg, Trainer.build_model(cfg).eval())["shapes_instances_val"]
    assert results["scores"]["classes"] == 24 and "bbox" in results
