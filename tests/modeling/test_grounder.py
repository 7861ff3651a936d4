"""The trained part: how it starts, and its convolution by phases."""

import pytest
import torch
from torch.nn import functional as F

from tcl_d2.modeling import Grounder
from tcl_d2.modeling.dense_clip import MaskCLIPHead
from tcl_d2.modeling.tcl.grounder import conv_of_doubled, enlarge
from tests import golden


def test_trained_part_starts_as_a_copy():
    """The gates are 0: the new grounder's embeddings are CLIP's dense features, enlarged by nearest."""
    clip = golden.build_clip()
    images = torch.randn(1, 3, 48, 48)
    tokens = clip.forward_blocks(images, 2)
    dense = F.interpolate(MaskCLIPHead().continue_features(clip, tokens, 2, images), scale_factor=4.0, mode="nearest")
    torch.testing.assert_close(Grounder(clip, 2)(tokens, (6, 6)), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6, 5, 7), (2, 6, 1, 1)])
def test_convolution_of_a_doubled_map(shape):
    """By phases: the plain convolution of the enlarged map, values and gradients."""
    torch.manual_seed(0)
    conv, x = torch.nn.Conv2d(6, 4, 3, padding=1), torch.randn(shape, requires_grad=True)
    leaves = x, conv.weight, conv.bias
    ours, plain = conv_of_doubled(x, conv), conv(enlarge(x))
    torch.testing.assert_close(ours, plain)
    for gradients in zip(*(torch.autograd.grad(value.sin().sum(), leaves) for value in (ours, plain)), strict=True):
        torch.testing.assert_close(*gradients)
