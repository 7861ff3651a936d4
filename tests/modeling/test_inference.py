"""Inference: PAMR against a plain loop, windows, padding, vocabularies, and the errors of bad input."""

import copy
import gc
import json
import pickle
import weakref

import open_clip
import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch.nn import functional as F

from tcl_d2 import load_config
from tcl_d2.modeling import PAMR, FrozenCLIP, MaskCLIP, build_clip, build_tokenizer, inference, segmentor
from tcl_d2.modeling.clip import run_block
from tcl_d2.modeling.grounder import conv_of_doubled, enlarge
from tcl_d2.modeling.inference import Windows, pad_to_multiple, window_starts
from tcl_d2.modeling.text import TextEmbedder
from tests import golden


def plain_pamr(image, masks, iterations, dilations):
    """PAMR as the paper's formula, one pixel and one neighbour at a time."""
    _, height, width = image.shape
    clamp = lambda value, top: min(max(value, 0), top - 1)  # noqa: E731
    offsets = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    weights = {}
    for y in range(height):
        for x in range(width):
            window = [
                (clamp(y + d * dy, height), clamp(x + d * dx, width), dy or dx) for d in dilations for dy, dx in offsets
            ]
            values = torch.stack([image[:, v, u] for v, u, _ in window])
            spread = values.std(0)
            around = [(v, u) for v, u, is_neighbour in window if is_neighbour]
            logits = [(-(image[:, y, x] - image[:, v, u]).abs() / (1e-8 + 0.1 * spread)).mean() for v, u in around]
            weights[y, x] = around, torch.stack(logits).softmax(0)
    for _ in range(iterations):
        new = torch.zeros_like(masks)
        for (y, x), (around, weight) in weights.items():
            new[:, y, x] = sum(w * masks[:, v, u] for w, (v, u) in zip(weight, around))
        masks = new
    return masks


def test_pamr_equals_a_plain_loop():
    torch.manual_seed(0)
    image, masks = torch.randn(2, 3, 7, 9), torch.rand(2, 4, 7, 9)
    refined = PAMR(iterations=3, dilations=(1, 2, 5))(image, masks)
    for one, mask, result in zip(image, masks, refined):
        torch.testing.assert_close(result, plain_pamr(one, mask, 3, (1, 2, 5)), rtol=0, atol=1e-5)


def test_pamr_refuses_no_dilations():
    with pytest.raises(ValueError, match="at least 1"):
        PAMR(dilations=())


@pytest.mark.parametrize(
    "length, expected", [(10, [0]), (48, [0]), (49, [0, 1]), (96, [0, 24, 48]), (100, [0, 24, 48, 52])]
)
def test_windows_cover_a_side(length, expected):
    assert window_starts(length, crop_size=48, stride=24) == expected


@pytest.mark.parametrize("batch", [1, 3])
def test_overlapping_windows_are_averaged(batch):
    """Each window scores its own mean: a pixel's score is the mean over the windows that hold it."""
    image = torch.arange(3 * 5 * 7.0).view(3, 5, 7)
    total, count = torch.zeros(5, 7), torch.zeros(5, 7)
    for y in (0, 1):
        for x in (0, 2, 3):
            total[y : y + 4, x : x + 4] += image[:, y : y + 4, x : x + 4].mean()
            count[y : y + 4, x : x + 4] += 1
    windows = Windows(image, 4, 2)
    scores = windows.average(
        crops.mean((1, 2, 3))[:, None, None, None].expand(-1, 2, 4, 4) for crops in windows.batches(batch)
    )
    torch.testing.assert_close(scores, (total / count).expand(2, -1, -1))


@pytest.mark.parametrize("background", [False, True])
def test_labels_alone_are_the_argmax_of_the_scores(background, monkeypatch):
    """Class by class in small groups, as for vocabularies of thousands of words."""
    figures = golden.load()["inference"]
    model = golden.build_model(pamr=True, kp_weight=0.3)
    model.set_text_embeddings(figures["text_embedding"], background)
    one = {"image": figures["slide_image"][0].float(), "height": 91, "width": 57}
    scores = model([one])[0]["sem_seg"]
    monkeypatch.setattr(inference, "CLASSES_AT_ONCE", 3)
    (output,) = model([{**one, "labels_only": True}])
    assert set(output) == {"sem_seg_labels"} and torch.equal(output["sem_seg_labels"], scores.argmax(0))
    torch.testing.assert_close(model([one])[0]["sem_seg"], scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (1, 1), (61, 78)])
def test_padding_is_undone(size):
    image = torch.randn(1, 3, *size)
    padded, (rows, columns) = pad_to_multiple(image, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert rows.start == (-size[0] % 8) // 2 and columns.start == (-size[1] % 8) // 2
    assert torch.equal(padded[..., rows, columns], image)
    assert padded.count_nonzero() == image.count_nonzero()  # zeros around


# ------------------------------------------------------------------------------------------------- vocabularies


@pytest.fixture(scope="module")
def model():
    clip = FrozenCLIP(build_clip("tcl_d2://shapes_clip/model.json", "tcl_d2://shapes_clip/weights.safetensors"))
    return MaskCLIP(
        clip=clip,
        tokenizer=build_tokenizer("tcl_d2://shapes_clip/model.json"),
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        templates=("a {}", "the {}"),
        crop_size=48,
        stride=24,
        background_score=0.3,
    )


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "at least one class word"),
        ("cat", "at least one class word"),
        (["cat", " "], "not blank"),
        (["cat", "dog", "cat"], "stand twice: cat"),
    ],
)
def test_unfit_vocabulary_is_refused(model, names, message):
    with pytest.raises(ValueError, match=message):
        model.set_vocabulary(names)


@pytest.mark.parametrize("templates", [("a photo",), ("{} and {}",), "a {}"])
def test_unfit_templates_are_refused(model, templates):
    with pytest.raises(ValueError, match="[Tt]emplate"):
        model.set_vocabulary(["cat"], templates=templates)


def test_vocabulary_travels_with_the_input(model):
    image = torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8)
    out = model([{"image": image, "height": 30, "width": 40, "vocabulary": ["brick", "wood"], "background": True}])
    scores = out[0]["sem_seg"]
    assert scores.shape == (3, 30, 40)
    assert (scores[0] == 0.3).all()
    model.set_vocabulary(["brick", "wood"])
    other = model([{"image": image, "height": 30, "width": 40}])[0]["sem_seg"]
    torch.testing.assert_close(other, scores[1:])


def test_large_vocabulary_of_any_unicode(model):
    """5,000 words, embedded in parts; braces, emoji and other scripts are words too."""
    names = ["{x}", "🦓 斑馬", "größer"] + [f"thing {i}" for i in range(4997)]
    model.set_vocabulary(names, templates=("{}",))
    single = model.embed_vocabulary(["🦓 斑馬"], ("{}",))
    torch.testing.assert_close(model._text[1:2], single, rtol=0, atol=1e-5)
    assert model([{"image": torch.zeros(3, 48, 48)}])[0]["sem_seg"].shape == (5000, 48, 48)


def test_text_embeddings_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match=r"\[K, 128\], not \[2, 5\]"):
        model.set_text_embeddings(torch.randn(2, 5))


def test_model_without_vocabulary_says_so():
    with pytest.raises(RuntimeError, match="set_vocabulary"):
        golden.build_model()([{"image": torch.zeros(3, 48, 48)}])


def test_training_input_errors():
    model = golden.build_model().train()
    with pytest.raises(ValueError, match="'caption'"):
        model([{"image": torch.zeros(3, 48, 48)}])
    with pytest.raises(ValueError, match=r"\[3, H, W\]"):
        model([{"image": torch.zeros(1, 48, 48), "tokens": torch.zeros(77)}])


def test_frozen_clip_stays_in_eval_mode_and_gets_no_gradient():
    model = golden.build_model(train_last_blocks=True).train()
    assert not model.clip.model.training
    assert not any(p.requires_grad for p in model.clip.parameters())


def test_trained_part_starts_as_a_copy():
    """The gates are 0: the new grounder's embeddings are CLIP's dense features, enlarged by nearest."""
    clip = golden.build_clip()
    from tcl_d2.modeling import Grounder

    images = torch.randn(1, 3, 48, 48)
    tokens = clip.forward_blocks(images, 2)
    dense = F.interpolate(clip.dense_features(tokens, 2, (6, 6)), scale_factor=4.0, mode="nearest")
    torch.testing.assert_close(Grounder(clip, 2)(tokens, (6, 6)), dense, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------- CLIP


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


@pytest.mark.fault(
    "memory runs out on a large image",
    "fewer windows at once, at last averages on the CPU; same masks, one warning each",
)
@torch.no_grad()
def test_running_out_of_memory_falls_back_to_less_at_once(monkeypatch, caplog):
    """To fewer windows, at last to averages on the CPU: the same scores; then it is an error."""
    figures = golden.load()["inference"]
    model = golden.build_model()
    model.set_text_embeddings(figures["text_embedding"])
    one = {"image": figures["slide_image"][0].float()}
    expected, encode, room = model([one])[0]["sem_seg"], model.encode, 2

    def encode_in_little_memory(images: torch.Tensor):
        if len(images) > room:
            raise torch.OutOfMemoryError("out of memory")
        return encode(images)

    monkeypatch.setattr(model, "encode", encode_in_little_memory)
    torch.testing.assert_close(model([one])[0]["sem_seg"], expected, rtol=0, atol=1e-6)
    assert "from now on 2 windows at once" in caplog.text
    caplog.clear()
    assert model([one]) and not caplog.text
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        model([one])
    assert "averages on the CPU" in caplog.text


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


@pytest.mark.parametrize("shape", [(1, 6, 5, 7), (2, 6, 1, 1)])
def test_convolution_of_a_doubled_map(shape):
    """By phases: the plain convolution of the enlarged map, values and gradients."""
    torch.manual_seed(0)
    conv, x = torch.nn.Conv2d(6, 4, 3, padding=1), torch.randn(shape, requires_grad=True)
    leaves = x, conv.weight, conv.bias
    ours, plain = conv_of_doubled(x, conv), conv(enlarge(x))
    torch.testing.assert_close(ours, plain)
    for found in zip(*(torch.autograd.grad(value.sin().sum(), leaves) for value in (ours, plain)), strict=True):
        torch.testing.assert_close(*found)


def test_text_embeddings_are_kept_in_files(tmp_path, monkeypatch):
    """By CLIP's weights and the prompts; a broken file is made again."""
    clip = golden.build_clip()

    def tokenizer(prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(prompt) % 200] * 77 for prompt in prompts])

    first = TextEmbedder(clip, tokenizer, tmp_path)(["cat", "a dog"], ["a {}", "{}"])
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(clip, "encode_text", None)
        assert torch.equal(TextEmbedder(clip, tokenizer, tmp_path)(["cat", "a dog"], ["a {}", "{}"]), first)
    file.write_bytes(b"cut")
    assert torch.equal(TextEmbedder(clip, tokenizer, tmp_path)(["cat", "a dog"], ["a {}", "{}"]), first)
    with torch.no_grad():
        clip.model.text_projection[0, 0] += 1
    assert not torch.equal(TextEmbedder(clip, tokenizer, tmp_path)(["cat", "a dog"], ["a {}", "{}"]), first)
    assert len(list(tmp_path.iterdir())) == 2


def test_model_that_is_dropped_is_freed_at_once():
    """Nothing in it refers back to it: memory of a GPU would stay taken until Python happens to look for circles."""
    model = golden.build_model()
    model.set_text_embeddings(torch.randn(2, 32))
    whole = weakref.ref(model)
    gc.disable()
    try:
        model([{"image": torch.zeros(3, 48, 48)}])
        del model
        assert whole() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("copied", [False, True])
def test_loading_weights_forgets_the_embeddings_of_the_old_ones(copied):
    model = golden.build_model()
    model = copy.deepcopy(model) if copied else model
    model.tokenizer = model.embed_vocabulary.tokenizer = lambda prompts: torch.ones(len(prompts), 77, dtype=torch.long)
    before = model.embed_vocabulary(["cat"], ["{}"])
    state = model.state_dict()
    model.load_state_dict({**state, "clip.model.text_projection": state["clip.model.text_projection"].flip(1)})
    assert not torch.equal(model.embed_vocabulary(["cat"], ["{}"]), before)


@torch.no_grad()
def test_bfloat16_agrees_on_the_labels():
    figures = golden.load()["inference"]
    model = golden.build_model(pamr=True, kp_weight=0.3)
    model.set_text_embeddings(figures["text_embedding"])
    one = {"image": figures["slide_image"][0].float(), "labels_only": True}
    labels = model([one])[0]["sem_seg_labels"]
    model.precision = torch.bfloat16
    assert (model([one])[0]["sem_seg_labels"] == labels).float().mean() > 0.9  # random weights: scores lie close


@pytest.mark.parametrize("precision, device", [("float16", "cpu"), ("half", "cuda")])
def test_precision_that_does_not_work_is_refused(precision, device):
    with pytest.raises(ValueError, match="TEST.ZERO_SHOT.PRECISION must be"):
        segmentor._autocast_dtype(precision, device)


# ------------------------------------------------------------------------------------------------- model configs


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


# ------------------------------------------------------------------------------------------------- the module itself


def segment_in_a_spawned_process(model, image, queue) -> None:
    torch.set_num_threads(1)
    queue.put(model([{"image": image}])[0]["sem_seg"].detach().numpy())


@pytest.mark.fault(
    "a model that is pickled, saved whole, or sent to a spawned process", "it gives the same scores there"
)
def test_model_can_be_pickled_saved_and_spawned(model, tmp_path):
    model.set_vocabulary(["brick", "wood"])
    image = torch.randint(0, 256, (3, 48, 48), generator=torch.Generator().manual_seed(0))
    expected = model([{"image": image}])[0]["sem_seg"]

    torch.save(model, tmp_path / "whole.pt")
    for copied in (pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "whole.pt", weights_only=False)):
        torch.testing.assert_close(copied([{"image": image}])[0]["sem_seg"], expected, rtol=0, atol=1e-6)

    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=segment_in_a_spawned_process, args=(model, image, queue))
    process.start()
    torch.testing.assert_close(torch.from_numpy(queue.get(timeout=120)), expected, rtol=0, atol=1e-5)
    process.join()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.fault("tracing a whole model for export", "refused: its windows would be those of one image size")
def test_tracing_is_refused(model):
    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model([{"image": image}])[0]["sem_seg"]

    model.set_vocabulary(["brick"])
    with pytest.raises(RuntimeError, match="cannot be traced.*crop_masks"):
        torch.jit.trace(Traced(), torch.zeros(3, 60, 90))


@pytest.mark.fault("numbers of the model out of their range", "one error that names the key, when the model is built")
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("TEST.ZERO_SHOT.STRIDE", 0, r"STRIDE must be in 1\.\.448"),
        ("TEST.ZERO_SHOT.STRIDE", 449, r"STRIDE must be in 1\.\.448"),
        ("TEST.ZERO_SHOT.CROP_SIZE", 0, "CROP_SIZE must be at least 1"),
        ("TEST.ZERO_SHOT.BACKGROUND_SCORE", 1.5, "BACKGROUND_SCORE is a score in 0..1, not 1.5"),
        ("TEST.ZERO_SHOT.KP_WEIGHT", -0.1, "KP_WEIGHT is a share in 0..1"),
        ("SOLVER.IMS_PER_MICRO_BATCH", -1, "IMS_PER_MICRO_BATCH must be"),
        ("MODEL.TCL.GUMBEL_TAU", 0.0, "GUMBEL_TAU must be more than 0"),
        ("MODEL.TCL.LOSS_WEIGHT.AREA_POS", -1.0, "LOSS_WEIGHT.AREA_POS must be at least 0"),
        ("MODEL.TCL.LOSS_HEADS", [], "LOSS_HEADS is empty"),
        ("MODEL.TCL.LOSS_HEADS", ["ImageTCLLoss", "ImageTCLLoss"], "names ImageTCLLoss twice"),
        ("MODEL.TCL.LOSS_HEADS", ["TclLoss"], "no loss head 'TclLoss'. Known ones: ImageTCLLoss"),
    ],
)
def test_numbers_out_of_range_are_named_when_the_model_is_built(key, value, message):
    options = ["MODEL.CLIP.NAME", "tcl_d2://shapes_clip/model.json", "MODEL.CLIP.PRETRAINED", "", "MODEL.TCL.FREEZE", 5]
    cfg = load_config(None, [*options, "MODEL.META_ARCHITECTURE", "TCL", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_model(cfg)
