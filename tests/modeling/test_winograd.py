"""Convolutions with fewer products: they equal torch's, values and gradients, in bands of any size."""

import pytest
import torch
from torch import nn

from tcl_d2.modeling.encoders import linear
from tcl_d2.modeling.tcl import winograd
from tcl_d2.modeling.tcl.grounder import GatedConv, enlarge
from tcl_d2.modeling.tcl.winograd import FILTERING, FILTERING_DOUBLED


@pytest.fixture(autouse=True)
def fast_blas(monkeypatch):
    monkeypatch.setattr(linear, "blas_is_slow", lambda: False)


@pytest.mark.parametrize("band_bytes", [1, 5000, 10**8], ids=["rows", "bands", "whole"])
@pytest.mark.parametrize("filtering, shape", [(FILTERING, (3, 6, 8, 10)), (FILTERING_DOUBLED, (3, 6, 5, 7))])
def test_equals_convolution(filtering, shape, band_bytes, monkeypatch):
    """In fp64, where rounding hides nothing."""
    torch.manual_seed(0)
    monkeypatch.setattr(winograd, "BAND_BYTES", band_bytes)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    conv = nn.Conv2d(6, 4, 3, padding=1).double()
    leaves = x, conv.weight, conv.bias

    ours = winograd.convolve(x, conv.weight, conv.bias, filtering)
    plain = conv(enlarge(x) if filtering is FILTERING_DOUBLED else x)
    torch.testing.assert_close(ours, plain)
    for gradients in zip(*(torch.autograd.grad(value.sin().sum(), leaves) for value in (ours, plain)), strict=True):
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("filtering", [FILTERING, FILTERING_DOUBLED])
def test_rounds_finely(filtering):
    """In fp32, where torch's error is 5e-7 of the result."""
    torch.manual_seed(0)
    x, conv = torch.randn(1, 384, 16, 16), nn.Conv2d(384, 384, 3, padding=1)
    exact = conv.double()((enlarge(x) if filtering is FILTERING_DOUBLED else x).double())
    conv.float()
    error = winograd.convolve(x, conv.weight, conv.bias, filtering) - exact
    assert error.norm() < 2e-6 * exact.norm()


def test_odd_sides_are_refused():
    with pytest.raises(ValueError, match="even sides, not \\(5, 6\\)"):
        winograd.convolve(torch.zeros(1, 4, 5, 6), torch.zeros(4, 4, 3, 3), torch.zeros(4), FILTERING)


def test_is_used_in_fp32_on_a_cpu_for_large_maps(monkeypatch):
    """And nowhere else: not in low precision, for small maps, few channels, odd sides, or where BLAS is slow."""
    large = torch.zeros(1, 384, 40, 40)
    assert winograd.is_faster(large, FILTERING)
    assert winograd.is_faster(large[..., :18, :18], FILTERING_DOUBLED)

    assert not winograd.is_faster(large[..., :18, :18], FILTERING)
    assert not winograd.is_faster(large[:, :383], FILTERING)
    assert not winograd.is_faster(large[..., :39], FILTERING)
    assert not winograd.is_faster(large.bfloat16(), FILTERING)
    assert not winograd.is_faster(large.to("meta"), FILTERING)
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.is_faster(large, FILTERING)
    monkeypatch.setattr(linear, "blas_is_slow", lambda: True)
    assert not winograd.is_faster(large, FILTERING)


def test_graphs_have_torch_convolutions():
    module, x = GatedConv(384), torch.zeros(1, 384, 40, 40)
    program = torch.export.export(module, (x,))
    assert any(node.target is torch.ops.aten.conv2d.default for node in program.graph.nodes)


def test_gated_convolutions_are_the_same(monkeypatch):
    """The decoder's convolution with and without it, of a map and of a doubled one."""
    torch.manual_seed(0)
    module, x = GatedConv(384), torch.randn(1, 384, 40, 40)
    nn.init.constant_(module.gate, 0.5)
    calls = []
    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args: calls.append(args) or convolve(*args))
    with torch.no_grad():
        ours = module(x), module(x, double=True)
        assert [call[3] for call in calls] == [FILTERING, FILTERING_DOUBLED]
        monkeypatch.setattr(winograd, "is_faster", lambda *_: False)
        torch.testing.assert_close(ours, (module(x), module(x, double=True)))
