"""The model as a module: inputs, numbers out of range, memory, pickling, tracing."""

import gc
import pickle
import weakref

import pytest
import torch
from detectron2.modeling import build_model

from tcl_d2 import load_config
from tests import golden, running


def test_training_input_errors():
    model = golden.build_model().train()
    with pytest.raises(ValueError, match="'caption'"):
        model([{"image": torch.zeros(3, 48, 48)}])
    with pytest.raises(ValueError, match=r"\[3, H, W\]"):
        model([{"image": torch.zeros(1, 48, 48), "tokens": torch.zeros(77)}])


def test_frozen_clip_stays_in_eval_mode_and_gets_no_gradient():
    model = golden.build_model(train_last_blocks=True).train()
    assert not model.clip.model.training
    assert not any(p.requires_grad for p in model.clip.parameters())


def test_words_move_with_the_model():
    """Those that were set on another device before."""
    model = golden.build_model()
    model.set_text_embeddings(torch.randn(2, 32))
    text, _ = model.to("meta")._classes({})
    assert text.device.type == "meta"


def test_model_that_is_dropped_is_freed_at_once():
    """Nothing in it refers back to it: memory of a GPU would stay taken until Python happens to look for circles."""
    model = golden.build_model()
    model.set_text_embeddings(torch.randn(2, 32))
    whole = weakref.ref(model)
    gc.disable()
    try:
        model([{"image": torch.zeros(3, 48, 48)}])
        del model
        assert whole() is None
    finally:
        gc.enable()


def segment_in_another_process(rank, model, image, path) -> None:
    torch.set_num_threads(1)
    torch.save(model([{"image": image}])[0]["sem_seg"].detach(), path)


@pytest.mark.fault(
    "a model that is pickled, saved whole, or sent to a spawned process", "it gives the same scores there"
)
def test_model_can_be_pickled_saved_and_spawned(model, tmp_path):
    model.set_vocabulary(["brick", "wood"])
    image = torch.randint(0, 256, (3, 48, 48), generator=torch.Generator().manual_seed(0))
    expected = model([{"image": image}])[0]["sem_seg"]

    torch.save(model, tmp_path / "whole.pt")
    for copied in (pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "whole.pt", weights_only=False)):
        torch.testing.assert_close(copied([{"image": image}])[0]["sem_seg"], expected, rtol=0, atol=1e-6)

    # Pickled as for a spawned one, whose imports would take seconds
    running.start_processes(segment_in_another_process, (model, image, tmp_path / "scores.pt"), 1)
    torch.testing.assert_close(torch.load(tmp_path / "scores.pt"), expected, rtol=0, atol=1e-5)


def test_size_of_a_pickled_model_grows_with_its_words_alone(model):
    size = len(pickle.dumps(model))
    model.embed_vocabulary([f"word {number}" for number in range(300)], ["{}"])
    assert len(pickle.dumps(model)) < size + 300 * 5_000


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.fault("tracing a whole model for export", "refused: its windows would be those of one image size")
def test_tracing_is_refused(model):
    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model([{"image": image}])[0]["sem_seg"]

    model.set_vocabulary(["brick"])
    with pytest.raises(RuntimeError, match="cannot be traced.*crop_masks"):
        torch.jit.trace(Traced(), torch.zeros(3, 60, 90))


@pytest.mark.fault("numbers of the model out of their range", "one error that names the key, when the model is built")
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.PIXEL_MEAN", [100.0, 100.0], "PIXEL_MEAN is .*; expected 3"),
        ("MODEL.PIXEL_STD", [0.0, 50.0, 50.0], "PIXEL_STD is .*; expected"),
        ("MODEL.CLIP.MASK_SCALE", 0.0, "MASK_SCALE is 0.0; expected"),
        ("TEST.ZERO_SHOT.STRIDE", 0, "STRIDE is 0; expected 1 to 448"),
        ("TEST.ZERO_SHOT.STRIDE", 449, "STRIDE is 449; expected 1 to 448"),
        ("TEST.ZERO_SHOT.CROP_SIZE", -1, "CROP_SIZE is -1; expected"),
        ("TEST.ZERO_SHOT.BACKGROUND_SCORE", 1.5, "BACKGROUND_SCORE is 1.5; expected"),
        ("TEST.ZERO_SHOT.KP_WEIGHT", -0.1, "KP_WEIGHT is -0.1; expected"),
        ("SOLVER.IMS_PER_MICRO_BATCH", -1, "IMS_PER_MICRO_BATCH is -1; expected"),
        ("MODEL.TCL.GUMBEL_TAU", 0.0, "GUMBEL_TAU is 0.0; expected"),
        ("MODEL.TCL.LOSS_WEIGHT.AREA_POS", -1.0, "LOSS_WEIGHT.AREA_POS is -1.0; expected"),
        ("MODEL.TCL.LOSS_HEADS", [], "LOSS_HEADS is empty"),
        ("MODEL.TCL.LOSS_HEADS", ["ImageTCLLoss", "ImageTCLLoss"], "names ImageTCLLoss twice"),
        ("MODEL.TCL.LOSS_HEADS", ["TclLoss"], "no loss head 'TclLoss'. Known ones: ImageTCLLoss"),
    ],
)
def test_numbers_out_of_range_are_named_when_the_model_is_built(key, value, message):
    options = ["MODEL.CLIP.NAME", "tcl_d2://shapes_clip/model.json", "MODEL.CLIP.PRETRAINED", "", "MODEL.TCL.FREEZE", 5]
    cfg = load_config(None, [*options, "MODEL.META_ARCHITECTURE", "TCL", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_kept_crops_give_the_same_scores(model):
    """For further words, with several windows; an image that is not segmented alone does without them."""
    images = torch.randint(0, 256, (2, 3, 60, 90), generator=torch.Generator().manual_seed(0))
    requests = [{"vocabulary": ["brick", "wood"], "background": True}, {"vocabulary": ["lava"], "negative": ["sand"]}]
    expected = [[model([{"image": image, **request}])[0]["sem_seg"] for request in requests] for image in images]

    encode, num_encoded = model.encode, []
    model.encode = lambda crops: num_encoded.append(len(crops)) or encode(crops)
    try:
        inputs = [{"image": image, "kept_crops": []} for image in images]
        for input_per_image, scores in zip(inputs, expected):
            for request, scores_of_request in zip(requests, scores):
                assert torch.equal(model([{**input_per_image, **request}])[0]["sem_seg"], scores_of_request)
        kept = [crops for input_per_image in inputs for crops, _ in input_per_image["kept_crops"]]
        assert sum(num_encoded) == sum(len(crops.images) for crops in kept)

        outputs = model([{**input_per_image, **requests[0]} for input_per_image in inputs])
        for output, scores in zip(outputs, expected):
            torch.testing.assert_close(output["sem_seg"], scores[0], rtol=0, atol=1e-5)
    finally:
        del model.encode


def test_a_batch_may_have_other_negative_words_for_each_image(model):
    image = torch.randint(0, 256, (3, 48, 48), generator=torch.Generator().manual_seed(0))
    inputs = [{"image": image, "vocabulary": ["brick"], "negative": negative} for negative in ([], ["sand"], ["wood"])]
    for output, input_per_image in zip(model(inputs), inputs):
        torch.testing.assert_close(output["sem_seg"], model([input_per_image])[0]["sem_seg"], rtol=0, atol=1e-5)
