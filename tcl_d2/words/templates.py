"""Sets of prompt templates by name, as methods of the field use them."""

from collections.abc import Sequence

from open_clip import OPENAI_IMAGENET_TEMPLATES

from .parsing import split_templates

_OPENAI_IMAGENET = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
_TCL = [
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of many {}.",
    "a photo of {}s.",
]
TEMPLATES = {
    # The nine of the TCL paper's published results
    "tcl": _TCL,
    # Talk2DINO's seven, which are the first of them
    "talk2dino": _TCL[:7],
    # The 80 with which OpenAI evaluated CLIP on ImageNet; SCLIP, ClearCLIP, NACLIP and ProxyCLIP use them
    "openai_imagenet": _OPENAI_IMAGENET,
    # MaskCLIP's 85
    "maskclip": [
        *_OPENAI_IMAGENET,
        "there is a {} in the scene.",
        "there is the {} in the scene.",
        "this is a {} in the scene.",
        "this is the {} in the scene.",
        "this is one {} in the scene.",
    ],
}


def get_templates(templates: str | Sequence[str]) -> list[str]:
    """Return prompt templates, each with the place `{}` for a word.

    Args:
        templates: the name of a set in TEMPLATES; or templates, among which may be names of sets.

    Raises:
        ValueError: no such set, no template, or a template without exactly one `{}`.
    """
    entries = [templates] if isinstance(templates, str) else templates
    unknown = [entry for entry in entries if isinstance(entry, str) and "{}" not in entry and entry not in TEMPLATES]
    if unknown:
        raise ValueError(
            f"TEST.ZERO_SHOT.TEMPLATES: '{unknown[0]}' is neither a prompt template, for it has no place '{{}}' for "
            f"the word, nor the name of a set of them: {', '.join(TEMPLATES)}."
        )
    return list(check_templates([template for entry in entries for template in TEMPLATES.get(entry, [entry])]))


def make_prompts(word: str, templates: Sequence[str]) -> list[str]:
    """Put a word into each template of its own or, where it has none, of these."""
    text, own = split_templates(word)
    return [template.replace("{}", text) for template in own or templates]


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates as a tuple; ValueError unless there is one and each has exactly one place, `{}`."""
    if isinstance(templates, str) or not templates:
        raise ValueError(f"Prompt templates are a list of at least one text, not {templates!r}.")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"A prompt template has the place '{{}}' exactly once; not so: {wrong[0]!r}.")
    return tuple(templates)
