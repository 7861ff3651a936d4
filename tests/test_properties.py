"""Properties that hold for any input, tried on many: windows, padding, words, label rules, settings."""

from functools import cache
from itertools import chain

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tcl_d2 import load_config
from tcl_d2.data.labels import LabelMapper, parse_rule
from tcl_d2.engine import Trainer
from tcl_d2.engine.step import training_precision
from tcl_d2.engine.trainer import check_schedule
from tcl_d2.modeling import MaskCLIP
from tcl_d2.modeling.encoders.text import TextEmbedder
from tcl_d2.modeling.segmentor.windows import Windows, batch_windows, pad_to_multiple
from tcl_d2.utils.resize import segmentation_size
from tcl_d2.utils.windows import window_starts
from tcl_d2.words.templates import check_templates
from tcl_d2.words.vocabulary import check_words
from tests import golden

settings.register_profile("fast", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("fast")
side = st.integers(1, 60)
build_clip = cache(golden.build_clip)  # one for all examples


def random_image(height: int, width: int) -> torch.Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))


@given(height=side, width=side, crop=st.integers(1, 40), share=st.floats(0.01, 1))
def test_windows_cover_each_pixel_and_average_to_what_they_show(height, width, crop, share):
    """An average of the windows' own pixels is the image, whatever the overlaps."""
    stride = max(1, round(crop * share))
    image = random_image(height, width)
    windows = Windows(image, crop, stride)
    torch.testing.assert_close(windows.average(chain.from_iterable(batch_windows([windows], 5))), image)
    for rows, columns in windows.slices:
        shape = image[:, rows, columns].shape
        assert shape == (3, min(crop, height), min(crop, width))


@given(length=st.integers(1, 3000), crop=st.integers(1, 600), share=st.floats(0.01, 1))
def test_window_starts_leave_no_gap(length, crop, share):
    stride = max(1, round(crop * share))
    starts = window_starts(length, crop, stride)
    assert starts[0] == 0 and max(starts) == max(0, length - crop) and starts == sorted(starts)
    assert all(later - earlier <= stride for earlier, later in zip(starts, starts[1:]))


@given(height=side, width=side, multiple=st.integers(1, 32))
def test_padding_is_cut_off_again(height, width, multiple):
    image = random_image(height, width)[None]
    padded, cut = pad_to_multiple(image, multiple)
    assert padded.shape[2] % multiple == padded.shape[3] % multiple == 0
    assert padded.shape[2] - height < multiple and padded.shape[3] - width < multiple
    assert torch.equal(padded[(..., *cut)], image)
    torch.testing.assert_close(padded.sum(), image.sum(), rtol=1e-4, atol=1e-4)


@given(height=st.integers(1, 20000), width=st.integers(1, 20000))
@example(height=4000, width=3)
@example(height=2, width=3000)
@example(height=1, width=10000)
def test_size_for_the_model_keeps_its_bounds(height, width):
    short, long = sorted(segmentation_size(height, width, 448, 2048))
    assert long <= 2048 and 1 <= short <= 448 and (short == 448 or long == 2048)


words = st.lists(st.text(max_size=12), max_size=6)


@given(names=words)
def test_any_words_are_embedded_or_refused(names):
    """Any Unicode: as many embeddings as words, of length 1, each as if it were alone; or a clear ValueError."""
    clip, tokenizer = build_clip(), open_clip.get_tokenizer("ViT-B-16")

    # The golden CLIP has few tokens: those of CLIP's tokenizer are folded into them, all but the one that ends a text.
    last = clip.model.vocab_size - 1

    def fold(prompts: list[str]) -> torch.Tensor:
        tokens = tokenizer(prompts)
        return torch.where(tokens == 49407, last, tokens % last)

    embed = TextEmbedder(clip, fold)
    if not names or any(not name.strip() for name in names) or len(set(names)) < len(names):
        with pytest.raises(ValueError, match="vocabulary"):
            check_words(names)
        return
    features = embed(names, ["a {}", "{}"])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(names)))
    torch.testing.assert_close(features[-1:], embed(names[-1:], ["a {}", "{}"]), rtol=0, atol=1e-5)


@given(templates=st.lists(st.text(alphabet="a{} ", max_size=6), max_size=4))
def test_templates_have_one_place_or_are_refused(templates):
    if templates and all(template.count("{}") == 1 for template in templates):
        assert check_templates(templates) == tuple(templates)
    else:
        with pytest.raises(ValueError, match="template"):
            check_templates(templates)


@given(data=st.data(), classes=st.integers(1, 20))
def test_label_rule_maps_each_value_or_names_it(data, classes):
    """Every value of a file becomes the class that the rule says, or the ignored one, or is an error."""
    targets = st.one_of(st.just("ignore"), st.integers(0, classes - 1))
    table = data.draw(st.dictionaries(st.integers(0, 254).map(str), targets, max_size=12))
    rule = LabelMapper(classes, parse_rule(table, 255), 255)
    values = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=12))
    known = {int(value): classes if target == "ignore" else target for value, target in table.items()} | {255: classes}
    label = np.array([values], np.uint8)
    if set(values) <= set(known):
        assert rule(label, "x.png")[0].tolist() == [known[value] for value in values]
    else:
        with pytest.raises(ValueError, match="x.png has the value"):
            rule(label, "x.png")


@given(first=st.integers(0, 100), count=st.integers(1, 50), shift=st.integers(0, 50))
def test_ranges_in_label_rules(first, count, shift):
    last = first + count - 1
    assert parse_rule({f"{first}..{last}": f"{shift}..{shift + count - 1}"}, 255) == {
        first + i: shift + i for i in range(count)
    }
    assert parse_rule({f"{first}..{last}": "ignore"}, 255) == dict.fromkeys(range(first, last + 1), 255)


@given(dtype=st.text(max_size=10))
def test_precisions_out_of_range_are_refused(dtype):
    cfg = load_config(None, ["SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu"])
    cfg.SOLVER.AMP.DTYPE = dtype
    if dtype == "bfloat16":
        assert training_precision(cfg) is torch.bfloat16
    else:
        with pytest.raises(ValueError, match="SOLVER.AMP.DTYPE"):
            training_precision(cfg)


@given(warmup=st.integers(0, 200), iterations=st.integers(1, 200))
def test_schedules_out_of_range_are_refused(warmup, iterations):
    cfg = load_config(None, ["SOLVER.WARMUP_ITERS", warmup, "SOLVER.MAX_ITER", iterations])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if warmup < iterations:
        check_schedule(cfg)
        rates = []
        schedule = Trainer.build_lr_scheduler(cfg, optimizer)
        for _ in range(iterations):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert all(0 <= rate <= 1 for rate in rates)
    else:
        with pytest.raises(ValueError, match="SOLVER.WARMUP_ITERS"):
            check_schedule(cfg)


@given(crop_size=st.integers(-5, 60), stride=st.integers(-5, 60))
def test_windows_out_of_range_are_refused(crop_size, stride):
    def build() -> MaskCLIP:
        return MaskCLIP(
            clip=build_clip(),
            tokenizer=None,
            pixel_mean=(0.0, 0.0, 0.0),
            pixel_std=(1.0, 1.0, 1.0),
            templates=("{}",),
            crop_size=crop_size,
            stride=stride,
            background_score=0.4,
        )

    if crop_size == 0 or 1 <= stride <= crop_size:
        model = build()
        assert Windows(torch.zeros(3, 40, 30), model.crop_size, model.stride).slices
    else:
        with pytest.raises(ValueError, match="TEST.ZERO_SHOT.(STRIDE|CROP_SIZE) is"):
            build()
