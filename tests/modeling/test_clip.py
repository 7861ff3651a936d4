"""The frozen CLIP: towers, blocks, every layout of weights, model configs."""

import json
import logging

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from tcl_d2.modeling import FrozenCLIP, build_clip, build_tokenizer
from tcl_d2.modeling.encoders.clip import run_block
from tcl_d2.modeling.encoders.positions import KeptPositions, PositionRule
from tcl_d2.modeling.encoders.text import TextEmbedder
from tcl_d2.utils.tensors import LastValue, digest_weights
from tests import golden


def test_open_clip_agrees_on_whole_images():
    """Our pass through the tower is open_clip's own."""
    clip, images = golden.build_clip(), torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(clip.encode_image(images), clip.model.encode_image(images), rtol=0, atol=1e-5)


def test_unfit_tower_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match="no ResNet"):
        FrozenCLIP(open_clip.create_model("RN50", device="meta"))


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-16-quickgelu"])
def test_common_towers_are_accepted(name):
    with torch.device("meta"):
        clip = FrozenCLIP(open_clip.create_model(name, device="meta"))
    assert clip.embed_dim in (512, 768)


def test_weights_file_errors(tmp_path):
    config, weights = golden.write_clip(tmp_path)
    build_clip(str(config), str(weights))

    # Files
    html, empty = tmp_path / "page.pt", tmp_path / "empty.pt"
    html.write_text("<html>not found</html>")
    empty.write_bytes(b"")
    for file in (html, empty):
        with pytest.raises(ValueError, match=file.name):
            build_clip(str(config), str(file))
    with pytest.raises(FileNotFoundError, match="missing.pt"):
        build_clip(str(config), str(tmp_path / "missing.pt"))
    with pytest.raises(ValueError, match="does not fit MODEL.CLIP.NAME"):
        build_clip("tcl_d2://shapes_clip/model.json", str(weights))

    # Names and tags
    with pytest.raises(ValueError, match="knows no model 'ViT-B-17'"):
        build_clip("ViT-B-17", "")
    with pytest.raises(ValueError, match="neither a weights file nor a tag"):
        build_clip("ViT-B-32", "laion3b")


def test_weights_of_openai_layout_imply_quick_gelu(tmp_path):
    config, weights = tmp_path / "gelu_clip.json", tmp_path / "openai.pt"
    config.write_text(json.dumps({**golden.CLIP_CONFIG, "quick_gelu": False}))
    state = {**golden.load()["clip"], "input_resolution": torch.tensor(48), "context_length": torch.tensor(77)}
    torch.save({**state, "vocab_size": torch.tensor(256)}, weights)
    clip = FrozenCLIP(build_clip(str(config), str(weights)))
    expected = golden.load()["inference"]["caption_embedding"]
    torch.testing.assert_close(clip.encode_text(golden.load()["tokens"]), expected, rtol=0, atol=1e-5)


class Tree(torch.nn.Module):
    """Weights under their names, and nothing that computes: what a TorchScript archive of them is made from."""

    def __init__(self, state: dict):
        super().__init__()
        inner = {}
        for name, value in state.items():
            head, _, rest = name.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = value
            else:
                self.register_buffer(head, value)
        for name, part in inner.items():
            self.add_module(name, Tree(part))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_torchscript(state: dict, path) -> None:
    torch.jit.script(Tree(state)).save(path)


def openclip_training(state: dict, path) -> None:
    module = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": module, "optimizer": {"state": {}, "param_groups": []}}, path)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "file, write",
    [
        ("openai.pt", write_torchscript),
        ("openai_state.pt", torch.save),
        ("compiled.pt", lambda state, path: torch.save({f"_orig_mod.module.{key}": state[key] for key in state}, path)),
        ("ddp.pt", lambda state, path: torch.save({f"module._orig_mod.{key}": state[key] for key in state}, path)),
        ("open_clip_pytorch_model.bin", torch.save),
        ("open_clip_model.safetensors", save_file),
        ("epoch_3.pt", openclip_training),
    ],
)
def test_every_layout_of_clip_weights(tmp_path, file, write):
    """Each gives the golden text embeddings; fp16 as OpenAI's are."""
    config, _ = golden.write_clip(tmp_path)
    write({name: value.contiguous() for name, value in golden.load()["clip"].items()}, tmp_path / file)
    clip = FrozenCLIP(build_clip(str(config), str(tmp_path / file)))
    expected = golden.load()["inference"]["caption_embedding"]
    torch.testing.assert_close(clip.encode_text(golden.load()["tokens"]), expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------ the activation

SMALL = {key: value for key, value in golden.CLIP_CONFIG.items() if key != "quick_gelu"}
NUMBERS = {"input_resolution": torch.tensor(48), "context_length": torch.tensor(77), "vocab_size": torch.tensor(256)}
HUB = "hub/models--{}/snapshots/0/open_clip_model.safetensors"


@pytest.fixture
def activation_of(tmp_path, monkeypatch, caplog):
    """Builds a small CLIP under one of open_clip's names, or of a JSON config, from weights in a file.

    Gives its activation, and what the log says of it.
    """
    for name in ("ViT-B-16", "ViT-B-16-quickgelu"):
        config = {**SMALL, "quick_gelu": True} if name.endswith("quickgelu") else SMALL
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def build(name="ViT-B-16", file="weights.pt", write=torch.save, state=None, tag=None):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write({key: value.contiguous() for key, value in (state or golden.load()["clip"]).items()}, path)
        if isinstance(name, dict):
            (tmp_path / "model.json").write_text(json.dumps(name))
            name = str(tmp_path / "model.json")
        caplog.clear()
        with caplog.at_level(logging.INFO, "tcl_d2"):
            clip = FrozenCLIP(build_clip(name, tag or str(path)))
        said = [record for record in caplog.records if "GELU" in record.getMessage()]
        assert len(said) == 1 and f"has {clip.activation}" in said[0].getMessage()
        return clip.activation, said[0]

    return build


@pytest.mark.fault("CLIP weights do not say their activation", "it is that of where they come from, and logged")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "expected, options",
    [
        ("QuickGELU", {"state": {**golden.load()["clip"], **NUMBERS}}),
        ("QuickGELU", {"state": {**golden.load()["clip"], **NUMBERS}, "write": write_torchscript}),
        ("QuickGELU", {"name": "ViT-B-16-quickgelu"}),
        ("QuickGELU", {"name": {**SMALL, "quick_gelu": True}}),
        ("GELU", {"name": {**SMALL, "quick_gelu": False}}),
        ("QuickGELU", {"file": HUB.format("timm--vit_base_patch16_clip_224.openai"), "write": save_file}),
        ("QuickGELU", {"file": "metaclip/b16_400m.pt"}),
        ("GELU", {"file": HUB.format("laion--CLIP-ViT-B-16-laion2B-s34B-b88K"), "write": save_file}),
    ],
)
def test_activation_of_a_file(activation_of, expected, options):
    """By OpenAI's numbers, the model's name or config, or the file's place in the hub's cache."""
    activation, said = activation_of(**options)
    assert activation == expected and said.levelname == "INFO"


@pytest.mark.parametrize("tag, expected", [("openai", "QuickGELU"), ("laion2b_s34b_b88k", "GELU")])
def test_activation_of_a_tag(activation_of, tmp_path, tag, expected):
    """Its file in the hub's cache has the weights alone."""
    repository = open_clip.get_pretrained_cfg("ViT-B-16", tag)["hf_hub"].strip("/").replace("/", "--")
    (tmp_path / f"hub/models--{repository}/refs").mkdir(parents=True)
    (tmp_path / f"hub/models--{repository}/refs/main").write_text("0")
    activation, said = activation_of(file=HUB.format(repository), write=save_file, tag=tag)
    assert activation == expected and said.levelname == "INFO" and tag in said.getMessage()


@pytest.mark.parametrize("quick_gelu", [True, False, None])
def test_activation_of_a_folder(activation_of, tmp_path, quick_gelu):
    """As the open_clip_config.json beside the weights says; without the key it is GELU."""
    config = {**SMALL} if quick_gelu is None else {**SMALL, "quick_gelu": quick_gelu}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    activation, said = activation_of(file="folder/model.safetensors", write=save_file)
    assert activation == ("QuickGELU" if quick_gelu else "GELU") and said.levelname == "INFO"

    activation, said = activation_of("ViT-B-16-quickgelu", file="folder/model.safetensors", write=save_file)
    assert activation == "QuickGELU" and (said.levelname == "INFO") == bool(quick_gelu)
    assert quick_gelu or "give MODEL.CLIP.NAME ViT-B-16" in said.getMessage()


@pytest.mark.fault("CLIP weights of unknown activation", "one warning says which is used, and how to say the other")
@pytest.mark.parametrize("write", [torch.save, openclip_training, save_file])
@pytest.mark.parametrize("name, other", [("ViT-B-16", "ViT-B-16-quickgelu"), (SMALL, 'the other "quick_gelu"')])
def test_unknown_activation_is_warned_of(activation_of, write, name, other):
    """OpenAI's state dict without the numbers looks like OpenCLIP's."""
    activation, said = activation_of(name, file="weights.safetensors" if write is save_file else "w.pt", write=write)
    assert activation == "GELU" and said.levelname == "WARNING" and other in said.getMessage()


def test_building_keeps_the_process_logging(tmp_path):
    """open_clip logs by the root logger, which logging's own functions would give a handler for good."""
    config, weights = golden.write_clip(tmp_path)
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        build_clip(str(config), str(weights))
        build_tokenizer(str(config))
        assert root.handlers == [] and root.filters == []
    finally:
        root.handlers = handlers


@pytest.mark.parametrize("logger", ["root", "open_clip", "open_clip.factory"])
def test_random_weights_are_warned_of_once(tmp_path, monkeypatch, caplog, logger):
    """By us: open_clip's own warning is left out, by whichever logger it comes; its others are not."""
    create = open_clip.create_model
    module_logger = logging.getLogger(logger)

    def create_model(*arguments, **options):
        module_logger.warning("No pretrained weights loaded for model 'x'. Model initialized randomly.")
        module_logger.warning("something else")
        return create(*arguments, **options)

    monkeypatch.setattr(open_clip, "create_model", create_model)
    build_clip(str(golden.write_clip(tmp_path)[0]), "")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2 and "MODEL.CLIP.PRETRAINED is empty" in warnings[0] and warnings[1] == "something else"
    assert not module_logger.filters


def test_the_callers_model_keeps_its_scale():
    """FrozenCLIP has none, but shares the weights."""
    model = open_clip.model.CLIP(**{**golden.CLIP_CONFIG})
    clip = FrozenCLIP(model)
    assert "model.logit_scale" not in clip.state_dict() and model.logit_scale is not None
    assert "logit_scale" in model.state_dict() and clip.visual is model.visual
    images, tokens = torch.randn(1, 3, 48, 48), torch.ones(1, 77, dtype=torch.int64)
    assert torch.equal(model(images, tokens)[1], torch.nn.functional.normalize(clip.encode_text(tokens), dim=-1))


# ------------------------------------------------------------------------------------ the tower


def test_blocks_equal_open_clips():
    """For all tokens, and for the class token alone: values and gradients."""
    torch.manual_seed(0)
    block = golden.build_clip().blocks[-1]
    x = torch.randn(3, 5, block.attn.embed_dim, requires_grad=True)
    for count in (None, 1):
        ours, theirs = run_block(block, x, count), block(x)[:, :count]
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(value.sin().sum(), x)[0] for value in (ours, theirs)]
        torch.testing.assert_close(*gradients)


@pytest.mark.fault(
    "a model config (JSON) with the name of an open_clip model", "open_clip's own model stays what it is"
)
def test_model_config_does_not_replace_a_model_of_open_clip(tmp_path):
    path = tmp_path / "ViT-B-32.json"
    path.write_text(json.dumps(golden.CLIP_CONFIG))
    known, layers = open_clip.list_models(), open_clip.get_model_config("ViT-B-32")["vision_cfg"]["layers"]
    model = build_clip(str(path), "")
    build_tokenizer(str(path))
    assert len(model.visual.transformer.resblocks) == golden.CLIP_CONFIG["vision_cfg"]["layers"] != layers
    assert open_clip.list_models() == known
    assert open_clip.get_model_config("ViT-B-32")["vision_cfg"]["layers"] == layers


@pytest.mark.fault("a broken model config (JSON)", "one error that names it; other models can be built afterwards")
@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "no JSON file"),
        ("[1]", "no open_clip model config"),
        ('{"embed_dim": 8}', "no open_clip model config"),
        ('{"embed_dim": 8, "vision_cfg": {"depth": 2}, "text_cfg": {}}', "cannot build the model .*depth"),
    ],
)
def test_broken_model_config_is_named_and_spoils_nothing(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"MODEL.CLIP.NAME: .*broken.json.*{message}|MODEL.CLIP.NAME: .*{message}"):
        build_clip(str(path), "")
    config, weights = golden.write_clip(tmp_path)
    build_clip(str(config), str(weights))


@pytest.mark.fault("CLIP weights with NaN or Inf", "an error at loading that names the file and a weight")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_clip_weights_that_are_not_finite_are_refused(tmp_path, value):
    config, _ = golden.write_clip(tmp_path)
    state = dict(golden.load()["clip"])
    state["visual.proj"] = state["visual.proj"].clone()
    state["visual.proj"][3, 2] = value
    torch.save(state, tmp_path / "spoiled.pt")
    with pytest.raises(ValueError, match="MODEL.CLIP.PRETRAINED: .*spoiled.pt.*visual.proj"):
        build_clip(str(config), str(tmp_path / "spoiled.pt"))


@pytest.mark.fault("a picture as narrow as one patch, in bfloat16 on a CPU", "the features are those of fp32")
def test_one_column_of_patches_in_bfloat16():
    """The convolution of oneDNN gives any numbers for it, other ones each time."""
    clip = golden.build_clip()
    for width in (1, 2):
        images = torch.randn(8, 3, 6 * clip.patch_size, width * clip.patch_size)
        expected = clip.forward_blocks(images, 1)
        for _ in range(5):
            with torch.autocast("cpu", torch.bfloat16):
                tokens = clip.forward_blocks(images, 1)
            torch.testing.assert_close(tokens.float(), expected, rtol=0, atol=0.2)


@torch.no_grad()
def test_kept_positions_follow_grid_and_weights():
    """Resized positions are kept for the next images, but not for those of another size, or under other weights."""
    clip, other = golden.build_clip(), golden.build_clip()
    for width in (64, 64, 80, 48, 64):
        images = torch.randn(1, 3, 48, width)
        expected = golden.build_clip().encode_image(images)
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=0)

    other.visual.positional_embedding.mul_(2)
    for assign in (False, True):
        clip.load_state_dict(other.state_dict(), assign=assign)
        torch.testing.assert_close(clip.encode_image(images), other.encode_image(images), rtol=0, atol=0)
        other.load_state_dict({name: 2 * weight for name, weight in other.state_dict().items()}, assign=True)


def test_digests_tell_activations_apart(tmp_path):
    """Weights do not show them: caches of text features, and the index of an archive, go by the digest."""
    config, weights = golden.write_clip(tmp_path)
    (tmp_path / "gelu.json").write_text(json.dumps({**golden.CLIP_CONFIG, "quick_gelu": False}))
    prompts = lambda texts: torch.ones(len(texts), 77, dtype=torch.long)  # noqa: E731
    features, digests = [], set()
    for name in (config, tmp_path / "gelu.json"):
        clip = FrozenCLIP(build_clip(str(name), str(weights)))
        features.append(TextEmbedder(clip, prompts, tmp_path / "cache")(["cat"], ["{}"]))
        digests.add(digest_weights(clip))
    assert len(digests) == 2 and not torch.allclose(*features)


def test_kept_positions_in_threads():
    """What a thread gets is for its own grid, also where another one replaces what is kept at once."""

    class ReplacedAtOnce(LastValue):
        _last = property(lambda self: (("of another thread",), torch.zeros(1)), lambda self, value: None)

    kept, rule, position = KeptPositions(), PositionRule(), torch.randn(10, 4)
    kept._last = ReplacedAtOnce()
    for grid in ((3, 4), (3, 4), (5, 2)):
        assert torch.equal(kept(rule, position, (3, 3), grid), rule.resize(position, (3, 3), grid))
