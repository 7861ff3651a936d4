"""The frozen CLIP: towers, blocks, every layout of weights, model configs."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tcl_d2.modeling import FrozenCLIP, build_clip, build_tokenizer
from tcl_d2.modeling.clip import KeptPositions, PositionRule, run_block
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
    clip.load_state_dict(other.state_dict())
    torch.testing.assert_close(clip.encode_image(images), other.encode_image(images), rtol=0, atol=0)


def test_kept_positions_in_threads():
    """What a thread gets is for its own grid, also where another one replaces what is kept at once."""

    class ReplacedAtOnce(KeptPositions):
        _last = property(lambda self: (("of another thread",), torch.zeros(1)), lambda self, value: None)

    kept, rule, position = ReplacedAtOnce(), PositionRule(), torch.randn(10, 4)
    for grid in ((3, 4), (3, 4), (5, 2)):
        assert torch.equal(kept(rule, position, (3, 3), grid), rule.resize(position, (3, 3), grid))
