"""Co-segmentation: one embedding of what the images of a concept have in common (Shin et al., NeurIPS 2022).

The seed of an image is the patch that agrees best with patches of the other images; the mean of the seeds' features is
the concept's reference embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional import map_size, resize_scores


def weigh_patches(features: Tensor, attention: Tensor | None, context: Tensor) -> Tensor:
    """Weigh the patches of n images by how much each may be of the concept: [n, C, h, w] -> [n, h, w] in 0..1.

    Args:
        attention: language guidance, a dense CLIP's masks of the concept, [n, h', w'] in 0..1; None for no guidance.
        context: reference embeddings of concepts to eliminate, of length 1, [c, C].
    """
    weights = features.new_ones(len(features), *features.shape[-2:])
    if attention is not None:
        weights = resize_scores(attention[:, None], map_size(weights))[:, 0]

    unit = F.normalize(features, dim=1)
    for reference in context:
        weights = weights * (1 - torch.einsum("nchw,c->nhw", unit, reference).sigmoid())
    return weights


def find_seeds(features: Tensor, weights: Tensor) -> Tensor:
    """Find the patch of each image that agrees best with all images.

    A patch agrees with an image as with its best patch: the largest cosine, times that patch's weight. Only the
    similarities of one image's patches with all patches are held at once.

    Args:
        features: of the patches of n images, [n, C, h, w].
        weights: from weigh_patches, [n, h, w].

    Returns:
        index of the seed among each image's patches, row by row, int64 [n].
    """
    unit = F.normalize(features, dim=1).flatten(2)  # [n, C, h*w]
    patches = unit.transpose(0, 1).flatten(1)  # [C, n*h*w]

    seeds = []
    for image in unit:
        similarity = (image.T @ patches) * weights.flatten()
        agreement = similarity.unflatten(1, (len(unit), -1)).amax(2).mean(1)  # [h*w]
        seeds.append(agreement.argmax())
    return torch.stack(seeds)


def make_reference(features: Tensor, weights: Tensor) -> Tensor:
    """Make the reference embedding [C] of a concept: the mean feature of its images' seeds, of length 1; 0 for n = 0.

    Args:
        features: of the patches of n images, [n, C, h, w], not normalized.
        weights: from weigh_patches, [n, h, w].
    """
    if not len(features):
        return features.new_zeros(features.shape[1])
    seeds = find_seeds(features, weights)
    patches = features.flatten(2)
    seed_features = patches.gather(2, seeds[:, None, None].expand(-1, patches.shape[1], 1))  # [n, C, 1]
    return F.normalize(seed_features.mean((0, 2)), dim=0)
