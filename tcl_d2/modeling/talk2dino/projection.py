"""The projection of Talk2DINO, all that it learns: from CLIP's texts to the patches of a vision model."""

from torch import Tensor, nn

from ..encoders.weights import load_weights, read_weights

_PREFIX = "projection."  # of its weights in a Talk2DINO's checkpoint


class Projection(nn.Module):
    """Two linear layers with tanh between them, in the names of the release's files."""

    def __init__(self, text_width: int, vision_width: int):
        """Initialize the layers as PyTorch does."""
        super().__init__()
        self.linear_layer = nn.Linear(text_width, vision_width)
        self.hidden_layers = nn.ModuleList([nn.Linear(vision_width, vision_width)])

    def forward(self, text: Tensor) -> Tensor:
        """Project CLIP's features of texts [N, D], not normalized -> [N, C], not normalized."""
        return self.hidden_layers[0](self.linear_layer(text).tanh())


def load_projection(projection: Projection, key: str, path: str, models: str) -> None:
    """Load a release's file, of either layout, or a checkpoint of a training.

    Args:
        key: of the configuration, for errors.
        models: what the projection is between, for errors.

    Raises:
        OSError, ValueError: the file cannot be read, or does not fit.
    """
    state = read_weights(key, path)
    if any(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    state = {name.replace("linear_layer2.", "hidden_layers.0."): value for name, value in state.items()}  # older files
    load_weights(projection, state, f"{key}: '{path}' does not fit {models}")
