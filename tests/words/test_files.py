"""Words of classes: texts, files as editors and releases write them, lists of datasets, and the releases' own."""

import pytest
from detectron2.data import MetadataCatalog

from tcl_d2.assets import FOLDER as ASSETS
from tcl_d2.words.files import read_class_words, read_dataset_words, released_words
from tcl_d2.words.parsing import as_vocabulary, class_names, split_words, unique_names
from tests.data.test_benchmarks import EIGHT

VOC, VOC20, OBJECT = "zeroshot_voc_val", "zeroshot_voc20_val", "zeroshot_coco_object_val"


def write(tmp_path, content: str | bytes):
    path = tmp_path / "words.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "text, classes",
    [
        ("red apple, wooden table", ["red apple", "wooden table"]),
        ("person | man|woman , grass", [["person", "man", "woman"], "grass"]),
        ("a,, | ,b|", ["a", "b"]),
        (" ", []),
    ],
)
def test_commas_separate_classes_and_bars_words(text, classes):
    assert split_words(text) == classes


def test_a_class_has_the_name_of_its_first_word():
    vocabulary = as_vocabulary([["person", "man"], ["grass"]])
    assert vocabulary == [["person", "man"], "grass"] and class_names(vocabulary) == ["person", "grass"]


# --------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("separator", [", ", ",", "; ", ";"])
def test_files_have_a_class_a_line(tmp_path, separator):
    """With the separators of all releases."""
    path = write(tmp_path, separator.join(("person", "person in shirt")) + "\ngrass\n")
    assert read_class_words(path) == [["person", "person in shirt"], ["grass"]]


@pytest.mark.fault("a byte-order mark, Windows line ends or blank last lines in a file of words", "no part of a word")
@pytest.mark.parametrize(
    "content", ["background\n straße \n\n \n", "\ufeffbackground\r\nstraße\r\n", "background\rstraße,\r"]
)
def test_words_are_read_as_any_editor_saves_them(tmp_path, content):
    assert read_class_words(write(tmp_path, content)) == [["background"], ["straße"]]


@pytest.mark.fault("a file of words that is Latin-1, UTF-16 or empty", "one error that names the file")
@pytest.mark.parametrize(
    "content, message",
    [
        ("straße\n".encode("latin-1"), "words.txt is not UTF-8"),
        ("cat\n".encode("utf-16"), "words.txt is not UTF-8"),
        (b"", "words.txt names no class"),
        (b"\xef\xbb\xbf \n\n", "words.txt names no class"),
    ],
)
def test_files_without_words_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_class_words(write(tmp_path, content))


@pytest.mark.fault("an empty line, a class without words or a word twice in a file", "an error names file and line")
@pytest.mark.parametrize(
    "content, message",
    [
        ("cat\n\ndog\n", "words.txt, line 2: a class without words"),
        ("cat\n; ,\n", "words.txt, line 2: a class without words"),
        ("cat, kitten\ndog\nlion, cat\n", "words.txt, line 3: the word 'cat' also stands for line 1"),
        ("cat\ndog, puppy, dog\n", "words.txt, line 2: the word 'dog' stands there twice"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_class_words(write(tmp_path, content))


def test_words_of_the_background_may_be_those_of_a_class(tmp_path):
    """As in published lists; but not those of two classes, nor twice in its own line."""
    path = write(tmp_path, "sky, bed\nbed, cot\n")
    assert read_class_words(path, background=True) == [["sky", "bed"], ["bed", "cot"]]
    with pytest.raises(ValueError, match="line 3: the word 'bed' also stands for line 2"):
        read_class_words(write(tmp_path, "sky, bed\nbed, cot\nbed\n"), background=True)
    with pytest.raises(ValueError, match="line 1: the word 'bed' stands there twice"):
        read_class_words(write(tmp_path, "bed, bed\ncot\n"), background=True)


# ------------------------------------------------------------------------------------------------- datasets


def test_words_of_a_dataset_are_in_the_order_of_its_classes(tmp_path):
    classes = MetadataCatalog.get(VOC).stuff_classes
    lines = ["sky, boat", *classes[1:4], "ship, vessel", *classes[5:]]
    assert read_dataset_words(write(tmp_path, "\n".join(lines)), VOC)[4] == ["ship", "vessel"]


@pytest.mark.fault("a file of words with a class too few or too many, or out of order", "an error says what differs")
@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda names: names[:7] + names[8:],
            "words.txt: words for 19 classes, .* has 20.* Not among the words: boat, cat",
        ),
        (lambda names: [*names, "unicorn"], "words.txt: words for 21 classes, but the dataset has 20"),
        (lambda names: names[:7] + names[8:] + ["bear"], "line 8: 'chair' is the name of another class, .* line 9"),
    ],
)
def test_words_of_other_classes_are_refused(tmp_path, change, message):
    names = [name.replace("boat", "ship") for name in MetadataCatalog.get(VOC20).stuff_classes]
    with pytest.raises(ValueError, match=f"Words of '{VOC20}' in .*{message}"):
        read_dataset_words(write(tmp_path, "\n".join(change(names))), VOC20)


# ------------------------------------------------------------------------------------------------- releases


@pytest.mark.parametrize(
    "method, numbers",
    [("sclip", (56, 30, 113)), ("naclip", (56, 30, 113)), ("proxyclip", (46, 20, 97)), ("clearclip", (21, 20, 81))],
)
def test_releases_have_as_many_words(method, numbers):
    class_words = released_words(method)
    for name, number in zip((VOC, VOC20, OBJECT), numbers):
        assert sum(map(len, class_words[name])) == number


@pytest.mark.parametrize("method", ["sclip", "naclip", "clearclip", "proxyclip"])
def test_releases_have_words_for_every_class(method):
    """Elsewhere than in VOC and COCO-Object, one for each: the class's name without spaces."""
    class_words = released_words(method)
    assert class_words.keys() == EIGHT.keys()
    for name, words in class_words.items():
        names = MetadataCatalog.get(name).stuff_classes
        assert len(words) == len(names)
        if name not in (VOC, VOC20, OBJECT):
            assert words == [[word.replace(" ", "")] for word in names]


def test_releases_have_their_own_words():
    sclip, clearclip, proxyclip = (released_words(method) for method in ("sclip", "clearclip", "proxyclip"))
    assert sclip[VOC][0][0] == "sky" and sclip[VOC][0][-1] == "fence" and sclip[VOC][1:] == sclip[VOC20]
    assert sclip[VOC20][-1] == ["television monitor", "tv monitor", "monitor", "television", "screen"]
    assert (sclip[VOC20][0], sclip[VOC20][3], sclip[VOC20][10]) == (["aeroplane"], ["ship"], ["table"])
    assert sclip[OBJECT][1] == [*sclip[VOC][15], "body"] and sclip[OBJECT][-1] == ["toothbrush"]
    assert proxyclip[VOC] == [sclip[VOC][0], *clearclip[VOC][1:]] and proxyclip[OBJECT][0][-1] == "rail"
    assert clearclip[VOC][0] == clearclip[OBJECT][0] == sclip["zeroshot_context_val"][0] == ["background"]
    assert clearclip[OBJECT] == [[name] for name in MetadataCatalog.get(OBJECT).stuff_classes]
    assert ["bed"] in sclip[OBJECT] and "bed" in sclip[OBJECT][0]  # a class's word, and the background's


def test_clip_dinoiser_has_the_names_of_classes():
    """But for three words; the background is one, and spaces stay."""
    class_words = released_words("clip_dinoiser")
    assert class_words.keys() == EIGHT.keys()
    changed = {"diningtable": "dining table", "pottedplant": "potted plant"}
    for name, words in class_words.items():
        others = {"airplane": "aeroplane"} if name == OBJECT else changed
        assert words == [[others.get(word, word)] for word in MetadataCatalog.get(name).stuff_classes]


def test_groupvit_has_three_words_of_its_own():
    """On the three benchmarks of its release; the background has no words."""
    class_words = released_words("groupvit")
    assert class_words.keys() == {VOC, "zeroshot_context_val", OBJECT}
    changed = {
        VOC: {"diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor"},
        "zeroshot_context_val": {"aeroplane": "airplane", "pottedplant": "plant", "tvmonitor": "monitor"},
        OBJECT: {},
    }
    for name, words in class_words.items():
        names = MetadataCatalog.get(name).stuff_classes[1:]
        assert set(changed[name]) <= set(names)
        assert words == [[changed[name].get(word, word)] for word in names]


def test_methods_without_lists_are_named():
    with pytest.raises(ValueError, match="'TCL'; there are for sclip, naclip, clearclip, proxyclip, .*groupvit"):
        released_words("TCL")


# ------------------------------------------------------------------------------------------------- shared words


def test_classes_of_one_first_word_have_names_of_their_own():
    class_words = [["bag"], ["bag", "handbag"], ["toilet", "can"], ["can", "tin"], ["pot", "flowerpot"], ["pot"]]
    assert unique_names(class_words) == ["bag", "bag (handbag)", "toilet", "can", "pot (flowerpot)", "pot"]


def test_published_words_of_several_classes_can_be_edited(tmp_path):
    """Of a benchmark whose words are shared, and of no other."""
    lines = (ASSETS / "words/ade847.txt").read_text().splitlines()
    path = write(tmp_path, "\n".join(["wall, brick wall", *lines[1:]]))
    class_words = read_dataset_words(path, "zeroshot_ade847_val")
    assert class_words[0] == ["wall", "brick wall"]
    assert class_words[1:] == MetadataCatalog.get("zeroshot_ade847_val").class_words[1:]
    with pytest.raises(ValueError, match="the word 'screen' also stands for"):
        read_class_words(path)
    with pytest.raises(ValueError, match="words for 846 classes, but the dataset has 847"):
        read_dataset_words(write(tmp_path, "\n".join(lines[1:])), "zeroshot_ade847_val")
