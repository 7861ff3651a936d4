"""GroupViT's training: losses and their formulas, noise, micro-batches, processes, and what its weights begin with."""

import math

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.engine.optimizer import parameter_groups, trained_parameters
from tcl_d2.modeling import GroupViT
from tcl_d2.modeling.functional import info_nce
from tcl_d2.modeling.groupvit import GroupViTEncoder, build_untrained_groupvit
from tcl_d2.modeling.groupvit import model as groupvit
from tcl_d2.modeling.groupvit.multi_label import multi_label_info_nce
from tcl_d2.runs.processes import wrap_ddp
from tests.running import start_processes

SIZES = {"image_size": 32, "patch_size": 8, "width": 32, "depths": (1, 1, 1), "groups": (6, 3), "num_heads": 2}
SIZES |= {"text_width": 64, "text_depth": 1, "projection_width": 24, "embed_dim": 16}
SIZES |= {"vocab_size": 50, "context_length": 8}
modeling_groupvit = pytest.importorskip("transformers.models.groupvit.modeling_groupvit")


def build(**options) -> GroupViT:
    """Build a small GroupViT, the same in each call, in training mode."""
    torch.manual_seed(1)
    protocol = {"templates": ("{}",), "crop_size": 32, "stride": 16, "background_score": 0.9}
    return GroupViT(
        clip=GroupViTEncoder(build_untrained_groupvit(**SIZES)),
        tokenizer=lambda prompts: draw_batch()[0]["tokens"].expand(len(prompts), -1),
        pixel_mean=(120.0, 120.0, 120.0),
        pixel_std=(60.0, 60.0, 60.0),
        **protocol,
        **options,
    ).train()


def draw_batch(num_nouns: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(2)

    def draw_tokens(*shape: int) -> torch.Tensor:
        tokens = torch.randint(1, 48, (*shape, 8), generator=generator)
        return tokens.index_fill_(-1, torch.tensor(5), 49)  # the largest number ends a text

    images = torch.rand(6, 3, 32, 32, generator=generator) * 255
    batch = [{"image": image, "tokens": draw_tokens()} for image in images]
    return [{**pair, "noun_tokens": draw_tokens(num_nouns)} for pair in batch] if num_nouns else batch


def gradients(model: GroupViT, batch: list[dict]) -> tuple[dict, dict]:
    """Return the losses of a batch and the gradients of their sum, by name."""
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    parameters = model.named_parameters()
    return {name: loss.detach() for name, loss in losses.items()}, {name: p.grad.clone() for name, p in parameters}


def without_noise(patch) -> None:
    """Give patches to groups in training as in inference."""
    patch.setattr(modeling_groupvit, "gumbel_softmax", lambda x, dim, hard: modeling_groupvit.hard_softmax(x, dim))


def check_equal(values: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    """Compare losses, and gradients relative to the largest of all."""
    scale = max(gradient.norm() for gradient in expected[1].values())
    for name, loss in expected[0].items():
        torch.testing.assert_close(values[0][name], loss, rtol=1e-5, atol=1e-6)
    assert values[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (values[1][name] - gradient).norm() <= 1e-5 * scale, name


# ------------------------------------------------------------------------------------ losses


def test_contrast_is_clips_over_projected_means(monkeypatch):
    without_noise(monkeypatch)
    model, batch = build(), draw_batch()
    images = model.normalize_images([pair["image"] for pair in batch])
    image = model.clip.model.visual_projection(model.clip.encode_groups(images)[0].mean(1))
    text = model.clip.encode_text(torch.stack([pair["tokens"] for pair in batch]))
    logits = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T * math.exp(2.6592)
    rows = sum(-logits[i].log_softmax(0)[i] for i in range(6))
    columns = sum(-logits[:, i].log_softmax(0)[i] for i in range(6))

    losses = model(batch)
    assert losses.keys() == {"loss_contrast"}
    torch.testing.assert_close(losses["loss_contrast"], (rows + columns) / 12, rtol=1e-5, atol=1e-6)


def test_multi_label_formula():
    """An image finds any of its texts among all; each text finds its image."""
    similarity, log_scale = torch.randn(4, 4, 3), torch.tensor(0.5)
    probability = torch.exp(similarity * math.exp(0.5))
    image_loss = sum(-torch.log(probability[i, i].sum() / probability[i].sum()) for i in range(4)) / 4
    text_losses = [-torch.log(probability[j, j, k] / probability[:, j, k].sum()) for j in range(4) for k in range(3)]
    expected = 0.5 * (image_loss + sum(text_losses) / 12)
    torch.testing.assert_close(multi_label_info_nce(similarity, log_scale), expected)
    single = similarity[..., 0]
    torch.testing.assert_close(multi_label_info_nce(single[..., None], log_scale), info_nce(single, log_scale))


def test_multi_label_loss_has_a_scale_of_its_own(monkeypatch):
    """Nouns do not change the contrast but by the batch norm, which is over captions and nouns."""
    model = build(multi_label=True)
    losses, gradient = gradients(model, draw_batch(num_nouns=3))
    assert losses.keys() == {"loss_contrast", "loss_multi_label"}
    assert gradient["losses.MultiLabelLoss.logit_scale"] != 0 and gradient["clip.model.logit_scale"] != 0


def test_gradient_reaches_every_weight():
    """Among them the group tokens of both stages, through the hard assignment."""
    _, gradient = gradients(build(multi_label=True), draw_batch(num_nouns=2))
    assert {name for name, value in gradient.items() if not value.isfinite().all()} == set()
    silent = {name for name, value in gradient.items() if not value.any()}
    # A shift of keys changes no softmax over them; a shift before a batch norm changes nothing
    assert all(name.endswith(("k_proj.bias", "projection.0.bias")) for name in silent), silent


def test_noise_is_drawn_in_training_alone():
    model = build()
    images = model.normalize_images([pair["image"] for pair in draw_batch()])
    tokens = [model.clip.encode_groups(images)[0] for _ in range(2)]
    assert not torch.equal(*tokens)
    model.eval()
    tokens = [model.clip.encode_groups(images)[0] for _ in range(2)]
    assert torch.equal(*tokens)


# ------------------------------------------------------------------------------------ micro-batches and processes


@pytest.mark.parametrize("num_nouns", [0, 2])
def test_micro_batches_equal_the_undivided_batch(monkeypatch, num_nouns):
    without_noise(monkeypatch)
    batch = draw_batch(num_nouns)
    expected = gradients(build(multi_label=num_nouns > 0), batch)
    check_equal(gradients(build(multi_label=num_nouns > 0, micro_batch_size=4), batch), expected)


def test_micro_batches_are_computed_again_with_the_same_noise(monkeypatch):
    model, batch = build(micro_batch_size=2), draw_batch()
    torch.manual_seed(3)
    values = gradients(model, batch)
    monkeypatch.setattr(groupvit, "checkpoint", lambda encode, part, use_reentrant: encode(part))
    torch.manual_seed(3)
    check_equal(values, gradients(model, batch))


def work(rank: int, size: int, folder: str) -> None:
    """Write the losses, gradients and running statistics of a part of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    comm.create_local_process_group(size)
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        model = build(multi_label=True, micro_batch_size=1 if rank else 0)  # must not matter
        parallel = wrap_ddp(model)
        losses = parallel(draw_batch(num_nouns=2)[rank * 3 : rank * 3 + 3])
        sum(losses.values()).backward()
    losses = {name: loss.detach() for name, loss in losses.items()}
    gradient = {name: p.grad for name, p in model.named_parameters()}
    torch.save((losses, gradient, model.clip.model.visual_projection[1].running_mean), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.fault("(none) GroupViT's training in 2 processes", "losses, gradients and statistics of one process")
def test_processes_equal_one(tmp_path, monkeypatch):
    without_noise(monkeypatch)
    model = build(multi_label=True)
    expected = gradients(model, draw_batch(num_nouns=2))
    start_processes(work, (2, str(tmp_path)), 2)
    for rank in range(2):
        *values, running_mean = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        check_equal(tuple(values), expected)
        torch.testing.assert_close(running_mean, model.clip.model.visual_projection[1].running_mean)


# ------------------------------------------------------------------------------------ weights and texts


def test_untrained_weights():
    """Tokens of the first stage differ from each other; those of the second begin at 0, as the release's."""
    stages = build().clip.model.vision_model.encoder.stages
    first, second = stages[0].group_token[0], stages[1].group_token[0]
    assert len(first.unique(dim=0)) == 6 and 0.01 < first.std() < 0.03 and first.abs().max() <= 0.04
    assert not second.any() and stages[2].group_token is None


def test_defaults_are_the_released_sizes():
    cfg = load_config(None, ["MODEL.GROUPVIT.WEIGHTS", "", "MODEL.CLIP.NAME", "ViT-B-16"])
    with torch.device("meta"):
        model = GroupViT.build_encoder(cfg).model
    image = sum(p.numel() for name, p in model.named_parameters() if name.startswith("vision_model"))
    assert image == pytest.approx(28.8e6, rel=0.02)
    assert model.config.text_config.vocab_size == 49408 and model.config.text_config.max_position_embeddings == 77


def test_all_of_it_trains_without_decay_of_norms_and_biases():
    model = build(multi_label=True)
    assert trained_parameters(model).keys() == dict(model.named_parameters()).keys()
    decay = {id(p): group["weight_decay"] for group in parameter_groups(model, 0.05) for p in group["params"]}
    named = dict(model.named_parameters())
    for name, value in {
        "clip.model.vision_model.encoder.stages.0.group_token": 0.05,
        "clip.model.vision_model.layernorm.weight": 0.0,
        "clip.model.text_projection.1.weight": 0.0,
        "clip.model.text_projection.0.bias": 0.0,
    }.items():
        assert decay[id(named[name])] == value, name


def test_texts_are_encoded_again_after_a_training():
    model = build().eval()
    model.set_vocabulary(["a"])
    before = model._classes({})[0].clone()
    model.train()
    with torch.no_grad():
        model.clip.model.text_projection[3].weight.normal_()
    assert not torch.allclose(model.eval()._classes({})[0], before)


def test_pictures_of_groups():
    """Every `vis_period` iterations: image, both stages, caption; the noise of the training is not in them."""
    model = build(vis_period=2)
    with EventStorage() as storage:
        for storage.iter in range(3):
            model(draw_batch())
        pictures = [(name, picture.shape, iteration) for name, picture, iteration in storage._vis_data]
    name, shape = "image, groups of each stage, caption", (3, 4 * 480, 3 * 480 + 260)
    assert pictures == [(name, shape, 0), (name, shape, 2)] and model.clip.training

    images = model.normalize_images([pair["image"] for pair in draw_batch()])
    segments, groups = model.eval().predict_groups(images)
    assert segments.shape == groups.shape == (6, 32, 32) and segments.max() < 6 and groups.max() < 3
    assert torch.equal(groups, model.encode(images).group_of_pixel.long())


# ------------------------------------------------------------------------------------ errors


@pytest.mark.fault("sizes that make no GroupViT", "the error names the config key and what was expected")
@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 30}, "IMAGE_SIZE is 30; expected a multiple of 8"),
        ({"num_heads": 5}, "WIDTH is 32; expected a multiple of 5"),
        ({"text_width": 70}, "TEXT_WIDTH is 70; expected a multiple of 64"),
        ({"groups": ()}, r"GROUPS is \[\]; expected at least 1"),
        ({"depths": (1, 1)}, r"DEPTHS is \[1, 1\]; expected the blocks of 3 stages"),
    ],
)
def test_unfit_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=f"MODEL.GROUPVIT.{message}"):
        build_untrained_groupvit(**{**SIZES, **options})


@pytest.mark.fault("a batch of one pair, or one without nouns for the multi-label loss", "the error names the key")
def test_unfit_batches_are_named():
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH is 1; expected at least 2 pairs"):
        build()(draw_batch()[:1])
    with pytest.raises(ValueError, match="MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS.* needs 'noun_tokens'"):
        build(multi_label=True)(draw_batch())


def test_one_stage_of_groups():
    model = GroupViTEncoder(build_untrained_groupvit(**{**SIZES, "depths": (1, 1), "groups": (4,)})).eval()
    with torch.no_grad():
        groups = model.encode_image(torch.randn(2, 3, 32, 40))
    assert groups.maps.shape == (2, 4, 4, 5) and groups.group_features.shape == (2, 4, 16)
    torch.testing.assert_close(groups.maps.sum(1), torch.ones(2, 4, 5))
