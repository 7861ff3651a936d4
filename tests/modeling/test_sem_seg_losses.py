"""Losses of labels: formulas written out, ignored pixels, background, several words; the step beside captions."""

import pytest
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from tcl_d2.modeling import Sim2Mask
from tcl_d2.modeling.tcl.label_statistics import MaskTarget, make_mask_target, sem_seg_statistics
from tcl_d2.modeling.tcl.losses import FeatureTCLLoss, SemSegBCELoss, SemSegDiceLoss
from tcl_d2.runs.processes import wrap_ddp
from tests import golden
from tests.running import start_processes

IGNORED = 255


def tokenize(texts: list[str]) -> Tensor:
    """Tokens of the golden CLIP, which knows 256: the bytes of a text, and the end, which is the largest."""
    tokens = torch.zeros(len(texts), 77, dtype=torch.long)
    for row, text in zip(tokens, texts):
        values = [*text.encode(), 255]
        row[: len(values)] = torch.tensor(values)
    return tokens


def register_words(name: str) -> None:
    """Register a labeled dataset with a background, and a class of two words."""
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        stuff_classes=["background", "cat", "dog", "cow"],
        class_words=["cat", ["dog", "puppy"], "cow"],
        background=True,
        ignore_label=IGNORED,
    )


@pytest.fixture
def dataset():
    name = "t_words"
    register_words(name)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def build_model(*heads, **options):
    model = golden.build_model(heads=heads or (SemSegBCELoss(), SemSegDiceLoss()), train_last_blocks=True, **options)
    model.tokenizer = model.embed_vocabulary.tokenizer = tokenize
    return model.train()


def labeled_batch(dataset: str, size: int = 3) -> list[dict]:
    """Golden images with labels of blocks: background, two classes, ignored pixels; one absent class is asked for."""
    blocks = torch.randint(0, 4, (size, 6, 6))
    blocks[blocks == 3] = IGNORED
    sem_seg = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = golden.load()["image"].float()
    return [
        {"image": images[i], "sem_seg": sem_seg[i], "classes": torch.tensor([1, 2, 3]), "dataset_name": dataset}
        for i in range(size)
    ]


def captioned_batch(size: int = 4) -> list[dict]:
    images, tokens = golden.load()["image"].float(), golden.load()["tokens"]
    return [{"image": images[i], "tokens": tokens[i]} for i in range(size)]


# ---------------------------------------------------------------------------------------------- formulas


def test_losses_are_those_of_evaluations_masks_written_out(dataset):
    """The masks of each class's best word, pixel by pixel over what counts; pixels of the background count as none."""
    model, batch = build_model(), labeled_batch(dataset)
    losses = model(batch)
    text = model.embed_vocabulary(("cat", "dog", "puppy", "cow"), ("{}",))
    embedding = model.pixel_embedding(torch.stack([sample["image"] for sample in batch]))
    similarity = torch.einsum("bdhw,nd->bnhw", F.normalize(embedding, dim=1), F.normalize(text, dim=1))
    logits = model.sim2mask.w * similarity + model.sim2mask.b

    bce, dice = [], []
    for i, sample in enumerate(batch):
        label = sample["sem_seg"][::2, ::2]  # blocks of whole pixels of the masks
        counts = label != IGNORED
        values, overlaps = [], []
        for k, words in ((1, [0]), (2, [1, 2]), (3, [3])):
            mask = logits[i, words].max(0).values.sigmoid()[counts]
            truth = (label[counts] == k).float()
            values += (-truth * mask.log() - (1 - truth) * (1 - mask).log()).tolist()
            if k != 3:
                overlaps.append(1 - (2 * (mask * truth).sum() + 1) / (mask.sum() + truth.sum() + 1))
        bce.append(sum(values) / len(values))
        dice.append(sum(overlaps) / len(overlaps))
    assert losses.keys() == {"loss_sem_seg_bce", "loss_sem_seg_dice"}
    torch.testing.assert_close(losses["loss_sem_seg_bce"], torch.tensor(bce).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["loss_sem_seg_dice"], torch.stack(dice).mean(), rtol=1e-5, atol=1e-6)


def test_a_label_comes_to_the_masks_size_by_averages():
    """Of 2 x 2 pixels, one ignored: the others are three; a pixel that is ignored whole has no weight."""
    sem_seg = torch.tensor([[1, 1, IGNORED, IGNORED], [0, IGNORED, IGNORED, IGNORED]])
    target = make_mask_target(sem_seg, torch.tensor([1, 0]), IGNORED, torch.eye(2), torch.tensor([0, 1]), (1, 2))
    torch.testing.assert_close(target.weight, torch.tensor([[0.75, 0.0]]))
    torch.testing.assert_close(target.shares, torch.tensor([[[2 / 3, 0.0]], [[1 / 3, 0.0]]]))
    assert target.text.tolist() == [[0, 1], [1, 0]] and target.words_per_class == [1, 1]


def test_ignored_pixels_have_no_gradient():
    torch.manual_seed(0)
    embedding = torch.randn(1, 8, 4, 4, requires_grad=True)
    weight = torch.ones(4, 4)
    weight[:, 2:] = 0
    target = MaskTarget(torch.randn(2, 8), [1, 1], torch.rand(2, 4, 4), weight)
    sum(sem_seg_statistics(embedding, [target], Sim2Mask()).values()).sum().backward()
    assert (embedding.grad[..., 2:] == 0).all() and (embedding.grad[..., :2] != 0).all()


@pytest.mark.fault("a labeled image whose pixels are all ignored, or that has no class", "losses of zero, for it")
@pytest.mark.parametrize("fault", ["ignored", "no class"])
def test_images_with_nothing_to_compare(dataset, fault):
    model, batch = build_model(), labeled_batch(dataset)
    of_others = [2 / 3 * loss for loss in model(batch[:2]).values()]
    if fault == "ignored":
        batch[2]["sem_seg"] = torch.full_like(batch[2]["sem_seg"], IGNORED)
    else:
        batch[2]["classes"] = torch.tensor([]).long()
    losses = list(model(batch).values())
    torch.testing.assert_close(losses, of_others, rtol=1e-5, atol=1e-6)
    sum(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.grounder.parameters())


# ---------------------------------------------------------------------------------------------- the step


def work(rank: int, folder: str) -> None:
    """Compute the losses and gradients of a process's part of the batch: rank 0 has one labeled image, rank 1 two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    register_words("t_words")
    model = build_model(FeatureTCLLoss(), SemSegBCELoss(), SemSegDiceLoss(), micro_batch_size=rank)  # must not matter
    torch.manual_seed(0)
    captions, labels = captioned_batch(), labeled_batch("t_words")
    batch = [captions[:2] + labels[:1], captions[2:] + labels[1:]][rank]
    wrapped = wrap_ddp(model)
    losses = wrapped(batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.save(({name: loss.detach() for name, loss in losses.items()}, gradients), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.fault("(none) processes with different numbers of labeled images", "losses and gradients of one process")
def test_processes_equal_one(dataset, tmp_path):
    start_processes(work, (str(tmp_path),), 2)
    model = build_model(FeatureTCLLoss(), SemSegBCELoss(), SemSegDiceLoss())
    torch.manual_seed(0)
    losses = model(captioned_batch() + labeled_batch(dataset))
    sum(losses.values()).backward()

    parts = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    for name, loss in losses.items():
        mean = sum(losses_of_part[name] for losses_of_part, _ in parts) / 2
        torch.testing.assert_close(mean, loss.detach(), rtol=1e-5, atol=1e-6)
    for _, gradients in parts:
        for name, gradient in gradients.items():
            expected = model.get_parameter(name).grad
            assert (gradient - expected).norm() <= 1e-5 * expected.norm() + 1e-6, name


@pytest.mark.fault("a batch without a labeled image", "losses of zero, beside those of the captions")
def test_a_batch_without_labels(dataset):
    model = build_model(FeatureTCLLoss(), SemSegBCELoss(), SemSegDiceLoss())
    losses = model(captioned_batch())
    assert losses["loss_sem_seg_bce"] == losses["loss_sem_seg_dice"] == 0 < losses["loss_tcl_feature"]
    alone = build_model()
    sum(alone(captioned_batch()).values()).backward()
    assert all((p.grad == 0).all() for p in alone.grounder.parameters())


def test_losses_of_captions_are_the_same_beside_labels(dataset):
    """To the bit, in whatever order the images come."""
    captions, labels = captioned_batch(), labeled_batch(dataset)
    together = build_model(FeatureTCLLoss(), SemSegBCELoss())(captions[:2] + labels + captions[2:])
    assert together["loss_tcl_feature"] == build_model(FeatureTCLLoss())(captions)["loss_tcl_feature"]
    assert together["loss_sem_seg_bce"] == build_model(SemSegBCELoss())(labels)["loss_sem_seg_bce"]


def test_an_image_may_have_both(dataset):
    both = [{**label, **pair} for label, pair in zip(labeled_batch(dataset), captioned_batch())]
    losses = build_model(FeatureTCLLoss(), SemSegBCELoss())(both)
    assert losses["loss_tcl_feature"] > 0 and losses["loss_sem_seg_bce"] > 0


def test_micro_batches_give_the_undivided_batchs_losses_and_gradients(dataset):
    batch, results = labeled_batch(dataset), []
    for size in (0, 2):
        model = build_model(micro_batch_size=size)
        losses = model(batch)
        sum(losses.values()).backward()
        results.append([*losses.values(), *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


def test_words_are_embedded_in_full_precision_and_once(dataset, monkeypatch):
    """An evaluation takes the same from the cache."""
    model = build_model()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(labeled_batch(dataset))
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    in_cache = model.embed_vocabulary(("cat", "dog", "puppy", "cow"), ("{}",))
    monkeypatch.setattr(model.clip, "encode_text", None)
    model(labeled_batch(dataset))
    fresh = build_model()
    assert torch.equal(fresh.embed_vocabulary(("cat", "dog", "puppy", "cow"), ("{}",)), in_cache)


@pytest.mark.fault("labels without classes or of another size, captions that are missing", "refused by the model")
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda sample: sample.pop("classes"), "a 'sem_seg' but no 'classes': see SemSegDatasetMapper"),
        (lambda sample: sample.pop("dataset_name"), "no 'dataset_name'"),
        (lambda sample: sample.update(sem_seg=torch.zeros(4, 4)), r"'sem_seg' is \[4, 4\], but its 'image' \[48, 48\]"),
        (lambda _: None, "Training needs images with captions, for its loss heads; the batch has none"),
    ],
)
def test_batches_that_do_not_fit(dataset, change, message):
    batch = labeled_batch(dataset)
    change(batch[1])
    with pytest.raises(ValueError, match=message):
        build_model(FeatureTCLLoss(), SemSegBCELoss())(batch)
