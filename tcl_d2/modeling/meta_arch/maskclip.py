"""MaskCLIP: CLIP's own dense features (Zhou et al., ECCV 2022), the baseline of TCL."""

from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from ..segmentor import CropFeatures, ZeroShotSegmentor


@META_ARCH_REGISTRY.register()
class MaskCLIP(ZeroShotSegmentor):
    """Dense CLIP: similarities of CLIP's own last values and the texts (Zhou et al., ECCV 2022). Nothing is trained."""

    def encode(self, images: Tensor) -> CropFeatures:
        depth = len(self.clip.blocks) - 1
        tokens = self.clip.forward_blocks(images, depth)
        return CropFeatures(images, self.dense_clip_features(tokens, depth, self.clip.grid(images)))

    def predict_masks(self, features: CropFeatures, text: Tensor) -> Tensor:
        masks = self.dense_clip_masks(features.clip_features, text)
        # Enlarged as TCL's decoder does, so that refinement works at the same resolution for both.
        masks = F.interpolate(masks, scale_factor=4.0, mode="bilinear", align_corners=False)
        return masks if self.pamr is None else self.pamr(features.images, masks)
