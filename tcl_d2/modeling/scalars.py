"""Learned numbers, such as scales and gates: scalars in checkpoints, parameters [1] in memory."""

from torch import Tensor, nn


def hold_scalars(module: nn.Module) -> None:
    """Give a module's own scalar parameters a dimension, without which FSDP and fully_shard refuse them.

    Its state dict has them as scalars, as official checkpoints do, unless it is sharded, and takes both.

    Args:
        module: whose parameters are replaced; those of its children stay.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.ndim == 0:
            setattr(module, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
    module.register_state_dict_post_hook(_drop_dimension)
    module.register_load_state_dict_pre_hook(_add_dimension)


def is_scalar(parameter: Tensor) -> bool:
    """Return whether a parameter is one number."""
    return parameter.shape in ((), (1,))


def _drop_dimension(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        # With keep_vars, tracers look for the parameters themselves; one with a mesh is sharded
        value = state.get(prefix + name, parameter)
        if is_scalar(parameter) and value is not parameter and not hasattr(value, "device_mesh"):
            state[prefix + name] = value.reshape(())


def _add_dimension(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if is_scalar(parameter) and prefix + name in state:
            state[prefix + name] = state[prefix + name].reshape(1)
