"""Vocabularies, templates and the cache of text features."""

import copy

import pytest
import torch

from tcl_d2.modeling.reco.reference_cache import ReferenceCache
from tcl_d2.modeling.text import TextEmbedder
from tests import golden


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
    torch.testing.assert_close(model._classes({})[0][1:2], single, rtol=0, atol=1e-5)
    assert model([{"image": torch.zeros(3, 48, 48)}])[0]["sem_seg"].shape == (5000, 48, 48)


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
    embedder = TextEmbedder(model.clip, model.tokenizer)
    whole = embedder(["brick", "wood", "lava"], ["a {}", "{}s"])
    num_texts, encode = [], model.clip.encode_text
    monkeypatch.setattr(model.clip, "encode_text", lambda tokens: num_texts.append(len(tokens)) or encode(tokens))

    embedder.forget()
    for names, count in (["wood", "brick"], 4), (["brick", "lava", "wood"], 2), (["lava"], 0):
        num_texts.clear()
        embedder.embed_new(names, ["a {}", "{}s"])
        assert sum(num_texts) == count
    features = embedder.embed_new(["brick", "wood", "lava"], ["a {}", "{}s"])
    torch.testing.assert_close(features, whole, rtol=0, atol=1e-6)
    assert not torch.allclose(embedder.embed_new(["lava"], ["{}"]), whole[2:])

    monkeypatch.setattr("tcl_d2.modeling.text._WORDS_REMEMBERED", 1)
    torch.testing.assert_close(embedder.embed_new(["sand", "lava"], ["a {}", "{}s"])[1], whole[2], rtol=0, atol=1e-6)
    assert len(embedder._words) == 2
