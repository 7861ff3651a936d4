"""A model under torch's wrappers for several processes: the same losses, masks and state dicts."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tcl_d2.checkpoint import from_official
from tcl_d2.engine.optimizer import FullModelClippedAdamW, parameter_groups
from tcl_d2.modeling.tcl.losses import ImageTCLLoss
from tcl_d2.predictor import TCLPredictor
from tests import golden
from tests.conftest import ROOT
from tests.modeling.test_groupvit_training import build as build_groupvit

WRAPPERS = {
    "DataParallel": DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "FSDP": lambda model: FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu")),
    "fully_shard": lambda model: fully_shard(model, mesh=init_device_mesh("cpu", (1,))),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@pytest.fixture(autouse=True)
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@wrappers
def test_a_wrapped_model_trains_alike(wrap):
    """Whatever shards it: losses and what a step makes of the scalars, which FSDP takes only with a dimension."""
    images, tokens = golden.load()["image"].float()[:2], golden.load()["tokens"][:2]
    batch = [{"image": image, "tokens": text} for image, text in zip(images, tokens)]
    results = []
    for around in (lambda model: model, wrap):
        torch.manual_seed(0)
        model = golden.build_model().train()
        wrapped = around(model)
        optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
        losses = wrapped(batch)
        sum(losses.values()).backward()
        optimizer.step()
        learned = {name: p for name, p in wrapped.named_parameters() if name.endswith((".gate", ".w", ".b"))}
        results.append([*losses.values(), *(getattr(p, "full_tensor", lambda p=p: p)() for p in learned.values())])
        assert len(learned) == 6
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


@pytest.mark.fault("a predictor's model under DDP, DataParallel, FSDP or fully_shard", "the same masks")
@wrappers
def test_a_predictor_takes_a_wrapped_model(wrap):
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml")
    image, request = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8), (["brick", "lava"], True)
    expected = predictor(image, *request).scores
    predictor.model = wrap(predictor.model)
    predictor.model.embed_vocabulary._features.clear()
    torch.testing.assert_close(predictor(image, *request).scores, expected, rtol=0, atol=1e-6)
    assert predictor.rank_words(predictor.encode(image), (3, 3), "brick, lava")


def test_text_features_are_cached_in_files_under_fully_shard(tmp_path):
    """Their name has a digest of the weights, which is made in the middle of the model's forward."""
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", "TEST.ZERO_SHOT.TEXT_CACHE", tmp_path)
    image = np.zeros((9, 9, 3), np.uint8)
    predictor.model = WRAPPERS["fully_shard"](predictor.model)
    predictor(image, "brick")
    plain = TCLPredictor(ROOT / "configs/shapes/trained.yaml", "TEST.ZERO_SHOT.TEXT_CACHE", tmp_path)
    plain(image, "brick")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("build", [golden.build_model, build_groupvit, ImageTCLLoss])
def test_scalars_have_a_dimension_in_memory_alone(build):
    """In state dicts they are scalars, as in official checkpoints and those of earlier versions; both are loaded."""
    model = build()
    scalars = {name: p for name, p in model.named_parameters() if p.numel() == 1 and not name.endswith(".bias")}
    state = model.state_dict()
    assert scalars and all(p.shape == (1,) for p in scalars.values()) and all(p.ndim for p in model.parameters())
    assert all(state[name].shape == () for name in scalars)
    assert all(model.state_dict(keep_vars=True)[name] is p for name, p in scalars.items())  # as torch.jit.trace asks

    for shape in ((), (1,)):
        model.load_state_dict({**state, **{name: torch.full(shape, 0.25) for name in scalars}})
        assert all(p.item() == 0.25 and p.shape == (1,) for p in scalars.values())


def test_official_gates_are_scalars_that_fit():
    ours = from_official(golden.load()["model"])
    state = golden.build_model().state_dict()
    assert {name: state[name].shape for name in ours if name in state} == {
        name: value.shape for name, value in ours.items() if name in state
    }


def test_an_optimizers_state_of_scalars_without_a_dimension_is_restored():
    """Earlier versions wrote it so; a training that is resumed takes the next step."""
    model = golden.build_model().train()
    optimizer = FullModelClippedAdamW(parameter_groups(model, 0.05), max_norm=5.0, lr=1e-3)
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    state = optimizer.state_dict()
    for values in state["state"].values():
        values.update({name: values[name].squeeze() for name in ("exp_avg", "exp_avg_sq")})
    optimizer.load_state_dict(state)
    optimizer.step()
    assert all(values["exp_avg"].shape == p.shape for p, values in optimizer.state.items())
