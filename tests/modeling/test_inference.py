"""Inference over one image: windows, padding, labels, memory, precision."""

import weakref
from itertools import chain

import pytest
import torch

from tcl_d2.modeling.segmentor import base, words_to_labels
from tcl_d2.modeling.segmentor.windows import Windows, batch_windows, pad_to_multiple
from tcl_d2.utils.windows import window_starts
from tests import golden


@pytest.mark.parametrize(
    "length, expected", [(10, [0]), (48, [0]), (49, [0, 1]), (96, [0, 24, 48]), (100, [0, 24, 48, 52])]
)
def test_windows_cover_a_side(length, expected):
    assert window_starts(length, crop_size=48, stride=24) == expected


@pytest.mark.parametrize("batch", [1, 3])
def test_overlapping_windows_are_averaged(batch):
    """Each window scores its own mean: a pixel's score is the mean over the windows that hold it."""
    image = torch.arange(3 * 5 * 7.0).view(3, 5, 7)
    total, count = torch.zeros(5, 7), torch.zeros(5, 7)
    for y in (0, 1):
        for x in (0, 2, 3):
            total[y : y + 4, x : x + 4] += image[:, y : y + 4, x : x + 4].mean()
            count[y : y + 4, x : x + 4] += 1
    windows = Windows(image, 4, 2)
    crops = chain.from_iterable(batch_windows([windows], batch))
    scores = windows.average(crop.mean().expand(2, 4, 4) for crop in crops)
    torch.testing.assert_close(scores, (total / count).expand(2, -1, -1))


@pytest.mark.parametrize("background", [False, True])
def test_labels_alone_are_the_argmax_of_the_scores(background, monkeypatch):
    """Class by class in small groups, as for vocabularies of thousands of words."""
    figures = golden.load()["inference"]
    model = golden.build_model(pamr=True, kp_weight=0.3)
    model.set_text_embeddings(figures["text_embedding"], background)
    input_per_image = {"image": figures["slide_image"][0].float(), "height": 91, "width": 57}
    scores = model([input_per_image])[0]["sem_seg"]
    monkeypatch.setattr(words_to_labels, "WORDS_AT_ONCE", 3)
    (output,) = model([{**input_per_image, "labels_only": True}])
    assert set(output) == {"sem_seg_labels"} and torch.equal(output["sem_seg_labels"], scores.argmax(0))
    torch.testing.assert_close(model([input_per_image])[0]["sem_seg"], scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (1, 1), (61, 78)])
def test_padding_is_undone(size):
    image = torch.randn(1, 3, *size)
    padded, (rows, columns) = pad_to_multiple(image, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert rows.start == (-size[0] % 8) // 2 and columns.start == (-size[1] % 8) // 2
    assert torch.equal(padded[..., rows, columns], image)
    assert padded.count_nonzero() == image.count_nonzero()  # zeros around


@pytest.mark.fault(
    "memory runs out on a large image",
    "fewer windows at once, at last averages on the CPU; same masks, one warning each",
)
@torch.no_grad()
def test_running_out_of_memory_falls_back_to_less_at_once(monkeypatch, caplog):
    """To fewer windows, at last to averages on the CPU: the same scores; then it is an error."""
    figures = golden.load()["inference"]
    model = golden.build_model()
    model.set_text_embeddings(figures["text_embedding"])
    input_per_image = {"image": figures["slide_image"][0].float()}
    expected, encode, room = model([input_per_image])[0]["sem_seg"], model.encode, 3

    def encode_in_little_memory(images: torch.Tensor):
        if len(images) > room:
            raise torch.OutOfMemoryError("out of memory")
        return encode(images)

    monkeypatch.setattr(model, "encode", encode_in_little_memory)
    torch.testing.assert_close(model([input_per_image])[0]["sem_seg"], expected, rtol=0, atol=1e-6)
    assert "from now on 3 windows at once" in caplog.text
    caplog.clear()
    for output in model([input_per_image] * 2):
        torch.testing.assert_close(output["sem_seg"], expected, rtol=0, atol=1e-6)
    assert not caplog.text
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        model([input_per_image])
    assert "averages on the CPU" in caplog.text


@torch.no_grad()
def test_bfloat16_agrees_on_the_labels():
    figures = golden.load()["inference"]
    model = golden.build_model(pamr=True, kp_weight=0.3)
    model.set_text_embeddings(figures["text_embedding"])
    input_per_image = {"image": figures["slide_image"][0].float(), "labels_only": True}
    labels = model([input_per_image])[0]["sem_seg_labels"]
    model.precision = torch.bfloat16
    assert (
        model([input_per_image])[0]["sem_seg_labels"] == labels
    ).float().mean() > 0.9  # random weights: scores lie close


@pytest.mark.parametrize("precision, device", [("float16", "cpu"), ("half", "cuda")])
def test_precision_that_does_not_work_is_refused(precision, device):
    with pytest.raises(ValueError, match="TEST.ZERO_SHOT.PRECISION must be"):
        base._autocast_dtype(precision, device)


@pytest.mark.parametrize("num_words", [2, 70])
@torch.no_grad()
def test_images_of_a_batch_are_segmented_as_one_at_a_time(model, monkeypatch, num_words):
    """Of several sizes, words and results, in a batch whose windows are encoded together."""
    words = [f"word {number}" for number in range(num_words)]
    inputs = [
        {"image": torch.randint(0, 256, (3, *size)), "height": 50 + index, "vocabulary": words, **options}
        for index, (size, options) in enumerate(
            [
                ((60, 90), {}),
                ((96, 48), {"labels_only": True}),
                ((30, 90), {}),
                ((70, 55), {"background": True}),
                ((50, 61), {"labels_only": True}),
                ((48, 48), {"background": ["sky"]}),
                ((30, 48), {"vocabulary": ["brick"]}),
                ((90, 60), {}),
            ]
        )
    ]
    expected = [model([input_per_image])[0] for input_per_image in inputs]

    batch_sizes, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda images: batch_sizes.append(len(images)) or encode(images))
    for output, expected_output in zip(model(inputs), expected, strict=True):
        assert output.keys() == expected_output.keys()
        for key, value in output.items():
            torch.testing.assert_close(value, expected_output[key], rtol=0, atol=1e-6)
    assert batch_sizes == [12, 7, 3, 4, 1, 1]  # windows of 48 x 48: of two images of 6, then of two of 3 and 4


@torch.no_grad()
def test_a_batch_holds_no_more_windows_than_memory_has_room_for(model, monkeypatch):
    """Images are taken together while their windows have room; an image that has more is taken alone, in parts."""
    model.set_vocabulary(["brick", "wood"])
    inputs = [{"image": torch.randint(0, 256, (3, 48, width))} for width in (48, 96, 48, 48, 200, 48)]
    expected = [model([input_per_image])[0]["sem_seg"] for input_per_image in inputs]

    batch_sizes, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda images: batch_sizes.append(len(images)) or encode(images))
    monkeypatch.setattr(model._batches, "pixels_at_once", 4 * 48 * 48)
    for output, expected_scores in zip(model(inputs), expected, strict=True):
        torch.testing.assert_close(output["sem_seg"], expected_scores, rtol=0, atol=1e-6)
    assert batch_sizes == [4, 2, 4, 4, 1]


@pytest.mark.fault("an image with very many windows", "no more of them are held than are encoded at once")
@pytest.mark.parametrize("words_at_once", [1, 3])
@torch.no_grad()
def test_the_windows_of_a_large_image_are_streamed(model, monkeypatch, words_at_once):
    """Also where the scores of all words do not fit at the image's size: then the windows' scores are held alone."""
    monkeypatch.setattr(words_to_labels, "SCORE_BYTES_AT_ONCE", words_at_once * 4 * 48 * 48 * 6)
    model.set_vocabulary(["brick", "wood", "grass"])
    encode, features, num_alive = model.encode, [], []

    def encode_and_watch(images: torch.Tensor):
        num_alive.append(sum(reference() is not None for reference in features))
        encoded = encode(images)
        features.append(weakref.ref(encoded.clip_features))
        return encoded

    monkeypatch.setattr(model, "encode", encode_and_watch)
    monkeypatch.setattr(model._batches, "pixels_at_once", 2 * 48 * 48)
    model([{"image": torch.zeros(3, 48, 48 * 6)}])
    assert len(num_alive) == 6 and max(num_alive) <= 1


@torch.no_grad()
def test_short_memory_holds_no_windows_between_words(model, monkeypatch):
    """Where words come in parts, windows are encoded again for each part, with the same scores."""
    monkeypatch.setattr(words_to_labels, "WORDS_AT_ONCE", 40)
    model.set_vocabulary([f"word {number}" for number in range(70)])
    inputs = [{"image": torch.randint(0, 256, (3, 48, 96))}]
    (expected,) = model(inputs)

    batch_sizes, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda images: batch_sizes.append(len(images)) or encode(images))
    monkeypatch.setattr(model._batches, "pixels_at_once", 48 * 48)
    monkeypatch.setattr(model._batches, "is_memory_short", True)
    torch.testing.assert_close(model(inputs)[0]["sem_seg"], expected["sem_seg"], rtol=0, atol=1e-6)
    assert batch_sizes == 2 * [1, 1, 1]
