"""Prompt templates: the named sets, lists of one's own, and what is refused."""

import pytest

from tcl_d2 import load_config
from tcl_d2.words.templates import get_templates


@pytest.mark.parametrize(
    "name, count, first, last",
    [
        ("tcl", 9, "itap of a {}.", "a photo of {}s."),
        ("openai_imagenet", 80, "a bad photo of a {}.", "a tattoo of the {}."),
        ("maskclip", 85, "a bad photo of a {}.", "this is one {} in the scene."),
    ],
)
def test_sets_are_those_of_the_methods(name, count, first, last):
    templates = get_templates(name)
    assert len(templates) == len(set(templates)) == count and (templates[0], templates[-1]) == (first, last)
    assert all(template.count("{}") == 1 for template in templates)


def test_maskclips_are_openais_and_five():
    assert get_templates("maskclip")[:80] == get_templates("openai_imagenet")
    assert get_templates("tcl") == get_templates(load_config().TEST.ZERO_SHOT.TEMPLATES)


def test_lists_are_taken_as_they_are():
    assert get_templates(("a {}", "{}")) == ["a {}", "{}"]
    get_templates("tcl").clear()
    assert len(get_templates("tcl")) == 9  # a caller's list is not the set


@pytest.mark.fault(
    "prompt templates of a name that there is not, or without a place for the word", "an error names them"
)
@pytest.mark.parametrize(
    "templates, message",
    [
        ("openai", "'openai' is neither .* tcl, talk2dino, openai_imagenet, maskclip"),
        (["a {}", "a photo"], "'a photo' is neither a prompt template"),
        (["a {} {}"], "exactly once; not so: 'a {} {}'"),
        ([], "at least one text"),
    ],
)
def test_unusable_templates_are_named(templates, message):
    with pytest.raises(ValueError, match=message):
        get_templates(templates)
