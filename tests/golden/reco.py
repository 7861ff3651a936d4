"""Figures of the official release of ReCo (5c5e1bc) on random features in place of networks, fp32.

Rule "paper": a patch agrees with an image as with that image's best patch. The release's own rule differs by a slip in
an index; it is "code".
"""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tcl_d2.modeling import ReCo
from tcl_d2.modeling.reco.model import ReCoFeatures
from tests.golden import dense_clip

PATH = Path(__file__).parent / "reco.pt"


@lru_cache(maxsize=1)
def load() -> dict:
    return torch.load(PATH, weights_only=True)


def expected(text_attention: bool, context_elimination: bool, rule: str = "paper") -> dict:
    return load()["found"][f"{rule}, text attention {text_attention}, context elimination {context_elimination}"]


def text(words: list[str]) -> Tensor:
    """Return text features [W, D]."""
    return torch.stack([load()["archive"][word]["text"] for word in words])


class WordsIndex:
    """In place of an index: the images of a word are the golden ones."""

    digest = "golden"

    def search(self, text: Tensor, count: int) -> list[str]:
        archive = load()["archive"]
        return [next(word for word in archive if archive[word]["text"] @ row > 0.999) for row in text.cpu()]


class GoldenReCo(ReCo):
    """ReCo on golden features: those of the archive's images, and the text features of the context."""

    index = WordsIndex()

    def encode_archive(self, records: str) -> ReCoFeatures:
        images = load()["archive"][records]
        maps = torch.nn.functional.normalize(images["dense_clip"], dim=1), images["encoder"]
        return ReCoFeatures(torch.empty(0), *(part.to(self.device) for part in maps))


def build_model(text_attention: bool = True, context_elimination: bool = True, **options) -> ReCo:
    model = GoldenReCo(
        index_folder=Path("golden"),
        encoder=1,
        num_images=5,
        image_size=48,
        text_attention=text_attention,
        context=load()["names"]["context"] if context_elimination else (),
        clip=dense_clip.build_clip(),
        tokenizer=None,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(1.0, 1.0, 1.0),
        mask_shift=0.0,
        mask_scale=10.0,
        **{"templates": ("{}",), "crop_size": 48, "stride": 24, "background_score": 0.0, **options},
    )
    model.embed_vocabulary = lambda words, templates: text(list(words)).to(model.device)
    return model.eval()
