"""The frozen GroupViT: text features, and an image's groups with their features."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..dual_encoder import FrozenDualEncoder


class GroupedImages(NamedTuple):
    """What GroupViT makes of a batch of images.

    Attributes:
        maps: how much each patch belongs to each group, fp32 [B, G, h, w]; sums to 1 over groups.
        group_features: of each group, in the space of the texts, not normalized, [B, G, D].
        image_features: of the whole image, likewise, [B, D].
    """

    maps: Tensor
    group_features: Tensor
    image_features: Tensor


class FrozenGroupViT(FrozenDualEncoder):
    """GroupViT's two encoders.

    Images are float [B, 3, H, W], normalized, H and W multiples of `patch_size`.
    """

    def __init__(self, model: nn.Module):
        """Freeze a GroupViT.

        Args:
            model: transformers' GroupViTModel.
        """
        super().__init__(model)
        self.embed_dim = model.config.projection_dim
        self.patch_size = model.config.vision_config.patch_size

    @property
    def logit_scale(self) -> Tensor:
        """The scale of cosines with which the model was trained, at most 100."""
        return self.model.logit_scale.exp().clamp(max=100)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.model.text_projection(self.model.text_model(input_ids=tokens).pooler_output)

    def text_weights(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in self.model.state_dict().items() if name.startswith("text_")}

    def encode_groups(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Encode images into the tokens of their groups.

        The model's own forward takes only images of the size that it was trained with.

        Returns:
            tokens [B, G, C], and the soft assignments of both grouping stages: of patches to segments [B, S, h*w], and
            of segments to groups [B, G, S].
        """
        vision = self.model.vision_model
        encoded = vision.encoder(
            hidden_states=vision.embeddings(images, interpolate_pos_encoding=True),
            output_hidden_states=False,
            output_attentions=True,
            return_dict=True,
        )
        return vision.layernorm(encoded.last_hidden_state), encoded.attentions

    def encode_image(self, images: Tensor) -> GroupedImages:
        """Encode images into groups."""
        tokens, (to_segments, to_groups) = self.encode_groups(images)

        # Follow patches through both stages
        with torch.autocast(images.device.type, enabled=False):
            maps = to_groups.float() @ to_segments.float()
        grid = [side // self.patch_size for side in images.shape[-2:]]

        # The projection's batch norm takes rows
        group_features = self.model.visual_projection(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return GroupedImages(maps.unflatten(2, grid), group_features, self.model.visual_projection(tokens.mean(1)))
