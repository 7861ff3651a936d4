"""Nouns of captions: what counts as one, and what is drawn."""

import pytest

from tcl_d2 import load_config
from tcl_d2.data import ImageTextDatasetMapper
from tcl_d2.data.pairs.nouns import NounPrompter
from tests.conftest import ROOT

WORDS = ["apple", "Red Apple", "bus", "dog", "polar-bear"]


@pytest.mark.parametrize(
    "caption, nouns",
    [
        ("A red apple, and an APPLE!", ["red apple", "apple"]),
        ("dogs and dog in two buses", ["dog", "bus"]),
        ("a polar-bear's doghouse, appled", []),
        ("the polar-bears", ["polar-bear"]),
        ("", []),
    ],
)
def test_nouns_of_a_caption(caption, nouns):
    assert NounPrompter(WORDS, 1, ["{}"]).find(caption) == nouns


def test_nouns_are_drawn_once_each_where_there_are_enough():
    draw = NounPrompter(WORDS, 3, ["a {}.", "the {}"])
    for _ in range(20):
        nouns = [prompt.split(" ", 1)[1].strip(".") for prompt in draw("a red apple, a dog, a bus and an apple")]
        assert len(set(nouns)) == 3
    assert {prompt.split()[0] for _ in range(20) for prompt in draw("dog")} == {"a", "the"}


def test_few_nouns_come_several_times_and_none_is_the_caption():
    draw = NounPrompter(WORDS, 3, ["a {}"])
    assert draw("my dog") == ["a dog"] * 3
    assert set(draw("dog on a bus")) == {"a dog", "a bus"} and len(draw("dog on a bus")) == 3
    assert draw("a sunset") == ["a sunset"] * 3


def test_mapper_gives_their_tokens():
    options = ["MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS", 2, "MODEL.GROUPVIT.MULTI_LABEL.TEMPLATES", ["a {}"]]
    cfg = load_config(
        "shapes/groupvit.yaml", [*options, "MODEL.GROUPVIT.MULTI_LABEL.WORDS", "tcl_d2://words/shapes.txt"]
    )
    mapper = ImageTextDatasetMapper(cfg)
    mapped = mapper({"file_name": str(ROOT / "docs/shapes.png"), "captions": ["there is brick"]})
    assert mapped["noun_tokens"].tolist() == mapper.tokenizer(["a brick", "a brick"]).tolist()


@pytest.mark.fault("the multi-label loss without words, or with a wrong number", "the error names the config key")
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("NUM_NOUNS", -1, "NUM_NOUNS is -1; expected at least 0"),
        ("WORDS", "", "WORDS is empty; expected a file of the words that count as nouns"),
        ("WORDS", "/none/words.txt", "MULTI_LABEL.WORDS: .*/none/words.txt"),
    ],
)
def test_unfit_settings_are_named(key, value, message):
    options = ["MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS", 3, f"MODEL.GROUPVIT.MULTI_LABEL.{key}", value]
    with pytest.raises((OSError, ValueError), match=message):
        ImageTextDatasetMapper(load_config("shapes/groupvit.yaml", options))
