"""What every meta-architecture promises, tested for each: a new one gets these tests by a class of three lines."""

import pytest
import torch
from detectron2.modeling import build_model

from tcl_d2 import load_config
from tcl_d2.modeling import ReCo, ZeroShotSegmentor
from tcl_d2.modeling.reco.model import ReCoFeatures
from tests.golden import dinov3  # noqa: F401  (registers golden_dinov3 in timm)

OPTIONS = ["MODEL.DEVICE", "cpu", "TEST.ZERO_SHOT.TEXT_CACHE", ""]
WORDS = ["brick", ["wood", "sand"], "lava"]


def draw(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(height))


class SegmentorContract:
    """A small model of a meta-architecture, with any weights, and windows of 48 pixels.

    Attributes:
        config: its file in configs/.
        options: KEY, VALUE pairs over its values.
    """

    config: str
    options: tuple = ()

    @pytest.fixture(autouse=True)
    def _without_gradients(self):
        with torch.no_grad():
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> ZeroShotSegmentor:
        return cls.build()

    @classmethod
    def build(cls) -> ZeroShotSegmentor:
        torch.manual_seed(0)
        return build_model(load_config(cls.config, [*OPTIONS, *cls.options])).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def inputs(cls) -> list[dict]:
        """Images of several windows, of one, and of less, with results of other sizes."""
        sizes = {(61, 90): (50, 75), (48, 48): (48, 48), (20, 30): (80, 120)}
        return [
            {"image": draw(*size), "height": height, "width": width, "vocabulary": WORDS, "background": True}
            for size, (height, width) in sizes.items()
        ]

    def test_scores_have_the_size_that_is_asked_for(self, model, inputs):
        for output, input_per_image in zip(model(inputs), inputs, strict=True):
            scores = output["sem_seg"]
            assert scores.dtype == torch.float32 and scores.isfinite().all()
            assert scores.shape == (4, input_per_image["height"], input_per_image["width"])

    def test_a_batch_is_segmented_as_one_at_a_time(self, model, inputs):
        for output, input_per_image in zip(model(inputs), inputs, strict=True):
            (single,) = model([input_per_image])
            torch.testing.assert_close(output["sem_seg"], single["sem_seg"], rtol=0, atol=1e-5)

    def test_labels_are_those_of_the_best_scores(self, model, inputs):
        request = {"labels_only": True, "label_scores": True}
        for input_per_image in inputs:
            best, labels = model([input_per_image])[0]["sem_seg"].max(0)
            (output,) = model([input_per_image | request])
            is_object = labels > 0  # the background's score is not told
            assert torch.equal(output["sem_seg_labels"], labels) and "sem_seg" not in output
            torch.testing.assert_close(output["sem_seg_scores"][is_object], best[is_object], rtol=0, atol=1e-5)

    def test_datasets_share_an_image(self, model, inputs):
        names = ("shapes_val", "shapes_stuff_val")
        image = {"image": inputs[0]["image"], "labels_only": True}
        with model.keep_settings():
            model.set_dataset(*names)
            together = model([image])[0]["by_dataset"]
            for name, output in zip(names, together, strict=True):
                model.set_dataset(name)
                (alone,) = model([image])
                assert output["dataset_name"] == alone["dataset_name"] == name
                assert torch.equal(output["sem_seg_labels"], alone["sem_seg_labels"])

    def test_windows_at_once_are_bounded(self, model, inputs, monkeypatch):
        expected = [output["sem_seg"] for output in model(inputs)]
        counts, encode = [], model.encode
        monkeypatch.setattr(model, "encode", lambda crops: counts.append(len(crops)) or encode(crops))
        monkeypatch.setattr(model._batches, "pixels_at_once", 2 * 48 * 48)
        for output, scores in zip(model(inputs), expected, strict=True):
            torch.testing.assert_close(output["sem_seg"], scores, rtol=0, atol=1e-5)
        assert 0 < max(counts) <= 2

    def test_half_precision_gives_fp32_scores(self, model, inputs, monkeypatch):
        monkeypatch.setattr(model, "precision", torch.bfloat16)
        for output in model(inputs):
            assert output["sem_seg"].dtype == torch.float32 and output["sem_seg"].isfinite().all()

    @torch.enable_grad()
    def test_pixel_features_are_in_the_space_of_texts(self, model):
        """For images of any size, with gradients to them, whatever they are padded by."""
        images = torch.stack([draw(61, 90), draw(61, 90).flip(2)]).float().requires_grad_()
        features = model.pixel_features(images)
        assert features.values.dtype == torch.float32 and features.values.shape[:2] == (2, model.clip.embed_dim)
        torch.testing.assert_close(features.values.norm(dim=1), torch.ones_like(features.values[:, 0]))
        assert features.enlarge().shape[2:] == (61, 90) and min(features.stride) > 1
        assert model.text_features(["brick", "dark wood"]).shape == (2, model.clip.embed_dim)

        (gradient,) = torch.autograd.grad(
            features.values[0].square().sum(0).sub(1).sum() + features.values[0].sum(), images
        )
        assert gradient[0].any() and not gradient[1].any()

    def test_weights_carry_all_that_is_learned(self, model, inputs):
        other = self.build()
        for parameter in other.parameters():
            parameter.add_(1)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(inputs[:1])[0]["sem_seg"], model(inputs[:1])[0]["sem_seg"])


class TestTCL(SegmentorContract):
    config = "shapes/tcl.yaml"


class TestMaskCLIP(SegmentorContract):
    config = "shapes/maskclip.yaml"


class TestDenseCLIP(SegmentorContract):
    config = "shapes/dense_clip.yaml"


class TestProxyCLIP(SegmentorContract):
    config = "shapes/dense_clip.yaml"
    options = ("MODEL.DENSE_CLIP.HEAD", "proxyclip", "MODEL.DENSE_CLIP.PROXY.NAME", "test_vit")


class TestTalk2DINO(SegmentorContract):
    config = "shapes/talk2dino.yaml"


class TestTalk2DINOCleaned(SegmentorContract):
    """On a DINOv3, with refined masks."""

    config = "shapes/talk2dino.yaml"
    options = ("MODEL.TALK2DINO.NAME", "golden_dinov3", "MODEL.TALK2DINO.PRETRAINED", "")
    options += ("MODEL.TALK2DINO.CLEANING", 0.2, "TEST.ZERO_SHOT.REFINE", "pamr")


class TestReCo(SegmentorContract):
    """With reference images of random features, in place of an archive's."""

    config = "shapes/reco.yaml"
    options = ("MODEL.RECO.INDEX", "")

    @classmethod
    def build(cls) -> ReCo:
        def prepare(features: ReCoFeatures, text: torch.Tensor) -> ReCoFeatures:
            map_text = torch.randn(
                text.shape[1], features.embedding.shape[1], generator=torch.Generator().manual_seed(0)
            )
            return features._replace(references=(text @ map_text).float())

        model = super().build()
        model.prepare = prepare
        return model


class TestGroupViT(SegmentorContract):
    config = "shapes/groupvit.yaml"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _need_transformers(cls) -> None:
        pytest.importorskip("transformers")


class TestTIPSv2(SegmentorContract):
    """With random towers, and the tokenizer of the small CLIP."""

    config = "tips/tipsv2.yaml"
    options = (
        *(
            "MODEL.TIPS.NAME",
            "test_vit",
            "MODEL.TIPS.PRETRAINED",
            "",
            "MODEL.TIPS.TEXT",
            "",
            "MODEL.TIPS.TOKENIZER",
            "",
        ),
        *("MODEL.CLIP.NAME", "tcl_d2://shapes_clip/model.json", "MODEL.TIPS.TEXT_DEPTH", 2),
        *("TEST.ZERO_SHOT.CROP_SIZE", 48, "TEST.ZERO_SHOT.STRIDE", 24),
    )

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _need_transformers(cls) -> None:
        pytest.importorskip("transformers")


class TestTIPSv2WithCosines(TestTIPSv2):
    options = (*TestTIPSv2.options, "MODEL.TIPS.SCORES", "cosine")


class TestDinoTxt(SegmentorContract):
    config = "tips/dino_txt.yaml"
    options = (
        *("MODEL.DINO_TXT.NAME", "test_vit", "MODEL.DINO_TXT.PRETRAINED", ""),
        *("MODEL.CLIP.NAME", "tcl_d2://shapes_clip/model.json", "MODEL.DINO_TXT.TEXT_DEPTH", 2),
        *("MODEL.DINO_TXT.TEXT_WIDTH", 64, "MODEL.DINO_TXT.TEXT_HEADS", 2),
        *("TEST.ZERO_SHOT.CROP_SIZE", 48, "TEST.ZERO_SHOT.STRIDE", 24),
    )
