"""The golden figures of every method, on each device and in each precision, within the bounds that BOUNDS states.

Without a GPU that is bfloat16 on the CPU, which says little of a GPU; the other tests skip themselves. `make gpu` runs
all of them, and writes what it saw.
"""

import os

import pytest
import torch
from torch.nn import functional as F

from tcl_d2.checkpoint import from_official
from tcl_d2.engine import Trainer
from tcl_d2.modeling import PAMR, Sim2Mask
from tcl_d2.modeling.dense_clip import ProxyCLIPHead
from tcl_d2.modeling.reco.model import ReCoFeatures
from tcl_d2.modeling.tcl.mask_statistics import MASK_STATISTICS, pair_statistics
from tcl_d2.predictor import TCLPredictor
from tests import golden
from tests.conftest import ROOT
from tests.engine.test_trainer import logged, train
from tests.golden import dense_clip, groupvit, reco
from tests.modeling.test_dense_clip import HEADS

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
PRECISIONS = [
    pytest.param(("cpu", torch.bfloat16), id="cpu-bfloat16", marks=pytest.mark.gpu),
    *[
        pytest.param(("cuda", dtype), id=f"cuda-{str(dtype).removeprefix('torch.')}", marks=needs_gpu)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ],
]
# Largest difference to the official figures: of scores in 0..1 (masks, cosines), of losses and of gradients, relative
BOUNDS = {
    torch.float32: {"scores": 2e-5, "losses": 2e-5, "gradients": 2e-4},
    torch.float16: {"scores": 5e-3, "losses": 2e-3, "gradients": 2e-2},
    torch.bfloat16: {"scores": 2e-2, "losses": 5e-3, "gradients": 5e-2},
}
LOSS_SCALE = 1024.0  # as a loss scaler's, so that float16 holds small gradients


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch):
    """Without TF32, which torch takes for convolutions by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Setting:
    """A device and a precision, and the check of what a model gives there."""

    def __init__(self, device: str, dtype: torch.dtype, record_property):
        self.device, self.dtype, self.record_property = device, dtype, record_property
        self.bounds = BOUNDS[dtype]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype is not torch.float32)

    def check(self, quantity: str, ours: torch.Tensor, expected: torch.Tensor, relative: bool = False) -> None:
        """Check the largest difference, or the length of the difference in lengths of what is expected."""
        ours, expected = ours.float().cpu(), expected.float()
        difference = (ours - expected).norm() / expected.norm() if relative else (ours - expected).abs().max()
        self.record_property(quantity, (difference.item(), self.bounds[quantity]))
        assert difference <= self.bounds[quantity]


@pytest.fixture(params=PRECISIONS)
def setting(request, record_property) -> Setting:
    return Setting(*request.param, record_property)


# ------------------------------------------------------------------------------------ TCL


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_losses_and_gradients_of_tcl(setting, stage):
    figures = golden.load()["train"][stage]
    model = golden.build_model(train_last_blocks=stage == "stage2").train().to(setting.device)
    noise = figures["uniform"].diagonal().permute(2, 0, 1)[:, None]
    batch = golden.load()["image"].float(), golden.load()["tokens"], noise
    with setting.autocast():
        losses = model.compute_losses(*(x.to(setting.device) for x in batch))
    total = sum(losses.values())
    (LOSS_SCALE * total).backward()

    setting.check("losses", total.detach(), figures["total"], relative=True)
    parameters, expected = dict(model.named_parameters()), from_official(figures["grads"])
    gradient = torch.cat([parameters[name].grad.flatten() for name in expected]) / LOSS_SCALE
    setting.check("gradients", gradient, torch.cat([value.flatten() for value in expected.values()]), relative=True)


@pytest.mark.parametrize(
    "name, pamr, kp_weight", [("plain", False, 0), ("kp", False, 0.3), ("pamr", True, 0), ("pamr_kp", True, 0.3)]
)
@torch.no_grad()
def test_masks_of_tcl_are_the_releases(setting, name, pamr, kp_weight):
    figures = golden.load()["inference"]
    model = golden.build_model(pamr, kp_weight).to(setting.device)
    image, text = figures["image"].float().to(setting.device), figures["text_embedding"].to(setting.device)
    with setting.autocast():
        masks = model.crop_masks(*model.encode_crops(image), text)
    setting.check("scores", masks, figures[name])


def test_scores_of_a_whole_image_are_the_releases(setting):
    """Windows, their average, enlarging and background, as forward runs them."""
    figures = golden.load()["inference"]
    model = golden.build_model(pamr=True, kp_weight=0.3)
    model.set_text_embeddings(figures["text_embedding"], background=True)
    model.to(setting.device)
    model.precision = setting.dtype
    (output,) = model([{"image": figures["slide_image"][0].float()}])
    setting.check("scores", output["sem_seg"], figures["slide_scores"][0])


# ------------------------------------------------------------------------------------ the other methods


@pytest.mark.parametrize("method", HEADS)
@torch.no_grad()
def test_cosines_of_dense_heads(setting, method):
    model = dense_clip.build_model(HEADS[method]()).to(setting.device)
    image, text = dense_clip.image("square").to(setting.device), dense_clip.load()["text"].to(setting.device)
    with setting.autocast():
        cosines = model.predict_masks(model.prepare(model.encode(image), text), text, slice(None))
    setting.check("scores", cosines, dense_clip.load()[method]["square"]["logits"])


@torch.no_grad()
def test_cosines_of_proxyclip(setting):
    expected, clip = dense_clip.load()["proxyclip"]["square_9x9"], dense_clip.build_clip().to(setting.device)
    head, image = ProxyCLIPHead(torch.nn.Identity()), dense_clip.image("square").to(setting.device)
    with setting.autocast():
        tokens = clip.forward_blocks(image, len(clip.blocks) - 1, position=head.position)
        features = head.gather(clip, tokens, clip.grid(image), expected["vfm"].float().to(setting.device))
    cosines = torch.einsum(
        "bdhw,kd->bkhw", F.normalize(features.float(), dim=1), dense_clip.load()["text"].to(features.device)
    )
    setting.check("scores", cosines, expected["forward"]["logits"])


@torch.no_grad()
def test_tables_of_groupvit_are_the_releases(setting):
    """The groups of a trained model are far apart; those of this random one may change in a low precision."""
    pytest.importorskip("transformers")
    model, expected = groupvit.build_model().to(setting.device), groupvit.load()["whole"]["square"]
    text = groupvit.load()["text_embedding"].to(setting.device)
    with setting.autocast():
        features = model.prepare(model.encode(groupvit.image("square").to(setting.device)), text)
    if setting.dtype is torch.float32:
        setting.check("scores", features.table[0].T, expected["table"])
    agreement = (features.group_of_pixel.cpu() == expected["group_of_pixel"]).float().mean().item()
    assert agreement >= (1 if setting.dtype is torch.float32 else 0.7)


@torch.no_grad()
def test_references_and_scores_of_reco(setting):
    expected, scene = reco.expected(True, True), reco.load()["scene"]
    model = reco.build_model().to(setting.device)
    text = reco.text(["dog", "cat", "sky"]).to(setting.device)
    images, clip_features = torch.zeros(2, 3, *scene["size"]), F.normalize(scene["dense_clip"], dim=1)
    maps = ReCoFeatures(*(part.to(setting.device) for part in (images, clip_features, scene["encoder"])))
    with setting.autocast():
        features = model.prepare(maps, text)
        scores = model.predict_masks(features, text, slice(None))
    setting.check("scores", scores, expected["scores"])


# ------------------------------------------------------------------------------------ what is computed in another way


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_gpu)])
def test_pamr_equals_the_cpus(device):
    images, masks = torch.randn(2, 3, 60, 40), torch.rand(2, 5, 30, 20)
    refined = PAMR().to(device)(images.to(device), masks.to(device))
    torch.testing.assert_close(refined.cpu(), PAMR()(images, masks), rtol=0, atol=2e-5)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_gpu)])
def test_sums_over_all_pairs_equal_the_cpus(device):
    """With more texts than are held at once, so that parts are computed again for the gradient."""
    inputs = torch.randn(3, 32, 12, 12), torch.randn(40, 32)

    def run(device: str) -> list[torch.Tensor]:
        embedding = inputs[0].to(device).requires_grad_()
        statistics = pair_statistics(embedding, inputs[1].to(device), Sim2Mask().to(device), MASK_STATISTICS)
        sum(value.square().mean() for value in statistics.values()).backward()
        return [*(statistics[name].detach().cpu() for name in MASK_STATISTICS), embedding.grad.cpu()]

    for ours, expected in zip(run(device), run("cpu")):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------ training and memory


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=needs_gpu) for dtype in ("float16", "bfloat16")])
def test_training_goes_on_where_it_stopped(shapes_cfg, dtype):
    """Both stages, with the loss scaler in float16, evaluated at the end, and once resumed in the second stage."""
    os.makedirs(shapes_cfg.OUTPUT_DIR)
    shapes_cfg.MODEL.DEVICE, shapes_cfg.SOLVER.AMP.ENABLED, shapes_cfg.SOLVER.AMP.DTYPE = "cuda", True, dtype
    shapes_cfg.DATASETS.TEST, shapes_cfg.SOLVER.CHECKPOINT_PERIOD = ("shapes_objects_val",), 3
    whole = train(shapes_cfg)
    assert whole._last_eval_results["average"]["mIoU"] > 0

    with open(f"{shapes_cfg.OUTPUT_DIR}/last_checkpoint", "w") as file:
        file.write("model_0000002.pth")
    resumed = Trainer(shapes_cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert logged(resumed, "total_loss")[3] == pytest.approx(logged(whole, "total_loss")[3], rel=1e-2)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_gpu)])
def test_little_memory_gives_the_same_labels(device, caplog):
    """A large image in a part of the memory that it needs: fewer windows at once, at last averages on the CPU."""
    predictor = TCLPredictor(ROOT / "configs/shapes/trained.yaml", "MODEL.DEVICE", device)
    predictor.model.set_vocabulary([f"word {i}" for i in range(64)])
    inputs = {"image": torch.randint(0, 256, (3, 600, 600)), "labels_only": True}
    expected = predictor.model([inputs])[0]["sem_seg_labels"].cpu()

    torch.cuda.empty_cache()
    room = torch.cuda.memory_allocated() + 48 * 2**20  # the sum of the windows' scores alone takes 63 MB
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        labels = predictor.model([inputs])[0]["sem_seg_labels"].cpu()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "averages on the CPU" in caplog.text
    assert (labels == expected).float().mean() > 0.9999
