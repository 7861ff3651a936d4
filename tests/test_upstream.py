"""What this project takes for granted about other libraries. Each test says what breaks here where it fails."""

import copy
import inspect
import io
import logging
import types
import zipfile

import detectron2.evaluation
import numpy as np
import open_clip
import pytest
import timm
import timm.data
import torch
import torchvision
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.engine import AMPTrainer, DefaultTrainer, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, LVISEvaluator, SemSegEvaluator
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from tcl_d2.modeling import FrozenCLIP
from tcl_d2.modeling.encoders.clip import run_block
from tcl_d2.modeling.encoders.clip_loading import _quiet_open_clip
from tcl_d2.utils import upstream

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
}
SMALL["text_cfg"] = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture
def small_clip() -> nn.Module:
    return open_clip.CLIP(**SMALL)


# ------------------------------------------------------------------------------------------- open_clip


def test_every_open_clip_tag_is_on_the_hub_or_has_an_address():
    """Else MODEL.CLIP.PRETRAINED with that tag would end in KeyError."""
    for release in open_clip.list_pretrained():
        config = open_clip.get_pretrained_cfg(*release)
        assert "/" in config.get("hf_hub", "") or config["url"].startswith("https://")


def test_openais_tags_have_quick_gelu():
    """Else their weights would run with GELU, whose masks are other ones."""
    for name, tag in open_clip.list_pretrained():
        if tag == "openai" and name.startswith("ViT"):
            assert open_clip.get_pretrained_cfg(name, tag)["quick_gelu"] is True
    assert "ViT-B-16-quickgelu" in open_clip.list_models()


def test_a_plain_model_says_that_it_has_no_weights(caplog):
    """The log line is dropped by its words; with others every start would warn of random weights that are not used."""
    with caplog.at_level(logging.WARNING), _quiet_open_clip():
        open_clip.create_model("RN50", device="meta")
    assert "weights" not in caplog.text


def test_imagenets_templates():
    """Else text features of the methods with 80 templates would be other ones."""
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES
    assert len(templates) == 80 and templates[0]("cat") == "a bad photo of a cat."


def test_text_is_read_by_the_end_of_text():
    """Else the end of long prompts would not be cut as in CLIP, and features of all words would change."""
    tokens = open_clip.get_tokenizer("ViT-B-16")(["a cat", "a " * 100])
    assert tokens.shape == (2, 77) and tokens[0, :4].tolist() == [49406, 320, 2368, 49407]
    assert tokens[1, -1] == 49407 and tokens[0, 4:].sum() == 0


def test_the_frozen_clip_computes_what_open_clip_does(small_clip):
    """Else a tower was changed in a way that its weights' names do not show."""
    clip, images = FrozenCLIP(small_clip), torch.randn(2, 3, 32, 32)
    tokens = torch.randint(1, 49000, (2, 8))
    torch.testing.assert_close(clip.encode_image(images), small_clip.encode_image(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.encode_text(tokens), small_clip.encode_text(tokens), rtol=0, atol=0)


class OtherAttention(nn.Module):
    """Attention with the names of nn.MultiheadAttention's weights, but of another class, batch first."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.num_heads = attention.num_heads
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class OtherBlock(nn.Module):
    """A block as of a newer open_clip, whose attention is of another class."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.ln_1, self.ln_2, self.mlp, self.ls_1, self.ls_2 = block.ln_1, block.ln_2, block.mlp, block.ls_1, block.ls_2
        self.attn = OtherAttention(block.attn)

    def forward(self, x: Tensor, attn_mask: None = None) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def test_blocks_are_taken_by_their_weights(small_clip):
    """A newer open_clip has blocks and attention of other classes: features stay the same."""
    other = copy.deepcopy(small_clip)
    blocks = other.visual.transformer.resblocks
    for i, block in enumerate(blocks):
        blocks[i] = OtherBlock(block)
    assert other.state_dict().keys() == small_clip.state_dict().keys()

    images, tokens = torch.randn(2, 3, 48, 32), torch.randn(2, 5, 64)
    before, after = FrozenCLIP(small_clip), FrozenCLIP(other)
    assert torch.equal(after.encode_image(images), before.encode_image(images))
    assert torch.equal(run_block(after.blocks[0], tokens), run_block(before.blocks[0], tokens))
    torch.testing.assert_close(run_block(after.blocks[0], tokens), blocks[0](tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"scaled_cosine": True}, {"inner_norm": True}])
def test_blocks_that_compute_more_are_refused(small_clip, options):
    """Else what they compute beside attention would be left out in silence."""
    small_clip.visual.transformer.resblocks[0].attn = open_clip.transformer.Attention(64, 2, **options)
    with pytest.raises(ValueError, match="standard attention blocks"):
        FrozenCLIP(small_clip)


# ------------------------------------------------------------------------------------------- timm


def test_positions_of_timms_prefix_tokens():
    """Else VisionEncoder would add positions to the wrong tokens: it resizes those of patches alone."""
    with torch.device("meta"):
        dino, registers = map(timm.create_model, ("vit_base_patch16_224.dino", "vit_small_patch14_reg4_dinov2"))
    assert dino.pos_embed.shape[1] == 1 + 14**2 and not dino.no_embed_class and dino.num_prefix_tokens == 1
    assert registers.num_prefix_tokens == 5 and registers.pos_embed.shape[1] - 37**2 in (0, 1, 5)


def test_timms_patches_of_any_size():
    """Else windows of another size than the model's would be refused by timm."""
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert model.patch_embed.strict_img_size and not model.dynamic_img_size and model.patch_embed.flatten


@pytest.mark.parametrize(
    "name, mean", [("vit_base_patch16_224.dino", 0.485), ("vit_base_patch16_224.augreg_in21k", 0.5)]
)
def test_timms_normalization_by_weights(name, mean):
    """Else images would come to a model in another normalization than it was trained with."""
    with torch.device("meta"):
        assert timm.data.resolve_model_data_config(timm.create_model(name))["mean"][0] == mean


def test_timms_augmentation_of_pairs():
    """Else training would see other augmentations than the paper's."""
    policy = {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": None, "interpolation": "bilinear"}
    transform = timm.data.create_transform(224, is_training=True, scale=(0.5, 1.0), **policy)
    names = [type(step).__name__ for step in transform.transforms]
    assert names[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]


# ------------------------------------------------------------------------------------------- torch, torchvision


def test_versions_of_tensors():
    """Else remembered features of text would outlive the weights that they were made by."""
    weight = nn.Parameter(torch.zeros(2))
    before = upstream.changes_in_place(weight)
    with torch.no_grad():
        weight.add_(1)
    assert upstream.changes_in_place(weight) > before
    with torch.inference_mode():
        assert upstream.changes_in_place(torch.zeros(2)) == 0


def test_own_weights_are_those_of_a_state_dict():
    """Else a digest of weights, by which features and results are reused, would miss some."""
    module = nn.BatchNorm1d(2)
    module.register_buffer("scratch", torch.zeros(1), persistent=False)
    module.register_parameter("nothing", None)
    assert upstream.own_weights(module).keys() == module.state_dict().keys()


def test_a_parameter_is_removed_from_a_copy_alone():
    """Else building TCL would change the CLIP that the caller goes on with."""
    module = nn.Linear(2, 2)
    copied = copy.copy(module)
    upstream.without_parameter(copied, "bias")
    assert copied.bias is None and module.bias is not None and "bias" not in copied.state_dict()


def test_the_cpus_attention_is_an_operator_of_its_own():
    """Else analyze-model would leave out attention's part of the FLOPs."""
    aten = torch.ops.aten
    assert aten._scaled_dot_product_flash_attention in upstream.flop_registry

    query, seen = torch.randn(1, 2, 4, 8), []

    class Seen(upstream.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(operator.overloadpacket)
            return operator(*args, **(kwargs or {}))

    with Seen():
        F.scaled_dot_product_attention(query, query, query)
    assert seen == [aten._scaled_dot_product_flash_attention_for_cpu]


def test_the_layout_of_torchs_files():
    """Else files of weights would be refused as damaged, or read for another format."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(2)}, file)
    names = zipfile.ZipFile(file).namelist()
    assert names[0].endswith("/data.pkl") and any(name.endswith("/data/0") for name in names)
    pickled = zipfile.ZipFile(file).read(names[0])
    assert b"torch._utils" in pickled and b"_rebuild_tensor_v2" in pickled


def test_adamws_state():
    """Else training resumed from a checkpoint of another version would begin with moments of zero."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(1)
    optimizer.step()
    assert optimizer.state_dict()["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_resizing_is_antialiased_where_it_is_asked_for():
    """Else images of the benchmarks would come at other values: PIL's resizing is taken for the release's."""
    checkered = torch.zeros(1, 8, 8)
    checkered[:, ::2, ::2] = 1
    resize = torchvision.transforms.functional.resize
    plain, smooth = (resize(checkered, [4, 4], antialias=antialias) for antialias in (False, True))
    assert not torch.equal(plain, smooth)


# ------------------------------------------------------------------------------------------- Detectron2


def test_detectron2s_boundaries():
    """Else Boundary IoU would be of another rule than the one that Detectron2 prints."""
    mask = np.zeros((100, 100), np.uint8)
    mask[20:80, 20:80] = 1
    boundary = upstream.mask_to_boundary(mask)
    assert boundary.sum() == 60**2 - (60 - 2 * 3) ** 2  # 2 percent of the diagonal of 141 pixels


def test_detectron2s_joined_evaluators():
    """Else the model would not make the outputs that evaluators of one dataset need."""
    parts = [detectron2.evaluation.DatasetEvaluator() for _ in range(2)]
    assert upstream.joined_evaluators(DatasetEvaluators(parts)) == parts


def test_detectron2s_stored_pictures():
    """Else training with WANDB.PROJECT would send no masks."""
    storage = EventStorage(7)
    storage.put_image("masks", np.zeros((3, 2, 2), np.uint8))
    [(name, picture, iteration)] = upstream.stored_pictures(storage)
    assert (name, picture.shape, iteration) == ("masks", (3, 2, 2), 7)


@pytest.mark.parametrize(
    "base, names",
    [
        (AMPTrainer, "run_step _write_metrics after_backward"),
        (COCOEvaluator, "process evaluate _eval_predictions"),
        (LVISEvaluator, "process evaluate _eval_predictions"),
        (SemSegEvaluator, "reset process evaluate _mask_to_boundary"),
        (DefaultTrainer, "build_hooks build_model build_optimizer build_evaluator test resume_or_load"),
    ],
)
def test_what_is_overridden_or_called_in_detectron2s_classes(base, names):
    """Else an override would never be called, and the base's own behavior would come back in silence."""
    assert all(hasattr(base, name) for name in names.split())


def test_the_arguments_of_detectron2s_evaluations():
    """Else objects would be evaluated over all annotated images, not the evaluated ones."""
    assert list(inspect.signature(COCOEvaluator._eval_predictions).parameters) == ["self", "predictions", "img_ids"]
    assert list(inspect.signature(LVISEvaluator._eval_predictions).parameters) == ["self", "predictions"]
    assert "grad_scaler" in inspect.signature(AMPTrainer).parameters


def test_the_order_of_detectron2s_hooks():
    """Else pictures and scalars of an iteration would be written one period late."""
    made = inspect.getsource(DefaultTrainer.build_hooks)
    assert made.index("EvalHook") < made.index("PeriodicWriter") and issubclass(hooks.PeriodicWriter, hooks.HookBase)


def test_lvis_classes_are_ordered_by_their_ids():
    """Else label maps of LVIS would be of other classes than the annotations'."""
    assert sorted(category["id"] for category in LVIS_CATEGORIES) == list(range(1, 1204))


# ------------------------------------------------------------------------------------------- others


def test_gradios_events():
    """Else clicks on the page's pictures would do nothing."""
    gradio = pytest.importorskip("gradio")
    assert upstream.clicked(gradio.EventData(None, {"index": [1, 2]})) == {"index": [1, 2]}
    assert upstream.clicked(gradio.EventData(None, None)) == {}
    assert upstream.num_waiting(gradio.Blocks()) == 0  # else the page's health address would fail


def test_the_hubs_cache_is_asked_without_a_network(tmp_path):
    """Else a cached model could not be used offline."""
    from huggingface_hub import try_to_load_from_cache

    folder = tmp_path / "models--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "snapshots/abc/a.txt").write_text("")
    path = try_to_load_from_cache("owner/name", "a.txt", cache_dir=tmp_path)
    assert path == str(folder / "snapshots/abc/a.txt")
    assert not isinstance(try_to_load_from_cache("owner/name", "b.txt", cache_dir=tmp_path), str)


def test_transformers_groupvit():
    """Else GroupViT's weights from the hub would be loaded under other names."""
    transformers = pytest.importorskip("transformers")
    parameters = inspect.signature(transformers.GroupViTConfig).parameters
    with torch.device("meta"):
        model = transformers.GroupViTModel(transformers.GroupViTConfig())
    names = model.state_dict()
    assert {"text_config", "vision_config", "projection_dim"} <= parameters.keys()
    assert {"vision_model.encoder.stages.0.group_token", "visual_projection.0.weight", "logit_scale"} <= names.keys()


def test_cocos_masks_are_read_by_columns():
    """Else objects would be mirrored along the diagonal."""
    import pycocotools.mask

    mask = np.zeros((2, 3), np.uint8, order="F")
    mask[0, 2] = 1
    assert pycocotools.mask.frPyObjects({"size": [2, 3], "counts": [4, 1, 1]}, 2, 3) == pycocotools.mask.encode(mask)


def test_cityscapes_train_ids():
    """Else labels of Cityscapes would be of other classes."""
    from cityscapesscripts.helpers.labels import name2label

    assert [name2label[name].trainId for name in ("road", "bicycle", "license plate")] == [0, 18, -1]


def test_supervisions_detections():
    """Else to_detections would lose the words of objects."""
    supervision = pytest.importorskip("supervision")
    detections = supervision.Detections(np.zeros((1, 4)), data={"class_name": np.array(["cat"])})
    assert detections["class_name"].tolist() == ["cat"]


def test_onnx_runtimes_errors_and_providers():
    """Else a file that cannot be run would end in a trace of its internals."""
    onnxruntime = pytest.importorskip("onnxruntime")
    assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
    with pytest.raises(Exception, match="(?i)protobuf|invalid|model"):
        onnxruntime.InferenceSession(b"no model")


def test_webdatasets_streams():
    """Else shards that a command writes could not be read."""
    from webdataset.gopen import gopen

    with gopen("pipe:printf abc") as stream:
        assert stream.read() == b"abc"
    assert isinstance(gopen, types.FunctionType)
