"""Files of an encoder's weights: read without running code, and loaded whole or refused."""

from collections.abc import Mapping

from torch import Tensor, nn

from ...utils.downloads import local_weights
from ...utils.errors import named
from ...utils.tensors import check_finite, read_tensors, split_checkpoint


def read_weights(key: str, path: str) -> dict[str, Tensor]:
    """Read the state dict of a file or an address, a training's checkpoint too; errors name the `key`.

    Raises:
        OSError, ValueError: no such file, no weights in it, or NaN among them.
    """
    local = local_weights(key, path)
    with named(key):
        state, _ = split_checkpoint(read_tensors(local), path)
        check_finite(state, path)
    return state


def load_weights(model: nn.Module, state: Mapping[str, Tensor], unfit: str) -> None:
    """Load all weights of a model, fp16 as fp32; an error begins with `unfit` and names what differs."""
    expected = model.state_dict()
    differences = []
    for name, value in expected.items():
        shape = tuple(state[name].shape) if name in state else "nothing"
        if shape != tuple(value.shape):
            differences.append(f"{name}: the file has {shape}, the model {tuple(value.shape)}")
    differences += [f"{name}: the model has no such weight" for name in state.keys() - expected.keys()]

    if differences:
        raise ValueError(f"{unfit} ({len(differences)} weights differ; {'; '.join(differences[:3])})")
    model.load_state_dict(state)
