"""tcl.yaml as a LazyConfig, for projects with Detectron2's tools/lazyconfig_train_net.py; without the second stage."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf

from tcl_d2.data import BenchmarkMapper, ImageTextDatasetMapper, build_image_text_train_loader
from tcl_d2.engine.optimizer import FullModelClippedAdamW, parameter_groups
from tcl_d2.evaluation import ZeroShotSemSegEvaluator
from tcl_d2.modeling import PAMR, TCL, FrozenCLIP, build_clip, build_tokenizer
from tcl_d2.modeling import losses as heads

model = L(TCL)(
    # The frozen CLIP and the grounder
    clip=L(FrozenCLIP)(
        model=L(build_clip)(
            name="tcl_d2://shapes_clip/model.json",
            pretrained="tcl_d2://shapes_clip/weights.safetensors",
        )
    ),
    tokenizer=L(build_tokenizer)(name="${..clip.model.name}"),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    freeze=5,
    losses=[
        L(heads.ImageTCLLoss)(weight=0.1),
        L(heads.FeatureTCLLoss)(weight=0.1),
        L(heads.PositiveAreaLoss)(weight=0.4, prior=0.2),  # objects cover a fifth of a scene
        L(heads.NegativeAreaLoss)(weight=0.4, prior=0.0),
        L(heads.ImageTVLoss)(weight=1.0),
        L(heads.MaskTVLoss)(weight=1.0),
    ],
    # Inference
    dataset_name="${dataloader.evaluator.dataset_name}",
    templates=["{}", "a {} thing", "a photo of a {} shape", "one {} piece", "there is the {} patch"],
    crop_size=48,
    stride=24,
    background_score=0.4,
    refiner=L(PAMR)(iterations=10, dilations=[1, 2, 4]),
    kp_weight=0.3,
)

dataloader = OmegaConf.create()
dataloader.train = L(build_image_text_train_loader)(
    names=["shapes_train"],
    mapper=L(ImageTextDatasetMapper)(
        tokenizer="${model.tokenizer}",
        size=48,
        crop_scale=[0.8, 1.0],
        rand_augment="",
        erasing_prob=0.0,
    ),
    total_batch_size=32,
    num_workers=1,
    seed=1,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="${dataloader.evaluator.dataset_name}", filter_empty=False),
    mapper=L(BenchmarkMapper)(short=96, long=96),
    num_workers=1,
)
dataloader.evaluator = L(ZeroShotSemSegEvaluator)(dataset_name="shapes_val")

optimizer = L(FullModelClippedAdamW)(
    params=L(parameter_groups)(weight_decay=0.05),  # the training script adds `model`
    max_norm=5.0,
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.15,
    warmup_factor=1e-4,
    rescale_interval=True,
)

# The keys of Detectron2's configs/common/train.py
train = {
    "output_dir": "./output/shapes/lazy_tcl",
    "init_checkpoint": "",
    "device": "cpu",
    "max_iter": 200,
    "eval_period": 200,
    "log_period": 20,
    "checkpointer": {"period": 100, "max_to_keep": 100},
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
    "seed": 1,
}
