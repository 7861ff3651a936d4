"""GroupViT's two encoders: text features, and an image's groups with their features."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...utils.tensors import weights_by_name
from ..encoders.base import DualEncoder
from ..scalars import hold_scalars


class GroupedImages(NamedTuple):
    """A batch of images, grouped; features are in the space of the texts, not normalized."""

    maps: Tensor  # share of each patch in each group, fp32 [B, G, h, w]; sums to 1 over groups
    group_features: Tensor  # [B, G, D]
    image_features: Tensor  # of whole images, [B, D]


class GroupViTEncoder(DualEncoder):
    """The two encoders of transformers' GroupViTModel.

    In training mode, each patch is assigned to a group with Gumbel noise. Images are float [B, 3, H, W], normalized, H
    and W multiples of `patch_size`.
    """

    def __init__(self, model: Any):
        super().__init__(model)
        hold_scalars(model)
        self.embed_dim = model.config.projection_dim
        self.patch_size = model.config.vision_config.patch_size

    @property
    def logit_scale(self) -> Tensor:
        """The scale of cosines in training, at most 100."""
        return self.model.logit_scale.exp().clamp(max=100)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.project_text(self.pool_text(tokens))

    def text_weights(self) -> dict[str, Tensor]:
        weights = weights_by_name(self.model)
        return {name: weights[name] for name in weights if name.startswith(("text_model.", "text_projection."))}

    def encode_groups(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode images, of other sizes than in training too, into the tokens of their groups [B, G, C].

        Also returns the soft assignments of each grouping stage: of patches to segments [B, S, h*w], and of segments to
        groups [B, G, S].
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
        tokens, assignments = self.encode_groups(images)
        maps = self.follow_patches(images, assignments)[-1]

        # The projection's batch norm takes rows
        group_features = self.project_image(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return GroupedImages(maps, group_features, self.project_image(tokens.mean(1)))

    def follow_patches(self, images: Tensor, assignments: tuple[Tensor, ...]) -> list[Tensor]:
        """Compute the share of each patch in each group of each stage, from the `assignments` of encode_groups.

        Returns:
            fp32 [B, G, h, w] for each grouping stage; sums to 1 over its groups.
        """
        grid = [side // self.patch_size for side in images.shape[-2:]]
        with torch.autocast(images.device.type, enabled=False):
            maps = [assignments[0].float()]
            for assignment in assignments[1:]:
                maps.append(assignment.float() @ maps[-1])
        return [stage_maps.unflatten(2, grid) for stage_maps in maps]

    # ------------------------------------------------------------------------------------ two steps, for training

    def pool_image(self, images: Tensor) -> Tensor:
        """Encode images into the mean token of their groups [B, C], which `project_image` takes."""
        return self.encode_groups(images)[0].mean(1)

    def pool_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens int [N, context] into the token at the text's end [N, C'], which `project_text` takes."""
        return self.model.text_model(input_ids=tokens).pooler_output

    def project_image(self, pooled: Tensor) -> Tensor:
        """Project image or group tokens [N, C] to features [N, D], not normalized; its batch norm is over N."""
        return self.model.visual_projection(pooled)

    def project_text(self, pooled: Tensor) -> Tensor:
        """Project text tokens [N, C'] to features [N, D], not normalized; its batch norm is over N."""
        return self.model.text_projection(pooled)
