"""A model's objects: instances and panoptic segments beside its scores or labels, in Detectron2's formats."""

import numpy as np
import pytest
import torch

from tcl_d2.modeling.segmentor.objects import add_objects, make_panoptic_seg
from tcl_d2.modeling.segmentor.score_rules import ScoreSettings, build_score_rule
from tcl_d2.segmentation.objects import ComponentSettings, connected_components
from tcl_d2.words.datasets import Category
from tcl_d2.words.vocabulary import WordSubset, join_vocabularies, make_vocabulary
from tests import golden

EVERYTHING = ComponentSettings(min_area=1)


@pytest.fixture(scope="module")
def model():
    model = golden.build_model()
    model.set_text_embeddings(golden.load()["inference"]["text_embedding"], background=True)
    model.components = EVERYTHING
    return model


@pytest.fixture(scope="module")
def image():
    return golden.load()["inference"]["slide_image"][0].float()


def test_instances_are_the_same_beside_scores_and_beside_labels(model, image):
    model.background_score = 0.3
    (plain,) = model([{"image": image}])
    (with_scores,) = model([{"image": image, "instances": True}])
    (with_labels,) = model([{"image": image, "instances": True, "labels_only": True}])
    assert plain.keys() == {"sem_seg"} and with_scores.keys() == {"sem_seg", "instances"}
    assert torch.equal(plain["sem_seg"], with_scores["sem_seg"])
    assert with_labels.keys() == {"sem_seg_labels", "sem_seg_scores", "instances"}

    for key, values in with_scores["instances"].get_fields().items():
        if key == "pred_boxes":
            values, other = values.tensor, with_labels["instances"].pred_boxes.tensor
        else:
            other = with_labels["instances"].get(key)
        assert torch.equal(values, other), key


def test_instances_cover_each_class_once(model, image):
    """Masks of a class do not overlap and are all of its pixels; a box is the tight one; a score the mean."""
    (output,) = model([{"image": image, "instances": True, "labels_only": False}])
    instances, scores, labels = output["instances"], output["sem_seg"], output["sem_seg"].argmax(0)
    assert len(instances) and instances.pred_masks.dtype == torch.bool
    assert instances.image_size == tuple(labels.shape) and (instances.scores.diff() <= 0).all()
    for index in range(len(scores) - 1):  # without the background
        is_class = instances.pred_classes == index
        assert torch.equal(instances.pred_masks[is_class].sum(0), (labels == index + 1).long())

    for i in range(len(instances)):
        mask = instances.pred_masks[i]
        rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert instances.pred_boxes.tensor[i].tolist() == [float(edge) for edge in edges]
        mean = scores[instances.pred_classes[i] + 1][mask].mean()
        assert instances.scores[i].item() == pytest.approx(mean.item(), abs=1e-5)


def test_images_that_are_asked_for_different_outputs_are_segmented_apart(model, image):
    outputs = model([{"image": image}, {"image": image, "instances": True}, {"image": image, "labels_only": True}])
    assert [set(output) for output in outputs] == [{"sem_seg"}, {"sem_seg", "instances"}, {"sem_seg_labels"}]


def test_nothing_but_background_gives_no_instances(model, image):
    model.background_score = 1.0
    (output,) = model([{"image": image, "instances": True, "panoptic_seg": True, "labels_only": True}])
    assert len(output["instances"]) == 0 and output["instances"].pred_masks.shape == (0, *image.shape[1:])
    segments, infos = output["panoptic_seg"]
    assert infos == [] and not segments.any()


@pytest.mark.parametrize("scale", [0.0, 5.0])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("at_once", [1, 100])
def test_the_score_of_each_label_is_that_of_all_scores(background, scale, at_once):
    """A probability, where there is a softmax; with and without all scores at once."""
    vocabulary = make_vocabulary([["a", "b"], "c", "d"], background, negative=["e"])
    words, (subset,) = join_vocabularies([vocabulary])
    scores = torch.rand(len(words), 6, 7, generator=torch.Generator().manual_seed(1))
    settings = ScoreSettings(0.3, scale, keep_best=True)

    def feed(labels_only: bool, settings: ScoreSettings) -> dict:
        rule = build_score_rule(subset, settings, labels_only)
        for chunk in scores.split(at_once):
            rule.update(chunk.clone())
        return rule.output()

    expected = feed(False, settings)["sem_seg"]
    for chosen in (settings, settings._replace(refine=lambda scores: scores)):
        output = feed(True, chosen)
        is_class = output["sem_seg_labels"] >= int(background)
        assert torch.equal(output["sem_seg_labels"], expected.argmax(0))
        assert torch.allclose(output["sem_seg_scores"][is_class], expected.amax(0)[is_class])
    assert feed(True, settings._replace(keep_best=False)).keys() == {"sem_seg_labels"}


def test_panoptic_segments_are_things_by_component_and_stuff_by_class():
    """Category IDs are indices among the things and among the stuff, whose first stands for the things."""
    labels = np.array([[0, 0, 2, 0], [2, 2, 2, 0], [1, 1, 1, 1]])
    categories = {0: Category(0), 1: Category(1, is_thing=False), 2: Category(2, is_thing=False)}
    components = connected_components(labels, np.full(labels.shape, 0.5), (0,), EVERYTHING)
    segments, infos = make_panoptic_seg(components, labels, categories, min_area=1)
    assert segments.dtype == torch.int32 and segments.tolist() == [[1, 1, 4, 2], [4, 4, 4, 2], [3, 3, 3, 3]]
    assert [(info["id"], info["isthing"], info["category_id"], info["area"]) for info in infos] == [
        (1, True, 0, 2), (2, True, 0, 2), (3, False, 1, 4), (4, False, 2, 4)
    ]  # fmt: skip
    assert infos[0]["score"] == 0.5

    # What is too small is void
    components = connected_components(labels, np.ones(labels.shape), (0,), EVERYTHING._replace(min_area=3))
    segments, infos = make_panoptic_seg(components, labels, categories, min_area=5)
    assert not infos and not segments.any()


def test_words_of_no_class_are_no_objects():
    subset = WordSubset(torch.arange(3), torch.arange(3), 2, False)  # the third word is of no class
    output = {"sem_seg_labels": torch.tensor([[0, 1, 2]]), "sem_seg_scores": torch.ones(1, 3)}
    add_objects(output, subset, EVERYTHING, ["instances", "panoptic_seg"])
    assert sorted(output["instances"].pred_classes.tolist()) == [0, 1]
    assert output["panoptic_seg"][0].tolist()[0][2] == 0
