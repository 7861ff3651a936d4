"""Linear layers as convolutions: they equal torch's, values and gradients, and run only where BLAS is slow."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tcl_d2.modeling.encoders import linear
from tests import golden


@pytest.fixture
def slow_blas(monkeypatch):
    """Count the convolutions of a machine whose BLAS is slow."""
    calls = []
    conv2d = F.conv2d
    monkeypatch.setattr(linear, "blas_is_slow", lambda: True)
    monkeypatch.setattr(F, "conv2d", lambda *args: calls.append(args) or conv2d(*args))
    return calls


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (1, 6), (6,), (4, 1, 6)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_linear(shape, has_bias, slow_blas):
    torch.manual_seed(0)
    x, layer = torch.randn(shape, requires_grad=True), nn.Linear(6, 4, bias=has_bias)
    leaves = [x, *layer.parameters()]
    ours, plain = linear.run_layers(layer, x), layer(x)
    assert slow_blas
    torch.testing.assert_close(ours, plain)
    for gradients in zip(*(torch.autograd.grad(value.sin().sum(), leaves) for value in (ours, plain)), strict=True):
        torch.testing.assert_close(*gradients)


def test_no_rows(slow_blas):
    assert linear.run_layers(nn.Linear(6, 4), torch.zeros(2, 0, 6)).shape == (2, 0, 4)


def test_strided_inputs_and_weights(slow_blas):
    """A channels-first map seen with channels last, and a transposed projection."""
    x, weight = torch.randn(2, 6, 5, 7).permute(0, 2, 3, 1), torch.randn(6, 4)
    torch.testing.assert_close(linear.linear(x, weight.T), x @ weight)
    assert slow_blas


def test_other_layers_run_as_they_are(slow_blas):
    """Those of a sequence too, and linear layers that compute in their own way."""

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    x, layers = torch.randn(3, 6), nn.Sequential(nn.GELU(), Doubled(6, 4), nn.Linear(4, 2))
    torch.testing.assert_close(linear.run_layers(layers, x), layers(x))
    assert len(slow_blas) == 1


def test_where_blas_is_fast_modules_are_called(monkeypatch):
    """With their hooks."""
    monkeypatch.setattr(linear, "blas_is_slow", lambda: False)
    module, calls = nn.Sequential(nn.Linear(6, 4)), []
    module.register_forward_hook(lambda *_: calls.append("mlp"))
    module[0].register_forward_hook(lambda *_: calls.append("layer"))
    linear.run_layers(module, torch.randn(3, 6))
    assert calls == ["layer", "mlp"]


def test_low_precision_and_graphs_are_left_to_torch(slow_blas):
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        linear.run_layers(layer, x)
    linear.run_layers(layer.bfloat16(), x.bfloat16())
    linear.run_layers(layer.to("meta"), x.to("meta"))
    assert not slow_blas


@torch.no_grad()
def test_compiled_model_has_no_breaks():
    """Nothing of how fast the CPU's BLAS is gets into a graph, such as reading a file."""
    model, figures = golden.build_model(), golden.load()["inference"]
    image, text = figures["image"].float(), figures["text_embedding"]
    expected = model.crop_masks(*model.encode_crops(image), text)

    for part, name in ((model.clip, "forward_blocks"), (model, "grounder")):
        setattr(part, name, torch.compile(getattr(part, name), fullgraph=True, backend="eager"))
    torch.testing.assert_close(model.crop_masks(*model.encode_crops(image), text), expected)


@pytest.mark.parametrize(
    "vendor, mkl, slow",
    [("GenuineIntel", True, False), ("AuthenticAMD", True, True), ("AuthenticAMD", False, False)],
)
def test_mkl_is_slow_on_other_makers_cpus(vendor, mkl, slow, tmp_path, monkeypatch):
    """A build of torch without MKL has a BLAS that knows its CPU."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(linear, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert linear.blas_is_slow.__wrapped__() is slow
