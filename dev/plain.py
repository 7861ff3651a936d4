"""Plain references for dev/benchmark.py: TCL as in the paper's formulas, with the weights of our model.

Everything is dense and in fp32: CLIP's blocks as open_clip has them, attention matrices under a mask, norms and
convolutions at full resolution, the masks of all pairs held at once, PAMR by shifted copies of the masks.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tcl_d2.modeling import PAMR, TCL, FrozenCLIP
from tcl_d2.modeling.tcl.grounder import GatedConv, Grounder


def pamr(images: Tensor, masks: Tensor, settings: PAMR) -> Tensor:
    """Refine masks: each iteration makes shifted copies of them, and adds the weighted neighbors of each pixel.

    Args:
        images: normalized RGB, [1, 3, H, W].
        masks: [1, K, h, w].
        settings: has the dilations and the number of iterations.

    Returns:
        refined masks [1, K, h, w].
    """
    size = masks.shape[-2:]
    image = F.interpolate(images, size=size, mode="bilinear", align_corners=True)
    shifts = torch.eye(9, device=masks.device).view(9, 1, 3, 3)  # a kernel for each place of a 3 x 3 window

    def windows(x: Tensor, kernels: Tensor) -> Tensor:
        """Return the places of [1, C, h, w] that the kernels take, for all dilations: [1, C, dilations * places, h, w].

        They are shifted copies, by a dilated convolution with fixed weights.
        """
        parts = []
        for dilation in settings.dilations:
            padded = F.pad(x, (dilation,) * 4, mode="replicate")
            parts.append(F.conv2d(padded.transpose(0, 1), kernels, dilation=dilation))
        return torch.cat(parts, 1)[None]

    # Weigh the neighbors by their colors; the spread counts a window's center too
    neighbors = shifts[[0, 1, 2, 3, 5, 6, 7, 8]]
    distance = (image[:, :, None] - windows(image, neighbors)).abs()
    deviation = windows(image, shifts).std(2, keepdim=True)
    weights = (-distance / (1e-8 + 0.1 * deviation)).mean(1, keepdim=True).softmax(2)

    # Average the masks
    for _ in range(settings.iterations):
        masks = (windows(masks, neighbors) * weights).sum(2)
    return masks


def encode(clip: FrozenCLIP, images: Tensor, depth: int) -> Tensor:
    """Return the tokens [B, 1 + L, C] of images after `depth` of open_clip's blocks."""
    tokens = clip.forward_blocks(images, 0)
    for block in clip.blocks[:depth]:
        tokens = block(tokens)
    return tokens


def last_block(block, x: Tensor) -> Tensor:
    """Apply a block by the MaskCLIP rule: each token attends only to itself, by an L x L matrix of the mask."""
    mask = torch.full((x.shape[1],) * 2, float("-inf"), device=x.device).fill_diagonal_(0)
    return block(x, attn_mask=mask)


def gated_conv(module: GatedConv, x: Tensor) -> Tensor:
    """Apply norm, GELU, convolution and gate to [B, D, h, w]."""
    y = F.gelu(module.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    return torch.tanh(module.gate) * module.conv(y)


def pixel_embedding(grounder: Grounder, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the pixel embeddings [B, D, h, w] of the tokens [B, 1 + L, C] of a grid."""
    for block in grounder.blocks[:-1]:
        tokens = block(tokens)

    x = last_block(grounder.blocks[-1], tokens)[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
    for block in grounder.decoder:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = x + gated_conv(block.conv1, x)
        x = x + gated_conv(block.conv2, x)
    projection = grounder.projection
    return (projection.norm(x.permute(0, 2, 3, 1)) @ projection.weight).permute(0, 3, 1, 2)


def similarity(embedding: Tensor, text: Tensor) -> Tensor:
    """Return the cosine similarity [B, N, h, w] of pixel embeddings [B, D, h, w] and texts [N, D]."""
    return torch.einsum("bdhw,nd->bnhw", F.normalize(embedding, dim=1, eps=1e-6), F.normalize(text, dim=1, eps=1e-6))


def masks(model: TCL, images: Tensor, text: Tensor) -> Tensor:
    """Return the masks [1, K, H, W] of a normalized crop, with KP and PAMR as the model has them."""
    clip, grid = model.clip, model.clip.grid(images)

    # TCL's own masks
    tokens = encode(clip, images, model.freeze)
    logits = model.sim2mask.w * similarity(pixel_embedding(model.grounder, tokens, grid), text) + model.sim2mask.b
    masks = torch.sigmoid(logits)
    if model.refiner is not None:
        masks = pamr(images, masks, model.refiner)

    # Mix in CLIP's masks
    if model.kp_weight > 0:
        dense = clip.visual.ln_post(last_block(clip.blocks[-1], tokens)[:, 1:]) @ clip.visual.proj
        clip_masks = similarity(dense.unflatten(1, grid).permute(0, 3, 1, 2), text)
        clip_masks = torch.sigmoid((clip_masks - model.mask_shift) * model.mask_scale)
        clip_masks = F.interpolate(clip_masks, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        masks = model.kp_weight * clip_masks + (1 - model.kp_weight) * masks
    return F.interpolate(masks, size=images.shape[-2:], mode="bilinear", align_corners=False)


def pair_losses(embedding: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Return `similarity` [B, N], `area` [B, N] and total `variation` of the soft masks of all pairs."""
    soft = torch.sigmoid(scale * similarity(embedding, text) + bias)
    pooled = torch.einsum("bdhw,bnhw->bnd", embedding, soft) / (soft.sum((2, 3))[..., None] + 1e-6)
    cosine = torch.einsum("bnd,nd->bn", F.normalize(pooled, dim=2, eps=1e-6), F.normalize(text, dim=1, eps=1e-6))
    variation = soft.diff(dim=2).abs().mean() + soft.diff(dim=3).abs().mean()
    return {"similarity": cosine, "area": soft.mean((2, 3)), "variation": variation}


def info_nce(logits: Tensor) -> Tensor:
    """Return the contrastive loss of logits [B, B], over images and over texts."""
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def losses(model: TCL, images: Tensor, tokens: Tensor, uniform: Tensor) -> dict[str, Tensor]:
    """Return the six weighted losses of a step.

    As in the official code, the whole frozen encoder runs, although the grounder branches off before its last blocks;
    and noise and hard masks are made for all pairs, although only those of the matching pairs are used.

    Args:
        model: holds weights and settings.
        images: normalized RGB [B, 3, H, W].
        tokens: of the captions, [B, L].
        uniform: noise in (0, 1) of the matching pairs, [B, 1, h, w].
    """
    clip, sim2mask, batch_size = model.clip, model.sim2mask, len(images)

    # Encode texts and images
    with torch.no_grad():
        text = clip.encode_text(tokens)
        encode(clip, images, len(clip.blocks))
        image_tokens = encode(clip, images, model.freeze)
    embedding = pixel_embedding(model.grounder, image_tokens, clip.grid(images))
    pairs = pair_losses(embedding, text, sim2mask.w, sim2mask.b)

    # Make hard masks by Gumbel-sigmoid
    logits = sim2mask.w * similarity(embedding, text) + sim2mask.b
    noise = torch.rand_like(logits)
    matching = torch.arange(batch_size, device=images.device)
    noise[matching, matching] = uniform[:, 0]
    relaxed = torch.sigmoid((logits + noise.log() - (-noise).log1p()) / sim2mask.tau)
    hard = ((relaxed > 0.5).float() + relaxed - relaxed.detach())[matching, matching][:, None]

    # Compare the masked images with the texts
    masked_images = images * F.interpolate(hard, size=images.shape[-2:], mode="nearest")
    masked = clip.visual.ln_post(encode(clip, masked_images, len(clip.blocks))[:, 0]) @ clip.visual.proj
    cosine = F.normalize(masked, dim=1, eps=1e-6) @ F.normalize(text, dim=1, eps=1e-6).T

    # Compute the losses
    heads = {head.name: head for head in model.losses.values()}
    scale = {name: heads[name].logit_scale.exp().clamp(max=100) for name in ("loss_tcl_image", "loss_tcl_feature")}
    negatives = ~torch.eye(batch_size, dtype=torch.bool, device=images.device)
    area = pairs["area"]
    losses = {
        "loss_tcl_image": info_nce(cosine * scale["loss_tcl_image"]),
        "loss_tcl_feature": info_nce(pairs["similarity"] * scale["loss_tcl_feature"]),
        "loss_area_pos": (area.diagonal().mean() - heads["loss_area_pos"].prior).abs(),
        "loss_area_neg": (area[negatives].mean() - heads["loss_area_neg"].prior).abs(),
        "loss_tv_image": embedding.diff(dim=2).abs().mean() + embedding.diff(dim=3).abs().mean(),
        "loss_tv_mask": pairs["variation"],
    }
    return {name: heads[name].weight * value for name, value in losses.items()}
