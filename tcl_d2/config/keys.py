"""Every key that the plugin adds to Detectron2's, with its default (the paper's recipe) and its source.

A comment stands just above each key, and can be read alone: docs/config.md is made from these comments.
"""

from collections.abc import Mapping

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .ranges import RANGES, Range

ADDED: dict[str, str] = {}  # the meanings of keys that were added by add_key

_C = CN({name: CN() for name in ("MODEL", "DATASETS", "INPUT", "DATALOADER", "SOLVER", "TEST")})
_C.SOLVER.AMP = CN()

# Modules or .py files to import first, in each process: code of yours that registers datasets, models or losses.
_C.IMPORTS = []

_C.WANDB = CN()
# Project of Weights & Biases that gets metrics and pictures of a training, besides TensorBoard; "" for none.
_C.WANDB.PROJECT = ""

_C.MODEL.CLIP = CN()
# The frozen CLIP: a name that open_clip knows, or the path of an open_clip model config (JSON).
_C.MODEL.CLIP.NAME = "ViT-B-16"
# Weights of the frozen CLIP: an open_clip tag ("openai"), a file in OpenAI's or OpenCLIP's layout, or "" for random
# ones.
_C.MODEL.CLIP.PRETRAINED = "openai"

# CLIP's own masks (knowledge preservation, MaskCLIP) are sigmoid((similarity - shift) * scale): the shift.
_C.MODEL.CLIP.MASK_SHIFT = 0.25
# CLIP's own masks (knowledge preservation, MaskCLIP) are sigmoid((similarity - shift) * scale): the scale.
_C.MODEL.CLIP.MASK_SCALE = 10.0

_C.MODEL.DENSE_CLIP = CN()
# What CLIP's last block does: clip, maskclip, sclip, clearclip, naclip, proxyclip or clip_dinoiser, or a name of your
# own in DENSE_HEAD_REGISTRY.
_C.MODEL.DENSE_CLIP.HEAD = "maskclip"
# Scores of words: "mask" for sigmoid((similarity - shift) * scale), see MODEL.CLIP, "cosine" for similarities, or
# "probability" for a softmax over all words in each patch, before windows are averaged (CLIP-DINOiser).
_C.MODEL.DENSE_CLIP.SCORES = "mask"
# Threshold of MaskCLIP's prompt denoising (its paper: 0.5); 0 for none.
_C.MODEL.DENSE_CLIP.PROMPT_DENOISING = 0.0
# Threshold of MaskCLIP's key smoothing (its paper: 1.0); 0 for none.
_C.MODEL.DENSE_CLIP.KEY_SMOOTHING = 0.0
# Size of NACLIP's neighborhood, a standard deviation in patches.
_C.MODEL.DENSE_CLIP.SIGMA = 5.0
_C.MODEL.DENSE_CLIP.PROXY = CN()
# The vision model whose attention ProxyCLIP uses: a VisionTransformer or a DINOv3 that timm names.
_C.MODEL.DENSE_CLIP.PROXY.NAME = "vit_base_patch8_224.dino"
# Weights of ProxyCLIP's vision model: "timm" for those that timm names, a file of them, or "" for random ones.
_C.MODEL.DENSE_CLIP.PROXY.PRETRAINED = "timm"
# ProxyCLIP leaves out pairs of patches that are less similar than this many times the mean similarity.
_C.MODEL.DENSE_CLIP.PROXY.BETA = 1.2
# Scale of the similarities in ProxyCLIP's attention.
_C.MODEL.DENSE_CLIP.PROXY.GAMMA = 3.0
_C.MODEL.DENSE_CLIP.DINOISER = CN()
# Weights of CLIP-DINOiser's two convolutions: the release's file or a checkpoint of ours, or its address; "" to begin
# a training, or where MODEL.WEIGHTS has them.
_C.MODEL.DENSE_CLIP.DINOISER.WEIGHTS = "https://github.com/wysoczanska/clip_dinoiser/raw/main/checkpoints/last.pt"
# CLIP-DINOiser's patches are correlated from this cosine on; in training those of the teacher, too.
_C.MODEL.DENSE_CLIP.DINOISER.GAMMA = 0.2
# Whether CLIP-DINOiser's second convolution keeps objects out of the background; otherwise the background goes by its
# score alone.
_C.MODEL.DENSE_CLIP.DINOISER.FIND_OBJECTS = True
# Folder of the object masks from which CLIP-DINOiser's second convolution learns (FOUND's): a gray PNG for each
# training image, of its size and with the name of its file, 255 for objects.
_C.MODEL.DENSE_CLIP.DINOISER.OBJECT_MASKS = "./datasets/object_masks"
# Learning rate of CLIP-DINOiser's second convolution; SOLVER.BASE_LR is the first one's.
_C.MODEL.DENSE_CLIP.DINOISER.OBJECT_LR = 1.0e-2
_C.MODEL.DENSE_CLIP.DINOISER.TEACHER = CN()
# The vision model that says in training which patches are similar: a VisionTransformer that timm names, with patches of
# MODEL.CLIP's size.
_C.MODEL.DENSE_CLIP.DINOISER.TEACHER.NAME = "vit_base_patch16_224.dino"
# Weights of CLIP-DINOiser's teacher: "timm" for those that timm names, a file of them, or "" for random ones.
_C.MODEL.DENSE_CLIP.DINOISER.TEACHER.PRETRAINED = "timm"

_C.MODEL.RECO = CN()
# Folder of the index of ReCo's image archive, which `tcl-d2 index` makes; "" to build the model without.
_C.MODEL.RECO.INDEX = "./output/index"
# Images of the archive from which ReCo makes the reference embedding of a word (paper: 50).
_C.MODEL.RECO.NUM_IMAGES = 50
# Side of the archive's images in co-segmentation, squares, in pixels.
_C.MODEL.RECO.IMAGE_SIZE = 224
# Whether the dense CLIP guides co-segmentation (language-guided co-segmentation).
_C.MODEL.RECO.TEXT_ATTENTION = True
# Words of what stands around objects, which co-segmentation leaves out (context elimination); [] for none.
_C.MODEL.RECO.CONTEXT = ["tree", "sky", "building", "road", "person"]
# Whether a word's scores are multiplied by the dense CLIP's; otherwise they are its reference embedding's alone.
_C.MODEL.RECO.DENSE_CLIP = True
# Folder that keeps reference embeddings between runs, by archive, models and words; "" for none.
_C.MODEL.RECO.CACHE = "~/.cache/tcl_d2/references"
_C.MODEL.RECO.ENCODER = CN()
# The image encoder of ReCo: a VisionTransformer or a DINOv3 that timm names, or "clip" for the first blocks of
# MODEL.CLIP.
_C.MODEL.RECO.ENCODER.NAME = "deit_small_distilled_patch16_224"
# Weights of ReCo's image encoder: "timm" for those that timm names, a file of them or its address (paper: DeiT-S
# trained on Stylized ImageNet), or "" for random ones.
_C.MODEL.RECO.ENCODER.PRETRAINED = (
    "https://github.com/Muzammal-Naseer/Intriguing-Properties-of-Vision-Transformers/releases/download/v0/"
    "deit_s_sin_dist.pth"
)
# Blocks of MODEL.CLIP that are run where ENCODER.NAME is "clip".
_C.MODEL.RECO.ENCODER.BLOCKS = 8

_C.MODEL.GROUPVIT = CN()
# Weights of GroupViT: a model on the Hugging Face hub, the folder of one, a file of the official release, or "" for
# random ones. GroupViT's tokenizer is that of MODEL.CLIP.NAME.
_C.MODEL.GROUPVIT.WEIGHTS = "nvidia/groupvit-gcc-yfcc"
# Attention heads of GroupViT's image encoder. Like the sizes below, it is that of a model with random weights or of
# the official release's file; a model on the hub brings its own.
_C.MODEL.GROUPVIT.NUM_HEADS = 6
# Side of the images that a GroupViT with random weights has positions for, in pixels.
_C.MODEL.GROUPVIT.IMAGE_SIZE = 224
# Side of the patches of a GroupViT with random weights, in pixels.
_C.MODEL.GROUPVIT.PATCH_SIZE = 16
# Width of the image encoder of a GroupViT with random weights.
_C.MODEL.GROUPVIT.WIDTH = 384
# Blocks of each stage of the image encoder of a GroupViT with random weights.
_C.MODEL.GROUPVIT.DEPTHS = [6, 3, 3]
# Groups that each stage but the last makes in a GroupViT with random weights; it has as many group tokens.
_C.MODEL.GROUPVIT.GROUPS = [64, 8]
# Width of the text encoder of a GroupViT with random weights; a head has 64 of it.
_C.MODEL.GROUPVIT.TEXT_WIDTH = 256
# Blocks of the text encoder of a GroupViT with random weights.
_C.MODEL.GROUPVIT.TEXT_DEPTH = 12
# Hidden width of the projections into the common space in a GroupViT with random weights.
_C.MODEL.GROUPVIT.PROJECTION_WIDTH = 4096
# Size of the common space of images and texts in a GroupViT with random weights.
_C.MODEL.GROUPVIT.EMBED_DIM = 256
_C.MODEL.GROUPVIT.MULTI_LABEL = CN()
# Nouns that are drawn from each caption for GroupViT's multi-label loss (paper: 3); 0 for no such loss.
_C.MODEL.GROUPVIT.MULTI_LABEL.NUM_NOUNS = 0
# File of the words that count as nouns, one a line.
_C.MODEL.GROUPVIT.MULTI_LABEL.WORDS = ""
# Prompt templates of these nouns, or the name of a set (tcl, openai_imagenet, maskclip, talk2dino); each gets one of
# them.
_C.MODEL.GROUPVIT.MULTI_LABEL.TEMPLATES = ["openai_imagenet"]

_C.MODEL.TIPS = CN()
# The image tower of TIPSv2: a VisionTransformer that timm names.
_C.MODEL.TIPS.NAME = "vit_large_patch14_reg1_tipsv2.webli"
# Weights of TIPSv2's image tower: "timm" for those that timm names, a file of timm's, of the release (.npz) or of the
# hub, or "" for random ones.
_C.MODEL.TIPS.PRETRAINED = "timm"
# Weights of TIPSv2's text tower: a file of the release (.npz) or of the hub, or its address; "" for random ones.
_C.MODEL.TIPS.TEXT = "https://storage.googleapis.com/tips_data/v2_0/checkpoints/pytorch/tips_v2_oss_l14_text.npz"
# Attention heads of TIPSv2's text tower; 0 for as many as the image tower's, as in all that were released.
_C.MODEL.TIPS.TEXT_HEADS = 0
# Blocks of a text tower of TIPSv2 with random weights; others are as their weights.
_C.MODEL.TIPS.TEXT_DEPTH = 12
# TIPSv2's tokenizer: the release's tokenizer.model or its address, the folder of one that transformers reads, a model
# on the Hugging Face hub, or "" for that of MODEL.CLIP.NAME.
_C.MODEL.TIPS.TOKENIZER = "https://storage.googleapis.com/tips_data/v1_0/checkpoints/tokenizer.model"
# Scores of words in TIPSv2: "probability" for a softmax over all words, without a scale, of the cosines at the window's
# size (its release), or "cosine" for the cosines.
_C.MODEL.TIPS.SCORES = "probability"

_C.MODEL.DINO_TXT = CN()
# The image tower of dino.txt: a DINOv3 that timm names.
_C.MODEL.DINO_TXT.NAME = "vit_large_patch16_dinov3.lvd1689m"
# Weights of dino.txt's image tower: "timm" for those that timm names, a file of them, or "" for random ones. Its head
# and its text tower come by MODEL.WEIGHTS.
_C.MODEL.DINO_TXT.PRETRAINED = "timm"
# Patches that dino.txt compares with texts: "head" for its head's, or "backbone" for the image tower's, as in the
# release's notebook.
_C.MODEL.DINO_TXT.PATCHES = "head"
# Width of dino.txt's text tower.
_C.MODEL.DINO_TXT.TEXT_WIDTH = 1280
# Blocks of dino.txt's text tower.
_C.MODEL.DINO_TXT.TEXT_DEPTH = 24
# Attention heads of dino.txt's text tower.
_C.MODEL.DINO_TXT.TEXT_HEADS = 20

_C.MODEL.TALK2DINO = CN()
# The image model of Talk2DINO: a VisionTransformer or a DINOv3 that timm names, with a class token. Its texts are those
# of MODEL.CLIP.
_C.MODEL.TALK2DINO.NAME = "vit_base_patch14_reg4_dinov2.lvd142m"
# Weights of Talk2DINO's image model: "timm" for those that timm names, a file of them, or "" for random ones.
_C.MODEL.TALK2DINO.PRETRAINED = "timm"
# Weights of Talk2DINO's projection: a file of the release or of a training, or its address; "" to begin a training, or
# where MODEL.WEIGHTS has them. It must be of the image model's training: files do not say which that is.
_C.MODEL.TALK2DINO.PROJECTION = ""
# Side of the square that Talk2DINO's image model sees, in pixels: each window is stretched to it.
_C.MODEL.TALK2DINO.IMAGE_SIZE = 448
# Weight of the background cleaning, by which scores fall where the class token does not look (release: 0.2 on VOC with
# background and COCO-Object); 0 for none.
_C.MODEL.TALK2DINO.CLEANING = 0.0
# Folder of the features of DATASETS.TRAIN from which Talk2DINO's projection is trained: tcl-d2 features makes it.
_C.MODEL.TALK2DINO.FEATURES = "./output/talk2dino/features"
# Whether Talk2DINO's loss is divided by the square of SOLVER.IMS_PER_BATCH, as in its release. With Adam's epsilon that
# damps small gradients: the plain loss takes the same steps with SOLVER.EPS times this square.
_C.MODEL.TALK2DINO.DIVIDE_LOSS = True

_C.MODEL.TCL = CN()
# Dense head that makes CLIP's own masks for knowledge preservation (paper: maskclip); see MODEL.DENSE_CLIP.HEAD.
_C.MODEL.TCL.KP_HEAD = "maskclip"
# Blocks of the image encoder that are shared and stay frozen; the others are copied into the grounder (paper: 11).
_C.MODEL.TCL.FREEZE = 11
# Gated decoder blocks; each doubles the resolution of the masks.
_C.MODEL.TCL.DECODER_BLOCKS = 2
# Initial value of the learnable w in Sim2Mask, mask logit = w * similarity + b.
_C.MODEL.TCL.SIM_SCALE_INIT = 10.0
# Initial value of the learnable b in Sim2Mask, mask logit = w * similarity + b.
_C.MODEL.TCL.SIM_BIAS_INIT = -2.5
# Temperature of the Gumbel-sigmoid that makes the hard masks of the image-level loss.
_C.MODEL.TCL.GUMBEL_TAU = 1.0
# First iteration of the second stage, in which the copied last blocks train too; -1 for no second stage.
_C.MODEL.TCL.UNFREEZE_ITER = 30000
# Loss heads, by name in TCL_LOSS_REGISTRY. A head is on when it is listed; a weight of 0 still costs its
# computation.
_C.MODEL.TCL.LOSS_HEADS = [
    "ImageTCLLoss",
    "FeatureTCLLoss",
    "PositiveAreaLoss",
    "NegativeAreaLoss",
    "ImageTVLoss",
    "MaskTVLoss",
]
# Loss heads to add to LOSS_HEADS without repeating that list.
_C.MODEL.TCL.EXTRA_LOSS_HEADS = []
# Share of the image that the mask of a matching pair should cover; depends on the data (paper: 0.4).
_C.MODEL.TCL.AREA_PRIOR = 0.4
# Share of the image that the mask of a pair that does not match should cover (paper: 0).
_C.MODEL.TCL.NEGATIVE_AREA_PRIOR = 0.0
# Whether to save memory by computing the frozen encoder's pass over the masked image twice.
_C.MODEL.TCL.CHECKPOINT_MASKED = False
_C.MODEL.TCL.LOSS_WEIGHT = CN()
# Weight of image-level TCL: contrast of the masked image, seen by CLIP, with the texts.
_C.MODEL.TCL.LOSS_WEIGHT.TCL_IMAGE = 0.1
# Weight of feature-level TCL: contrast of the features pooled under the masks with the texts.
_C.MODEL.TCL.LOSS_WEIGHT.TCL_FEATURE = 0.1
# Weight of the area loss on the masks of matching pairs.
_C.MODEL.TCL.LOSS_WEIGHT.AREA_POS = 0.4
# Weight of the area loss on the masks of pairs that do not match.
_C.MODEL.TCL.LOSS_WEIGHT.AREA_NEG = 0.4
# Weight of the total variation of the pixel embeddings.
_C.MODEL.TCL.LOSS_WEIGHT.TV_IMAGE = 1.0
# Weight of the total variation of the soft masks.
_C.MODEL.TCL.LOSS_WEIGHT.TV_MASK = 1.0
# Weight of SemSegBCELoss: binary cross-entropy of soft masks and labels, over the pixels that are not ignored.
_C.MODEL.TCL.LOSS_WEIGHT.SEM_SEG_BCE = 1.0
# Weight of SemSegDiceLoss: dice loss of the soft masks of classes that are there, over the same pixels.
_C.MODEL.TCL.LOSS_WEIGHT.SEM_SEG_DICE = 1.0
# Weight of the ablation WholeImageLoss: contrast of the whole image, without masks, with the texts.
_C.MODEL.TCL.LOSS_WEIGHT.WHOLE_IMAGE = 0.1

# Benchmarks to evaluate while training; their average picks the best checkpoint. () for DATASETS.TEST.
_C.DATASETS.VAL = ()

# How test images are resized: "opencv_bilinear" without antialias, or "pil_bicubic" with antialias, whose long side is
# rounded down (TIPSv2).
_C.INPUT.RESIZE_TEST = "opencv_bilinear"

_C.INPUT.SEM_SEG = CN()
# Classes of a labeled dataset that are drawn for each of its images from those that the image does not have. Their
# masks should be empty.
_C.INPUT.SEM_SEG.NUM_ABSENT = 8

_C.INPUT.UNLABELED = CN()
# Colors of training images without captions and labels are multiplied by a factor of 1 - this to 1 + this; 0 for none.
# Their size and flips are those of INPUT.IMAGE_TEXT.
_C.INPUT.UNLABELED.BRIGHTNESS = 0.5

_C.INPUT.IMAGE_TEXT = CN()
# Side of the square training crop, in pixels.
_C.INPUT.IMAGE_TEXT.SIZE = 224
# Range of a random resized crop's share of the image's area.
_C.INPUT.IMAGE_TEXT.CROP_SCALE = [0.08, 1.0]
# Range of a random resized crop's aspect ratio, width / height.
_C.INPUT.IMAGE_TEXT.CROP_RATIO = [3 / 4, 4 / 3]
# Probability of a horizontal flip.
_C.INPUT.IMAGE_TEXT.FLIP_PROB = 0.5
# RandAugment policy in timm's notation; "" for none.
_C.INPUT.IMAGE_TEXT.RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
# Probability of random erasing (timm's pixel mode).
_C.INPUT.IMAGE_TEXT.ERASING_PROB = 0.25

# Share of the images of each process's batch that is of labeled datasets, where DATASETS.TRAIN names image-text
# datasets too: rounded to the nearest number of images, half up, and at least one of each.
_C.DATALOADER.LABELED_RATIO = 0.0
# Share of the labeled images to train on, drawn by the seed (Detectron2's RandomSubsetTrainingSampler); 1 for all.
_C.DATALOADER.RANDOM_SUBSET_RATIO = 1.0
# Samples in the shuffle buffer of each loader worker, which keeps neighbors in a shard out of one batch.
_C.DATALOADER.SHUFFLE_BUFFER = 1000

# Images per process whose activations are held at once; losses are over the whole batch all the same. 0 for all.
_C.SOLVER.IMS_PER_MICRO_BATCH = 0
# Steps in a row that may be left out because a loss or the gradient is NaN or Inf; one more ends the training.
_C.SOLVER.MAX_SKIPPED = 10
# Decay rates of AdamW's two moments.
_C.SOLVER.BETAS = [0.9, 0.999]
# Epsilon of AdamW.
_C.SOLVER.EPS = 1e-6
# Precision of autocast where SOLVER.AMP.ENABLED: "float16" (CUDA, with loss scaling) or "bfloat16" (also CPU).
_C.SOLVER.AMP.DTYPE = "float16"

_C.TEST.ZERO_SHOT = CN()
# Side of the square sliding window, in pixels of the resized image; 0: the whole image at once.
_C.TEST.ZERO_SHOT.CROP_SIZE = 448
# Step of the sliding window, in pixels of the resized image.
_C.TEST.ZERO_SHOT.STRIDE = 224
# Constant score of the background where a dataset has one (paper: 0.4 with PAMR, 0.5 without), besides its words if
# it has any. With LOGIT_SCALE, and in GroupViT, it is the probability that a class must reach.
_C.TEST.ZERO_SHOT.BACKGROUND_SCORE = 0.4
# Scale of a softmax over all words, which makes probabilities of scores that were averaged over windows and
# enlarged (SCLIP and its successors); 0 for none.
_C.TEST.ZERO_SHOT.LOGIT_SCALE = 0.0
# Share of the pixels of all classes but the background that a class must win, or it loses them (SCLIP: 0.1 on VOC
# with background); 0 for none.
_C.TEST.ZERO_SHOT.AREA_THRESHOLD = 0.0
# Whether a class takes the score of its best word before scores are enlarged to the image's size (LPOSS's release),
# rather than after.
_C.TEST.ZERO_SHOT.JOIN_WORDS_FIRST = False
# Weight of frozen CLIP's own masks in the mixture (knowledge preservation); 0 for none.
_C.TEST.ZERO_SHOT.KP_WEIGHT = 0.3
# Images of a batch in evaluation and in segmenting files; their windows are encoded together. Results are those of
# one image at a time.
_C.TEST.ZERO_SHOT.IMS_PER_BATCH = 4
# Number of evenly spaced images of each benchmark to evaluate, for a quick look; 0 for all.
_C.TEST.ZERO_SHOT.MAX_IMAGES = 0
# Whether to save predicted labels as palette PNGs below OUTPUT_DIR/inference.
_C.TEST.ZERO_SHOT.SAVE_PREDICTIONS = False
# Whether to leave out and count images that are broken or have broken labels; otherwise they are an error.
_C.TEST.ZERO_SHOT.SKIP_BROKEN = False
# Precision of autocast in evaluation: "float32" (none), "bfloat16", or, on CUDA, "float16".
_C.TEST.ZERO_SHOT.PRECISION = "float32"
# Folder that keeps text embeddings between runs, by CLIP's weights and prompts; "" for none.
_C.TEST.ZERO_SHOT.TEXT_CACHE = "~/.cache/tcl_d2/text"
# Prompt templates, or the name of a set (tcl, openai_imagenet, maskclip, talk2dino); a word's embedding is the mean
# over them.
_C.TEST.ZERO_SHOT.TEMPLATES = ["tcl"]
# Whether each prompt's embedding is normalized before the mean (SCLIP and its successors).
_C.TEST.ZERO_SHOT.NORMALIZE_PROMPTS = False
# Class words in place of the benchmarks' own: those of a release by name (sclip, naclip, clearclip, proxyclip,
# lposs, groupvit, clip_dinoiser), "first" for the first of each class's own, or a file with a class a line; "" for
# the benchmarks' own.
_C.TEST.ZERO_SHOT.WORDS = ""
# Values for single datasets, by name: a list of KEY, VALUE pairs over the others, such as
# {voc: [INPUT.MIN_SIZE_TEST, 336]}.
_C.TEST.ZERO_SHOT.BY_DATASET = CN(new_allowed=True)
_C.TEST.ZERO_SHOT.CONNECTED_COMPONENTS = CN()
# Smallest area of an object, a connected component of a class's mask, in pixels of the output. The most objects of
# an image are Detectron2's TEST.DETECTIONS_PER_IMAGE.
_C.TEST.ZERO_SHOT.CONNECTED_COMPONENTS.MIN_AREA = 30
# Neighbors of a pixel that belong to its connected component: 8, or 4 without those at the corners.
_C.TEST.ZERO_SHOT.CONNECTED_COMPONENTS.CONNECTIVITY = 8
# Measures besides the protocol's, by name: SoftIoU, ConfusedPairs, PresentIoU, ZeroIoU, BoundaryIoU,
# ClassBoundaryIoU, or names of your own in MEASURE_REGISTRY (docs/measures.md); [] for none.
_C.TEST.ZERO_SHOT.MEASURES = []
# Similarity of the classes for SoftIoU and ConfusedPairs: a .npy or .csv file of a row and a column for each class,
# in which {dataset} stands for the dataset's name; "" for that of the model's text features.
_C.TEST.ZERO_SHOT.SIMILARITY = ""
# What refines scores: none, pamr, densecrf (which needs pydensecrf2), lposs, lposs_plus, lposs_pixels, or a name of
# your own in REFINER_REGISTRY (docs/refiners.md).
_C.TEST.ZERO_SHOT.REFINE = "pamr"
_C.TEST.ZERO_SHOT.PAMR = CN()
# Whether PAMR refines the scores of the whole image at the output's size (NACLIP), rather than each window's masks.
_C.TEST.ZERO_SHOT.PAMR.WHOLE_IMAGE = False
# How often PAMR averages a mask over neighboring pixels.
_C.TEST.ZERO_SHOT.PAMR.ITERS = 10
# Distances of the 8 neighbors that PAMR averages over, in pixels of the mask.
_C.TEST.ZERO_SHOT.PAMR.DILATIONS = [1, 2, 4, 8, 12, 24]
_C.TEST.ZERO_SHOT.DENSECRF = CN()
# Iterations of DenseCRF's mean field (this and all of DENSECRF: ReCo's release).
_C.TEST.ZERO_SHOT.DENSECRF.ITERS = 10
# Standard deviation of DenseCRF's Gaussian kernel, in pixels of the output.
_C.TEST.ZERO_SHOT.DENSECRF.GAUSSIAN_SXY = 1.0
# Weight of DenseCRF's Gaussian kernel.
_C.TEST.ZERO_SHOT.DENSECRF.GAUSSIAN_COMPAT = 3.0
# Standard deviation of the distances in DenseCRF's bilateral kernel, in pixels of the output.
_C.TEST.ZERO_SHOT.DENSECRF.BILATERAL_SXY = 67.0
# Standard deviation of the colors in DenseCRF's bilateral kernel, in 0..255.
_C.TEST.ZERO_SHOT.DENSECRF.BILATERAL_SRGB = 3.0
# Weight of DenseCRF's bilateral kernel.
_C.TEST.ZERO_SHOT.DENSECRF.BILATERAL_COMPAT = 4.0
_C.TEST.ZERO_SHOT.LPOSS = CN()
# The vision model whose patches LPOSS connects where they look alike: a VisionTransformer that timm names (this and
# all of LPOSS: its release).
_C.TEST.ZERO_SHOT.LPOSS.NAME = "vit_base_patch16_224.dino"
# Weights of LPOSS's vision model: "timm" for those that timm names, a file of them, or "" for random ones.
_C.TEST.ZERO_SHOT.LPOSS.PRETRAINED = "timm"
# Patches that LPOSS connects each patch with, itself among them.
_C.TEST.ZERO_SHOT.LPOSS.NEIGHBORS = 400
# Power of the similarity of two patches in LPOSS.
_C.TEST.ZERO_SHOT.LPOSS.GAMMA = 3.0
# Distance at which the weight of two patches in LPOSS is 1/e of that at no distance, in pixels of the resized image.
_C.TEST.ZERO_SHOT.LPOSS.SIGMA = 100.0
# Share in 0..1 that patches and pixels take over from those they are connected with in LPOSS and LPOSS+.
_C.TEST.ZERO_SHOT.LPOSS.ALPHA = 0.95
# Steps of conjugate gradients in LPOSS and LPOSS+; 0 for as many as the solution needs.
_C.TEST.ZERO_SHOT.LPOSS.STEPS = 10
# Difference of colors (Lab, its lightness in 0..1) at which the weight of two pixels in LPOSS+ is 1/e of that of equal
# ones.
_C.TEST.ZERO_SHOT.LPOSS.TAU = 0.01
# Side of the square of pixels that LPOSS+ connects each pixel with, an odd number.
_C.TEST.ZERO_SHOT.LPOSS.WINDOW = 13
_C.TEST.ZERO_SHOT.REGIONS = CN()
# Folder of region files, named after the images (docs/refiners.md): at last, each region gets one class. "" for none.
_C.TEST.ZERO_SHOT.REGIONS.FOLDER = ""
# The class of a region: "vote" for its most frequent one, or "mean" for that of its best mean score.
_C.TEST.ZERO_SHOT.REGIONS.RULE = "vote"


def add_tcl_config(cfg: CN) -> None:
    """Add the keys of TCL to `cfg`, in place; call it before merging a config file.

    Keys that are there keep their values: Detectron2's, those of another plugin, and TCL's own in a second call. The
    values that TCL sets for Detectron2's keys come with its configs, see configs/defaults.yaml.

    Raises:
        ValueError: another plugin has a value where TCL has keys, or keys where TCL has a value.
    """
    _add_missing(cfg, tcl_keys())
    old, new = "TEST.ZERO_SHOT.PAMR.ENABLED", "TEST.ZERO_SHOT.REFINE"
    if not cfg.key_is_renamed(old):
        cfg.register_renamed_key(old, new, "True is now pamr, and False is none")
        cfg.register_deprecated_key("TEST.ZERO_SHOT.FILLER_WORDS")  # negative words do better


def add_key(name: str, default: object, meaning: str, range: Range | None = None) -> None:
    """Add a key of your own, such as a loss's weight, to every configuration that is made from now on.

    Args:
        name: such as "MODEL.DENSE_CLIP.TAU".
        default: a value of a type that Detectron2's CfgNode takes.
        meaning: for `tcl-d2 keys`, in a sentence.
        range: of a number.

    Raises:
        ValueError: there is such a key already, with another default; or a section of the name is a key.
    """
    cfg = get_cfg()
    add_tcl_config(cfg)
    *sections, last = name.split(".")
    added = _C
    for number, section in enumerate(sections, 1):
        cfg, added = cfg.get(section, CN()), added.setdefault(section, CN())
        if not isinstance(cfg, CN):
            raise ValueError(f"Key {name} cannot be added: {'.'.join(sections[:number])} is a value.")
    if cfg.get(last, default) != default:
        raise ValueError(f"Key {name} is there already: its default is {cfg[last]!r}, not {default!r}.")

    added[last] = default
    ADDED[name] = meaning
    if range is not None:
        RANGES[name] = range


def tcl_keys() -> CN:
    """Return the keys that TCL adds to Detectron2's, with their defaults."""
    return _C.clone()


def _add_missing(cfg: CN, keys: dict, prefix: str = "") -> None:
    for name, value in keys.items():
        if name not in cfg:
            setattr(cfg, name, value)
        elif isinstance(value, dict) != isinstance(cfg[name], dict):
            raise ValueError(f"{prefix}{name} is {cfg[name]!r} in this configuration, where TCL has {value!r}.")
        elif isinstance(value, dict):
            _add_missing(cfg[name], value, f"{prefix}{name}.")


def missing_keys(cfg: Mapping, keys: Mapping = _C) -> list[str]:
    """List the keys of TCL that a configuration does not have."""
    missing = []
    for name, value in keys.items():
        if name not in cfg:
            missing.append(name)
        elif isinstance(value, dict):
            missing += [f"{name}.{key}" for key in missing_keys(cfg[name], value)]
    return missing
