"""A model on the small world's CLIP, for tests that need words."""

import pytest

from tcl_d2.modeling import FrozenCLIP, MaskCLIP, build_clip, build_tokenizer


def build_small() -> MaskCLIP:
    clip = FrozenCLIP(build_clip("tcl_d2://shapes_clip/model.json", "tcl_d2://shapes_clip/weights.safetensors"))
    return MaskCLIP(
        clip=clip,
        tokenizer=build_tokenizer("tcl_d2://shapes_clip/model.json"),
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        templates=("a {}", "the {}"),
        crop_size=48,
        stride=24,
        background_score=0.3,
    )


@pytest.fixture(scope="package")
def model() -> MaskCLIP:
    return build_small()
