"""Vocabularies, templates and the cache of text features."""

import copy
import re
from functools import partial

import pytest
import torch

from tcl_d2.data.benchmarks import benchmark_names
from tcl_d2.data.shapes import GROUNDS, OBJECTS
from tcl_d2.export import embed_vocabulary
from tcl_d2.modeling import build_tokenizer
from tcl_d2.modeling.encoders.text import TextEmbedder, WordReader
from tcl_d2.modeling.reco.cache import ReferenceCache
from tcl_d2.words.files import RELEASES, released_words
from tcl_d2.words.templates import get_templates
from tcl_d2.words.vocabulary import dataset_vocabulary
from tests import golden
from tests.modeling.conftest import build_small


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "at least one class word"),
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
    """1,000 words, embedded in parts; braces, emoji and other scripts are words too."""
    names = ["{x}", "🦓 斑馬", "größer"] + [f"thing {i}" for i in range(997)]
    model.set_vocabulary(names, templates=("{}",))
    single = model.embed_vocabulary(["🦓 斑馬"], ("{}",))
    torch.testing.assert_close(model._classes({})[0][1:2], single, rtol=0, atol=1e-5)
    assert model([{"image": torch.zeros(3, 48, 48)}])[0]["sem_seg"].shape == (1000, 48, 48)


def test_text_embeddings_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match=r"\[K, 128\], not \[2, 5\]"):
        model.set_text_embeddings(torch.randn(2, 5))


def test_model_without_vocabulary_says_so():
    with pytest.raises(RuntimeError, match="set_vocabulary"):
        golden.build_model()([{"image": torch.zeros(3, 48, 48)}])


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


@pytest.mark.fault("a cache of text features, or of ReCo's references, that cannot be written", "a warning; goes on")
def test_a_cache_that_cannot_be_written_is_gone_without(tmp_path, caplog):
    (tmp_path / "file").touch()
    embedder = TextEmbedder(golden.build_clip(), lambda prompts: torch.ones(len(prompts), 77, dtype=torch.long))
    expected = embedder(["cat"], ["{}"])
    embedder.folder = tmp_path / "file"
    assert torch.equal(embedder(["cat"], ["a {}"]), expected)
    cache = ReferenceCache(tmp_path / "file")
    for key in ("a", "b"):
        assert cache.get_all([key], lambda numbers: [torch.ones(3)], "cpu").shape == (1, 3)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and all(
        f"cache {tmp_path / 'file'}, which cannot be written" in text for text in messages
    )


def test_words_follow_the_protocol():
    """In whatever order they were set: their features are those of the protocol's templates."""
    model = build_small()
    model.set_vocabulary(["brick", "lava"])
    first = model._classes({})[0]
    changed = {"templates": ("the {}",), "normalize_prompts": True}
    model.set_protocol(**{**model.protocol, **changed})
    text, (subset,) = model._classes({})
    expected = model.embed_vocabulary(["brick", "lava"], ("the {}",))
    assert torch.equal(text, expected) and subset.classes.tolist() == [0, 1] and not torch.allclose(text, first)

    model.set_vocabulary(["brick", "lava"], templates=["one {}"])
    assert torch.equal(model._classes({})[0], model.embed_vocabulary(["brick", "lava"], ["one {}"]))


def test_words_follow_the_weights():
    """Those that were loaded into the CLIP alone, or trained, after the words were set."""
    model = build_small()
    model.set_vocabulary(["brick", "lava"])
    before = model._classes({})[0]
    state = model.clip.state_dict()
    key = "model.text_projection"
    model.clip.load_state_dict({**state, key: state[key].flip(1)})
    loaded = model._classes({})[0]
    assert not torch.allclose(loaded, before)
    with torch.no_grad():
        model.clip.model.text_projection.mul_(torch.rand(128))
    assert not torch.allclose(model._classes({})[0], loaded)


def test_words_that_cannot_be_set_leave_those_before(model):
    model.set_vocabulary(["brick", "lava"])
    before = model._classes({})[0]
    for names, options in ((["cat", "cat"], {}), (["cat"], {"templates": ["no place"]})):
        with pytest.raises(ValueError):
            model.set_vocabulary(names, **options)
    assert torch.equal(model._classes({})[0], before)


LONG = "a thing that was made with much care by people who lived here long ago, and that stood in a garden " * 2


@pytest.mark.fault("two classes whose words are one text for the tokenizer", "an error that names both words")
@pytest.mark.parametrize(
    "first, second",
    [
        ("brick", "Brick"),
        ("brick", " brick"),
        ("red striped", "red  striped"),
        ("brick", "ｂｒｉｃｋ"),
        ("brick & lava", "brick &amp; lava"),
        (LONG + "brick", LONG + "lava"),
    ],
)
def test_classes_of_one_text_are_refused(model, in_world, first, second):
    """Wherever words come in; words of one class may be one text."""
    names = f"'{re.escape(first)}'.*'{re.escape(second)}'"
    image = {"image": torch.zeros(3, 48, 48)}
    with pytest.raises(ValueError, match=names):
        model.set_vocabulary(["grass", first, second])
    with pytest.raises(ValueError, match=names):
        model([{**image, "vocabulary": ["grass", ["sand", first], second]}])
    with pytest.raises(ValueError, match=f"{re.escape(second)}' is a negative word.*{re.escape(first)}"):
        model.set_vocabulary([first], negative=[second])
    with pytest.raises(ValueError, match=names):
        model.set_dataset("shapes_val", class_words={"shapes_val": [first, second, *"abcdefghijklmnopqrstu"]})
    with pytest.raises(ValueError, match=names):
        embed_vocabulary(model, [first, second])

    # Not refused: of one class, and what exact repetitions may be
    model.set_vocabulary([[first, second], "grass"], background=[first])
    assert model([image])[0]["sem_seg"].shape[0] == 3


def test_no_list_that_comes_with_the_project_has_classes_of_one_text(model):
    """The benchmarks' own words and those of each release, by CLIP's tokenizer; none is cut."""
    reader = WordReader(build_tokenizer("ViT-B-16"))
    identify = partial(reader.identify, templates=get_templates("maskclip"))
    lists = [(name, None) for name in benchmark_names() if name.startswith(("zeroshot_", "shapes_"))]
    lists += [item for method in RELEASES for item in released_words(method).items()]
    for name, words in lists:
        vocabulary = dataset_vocabulary(name, words, identify=identify)
        assert vocabulary == dataset_vocabulary(name, words)
        assert not reader.warnings(vocabulary.words, get_templates("maskclip"))


@pytest.mark.fault("a class word longer than the tokenizer's context", "a warning that names it")
def test_a_word_that_is_cut_is_named(caplog):
    model = build_small()
    model.set_vocabulary(["brick", LONG + "lava"])
    model.set_vocabulary(["brick", LONG + "lava"])
    (message,) = [text for text in caplog.messages if "context" in text]
    assert "32 tokens" in message and f"'{LONG}lava'" in message and "'brick'" not in message


@pytest.mark.fault("words that the small world's model does not know", "a warning that names them and other models")
def test_words_that_a_small_model_does_not_know_are_named(caplog):
    model = build_small()
    caplog.clear()
    model.set_vocabulary([*map(str.upper, OBJECTS), *GROUNDS], background=["striped", "star"])
    assert not caplog.messages
    model.set_vocabulary(["walrus", "red narwhal", "lava"])
    (message,) = caplog.messages
    assert "not trained on 'walrus', 'red narwhal'," in message and "official" in message


@pytest.mark.parametrize("copied", [False, True])
def test_loading_weights_forgets_the_embeddings_of_the_old_ones(copied):
    model = golden.build_model()
    model = copy.deepcopy(model) if copied else model
    model.tokenizer = model.embed_vocabulary.tokenizer = lambda prompts: torch.ones(len(prompts), 77, dtype=torch.long)
    before = model.embed_vocabulary(["cat"], ["{}"])
    state = model.state_dict()
    model.load_state_dict({**state, "clip.model.text_projection": state["clip.model.text_projection"].flip(1)})
    assert not torch.equal(model.embed_vocabulary(["cat"], ["{}"]), before)


def test_lists_that_differ_by_a_word_cost_that_word(model, monkeypatch):
    """Also after others were forgotten; with other templates all are new."""
    whole = TextEmbedder(model.clip, model.tokenizer)(["brick", "wood", "lava"], ["a {}", "{}s"])
    num_texts, encode = [], model.clip.encode_text
    monkeypatch.setattr(model.clip, "encode_text", lambda tokens: num_texts.append(len(tokens)) or encode(tokens))

    embedder = TextEmbedder(model.clip, model.tokenizer)
    for words, count in (["wood", "brick"], 4), (["brick", "lava", "wood"], 2), (["lava"], 0):
        num_texts.clear()
        embedder(words, ["a {}", "{}s"])
        assert sum(num_texts) == count
    features = embedder(["brick", "wood", "lava"], ["a {}", "{}s"])
    torch.testing.assert_close(features, whole, rtol=0, atol=1e-6)
    assert not torch.allclose(embedder(["lava"], ["{}"]), whole[2:])

    monkeypatch.setattr("tcl_d2.modeling.encoders.text._WORDS_REMEMBERED", 1)
    torch.testing.assert_close(embedder(["sand", "lava"], ["a {}", "{}s"])[1], whole[2], rtol=0, atol=1e-6)
    num_texts.clear()
    embedder(["sand", "lava"], ["a {}", "{}s"])
    assert not num_texts
