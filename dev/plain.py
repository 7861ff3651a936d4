"""TCL as the paper's formulas have it, with the weights of our model: what dev/benchmark.py measures against.

One thing after the other, dense and in fp32: attention matrices under a mask, norms and convolutions at full
resolution, masks of all pairs held at once, PAMR by unfolding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tcl_d2.modeling import PAMR, TCL
from tcl_d2.modeling.grounder import GatedConv, Grounder


def pamr(images: Tensor, masks: Tensor, settings: PAMR) -> Tensor:
    """Images [1, 3, H, W], masks [1, K, h, w]: every iteration unfolds the masks, weights and adds the neighbours."""
    size = masks.shape[-2:]
    image = F.interpolate(images, size=size, mode="bilinear", align_corners=True)

    def windows(x: Tensor) -> Tensor:
        """[1, C, h, w] -> the 3 x 3 windows of all dilations [1, C, dilations * 9, h, w]."""
        parts = []
        for dilation in settings.dilations:
            padded = F.pad(x, (dilation,) * 4, mode="replicate")
            parts.append(F.unfold(padded, 3, dilation=dilation).view(1, x.shape[1], 9, *size))
        return torch.cat(parts, 2)

    around = windows(image)
    neighbours = [i for i in range(around.shape[2]) if i % 9 != 4]
    spread = around.std(2, keepdim=True)
    distance = (image[:, :, None] - around[:, :, neighbours]).abs()
    weights = (-distance / (1e-8 + 0.1 * spread)).mean(1, keepdim=True).softmax(2)
    for _ in range(settings.iterations):
        masks = (windows(masks)[:, :, neighbours] * weights).sum(2)
    return masks


def last_block(block, x: Tensor) -> Tensor:
    """The MaskCLIP rule as attention that sees the token itself alone: an L x L matrix."""
    alone = torch.full((x.shape[1],) * 2, float("-inf"), device=x.device).fill_diagonal_(0)
    return block(x, attn_mask=alone)


def gated_conv(module: GatedConv, x: Tensor) -> Tensor:
    y = F.gelu(module.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    return torch.tanh(module.gate) * module.conv(y)


def pixel_embedding(grounder: Grounder, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    for block in grounder.blocks[:-1]:
        tokens = block(tokens)
    x = last_block(grounder.blocks[-1], tokens)[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
    for block in grounder.decoder:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = x + gated_conv(block.conv1, x)
        x = x + gated_conv(block.conv2, x)
    return grounder.projection(x)


def similarity(embedding: Tensor, text: Tensor) -> Tensor:
    return torch.einsum("bdhw,nd->bnhw", F.normalize(embedding, dim=1, eps=1e-6), F.normalize(text, dim=1, eps=1e-6))


def masks(model: TCL, images: Tensor, text: Tensor) -> Tensor:
    """Masks [1, K, H, W] of a normalised crop, with KP and PAMR as the model has them."""
    grid, clip = model.clip.grid(images), model.clip
    tokens = clip.forward_blocks(images, model.freeze)
    found = torch.sigmoid(
        model.sim2mask.w * similarity(pixel_embedding(model.grounder, tokens, grid), text) + model.sim2mask.b
    )
    if model.pamr is not None:
        found = pamr(images, found, model.pamr)
    if model.kp_weight > 0:
        dense = clip.visual.ln_post(last_block(clip.blocks[-1], tokens)[:, 1:]) @ clip.visual.proj
        kept = similarity(dense.unflatten(1, grid).permute(0, 3, 1, 2), text)
        kept = torch.sigmoid((kept - model.mask_shift) * model.mask_scale)
        kept = F.interpolate(kept, size=found.shape[-2:], mode="bilinear", align_corners=False)
        found = model.kp_weight * kept + (1 - model.kp_weight) * found
    return F.interpolate(found, size=images.shape[-2:], mode="bilinear", align_corners=False)


def pair_losses(embedding: Tensor, text: Tensor, model_w: Tensor, model_b: Tensor) -> dict[str, Tensor]:
    """Similarity [B, N], areas [B, N] and total variation of the dense masks [B, N, h, w] of all pairs."""
    soft = torch.sigmoid(model_w * similarity(embedding, text) + model_b)
    pooled = torch.einsum("bdhw,bnhw->bnd", embedding, soft) / (soft.sum((2, 3))[..., None] + 1e-6)
    cosine = torch.einsum("bnd,nd->bn", F.normalize(pooled, dim=2, eps=1e-6), F.normalize(text, dim=1, eps=1e-6))
    variation = soft.diff(dim=2).abs().mean() + soft.diff(dim=3).abs().mean()
    return {"similarity": cosine, "area": soft.mean((2, 3)), "variation": variation}


def info_nce(logits: Tensor) -> Tensor:
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def losses(model: TCL, images: Tensor, tokens: Tensor, uniform: Tensor) -> dict[str, Tensor]:
    """The six weighted losses of a step; `uniform` is the noise of the matching pairs [B, 1, h, w].

    As the official code does it: the whole frozen encoder runs, though the grounder takes it up before its last blocks,
    and noise and hard masks are made for all pairs, though those of the matching ones alone are used.
    """
    clip, grid, size = model.clip, model.clip.grid(images), len(images)
    with torch.no_grad():
        text = clip.encode_text(tokens)
        clip.forward_blocks(images, len(clip.blocks))
        trunk = clip.forward_blocks(images, model.freeze)
    embedding = pixel_embedding(model.grounder, trunk, grid)
    pairs = pair_losses(embedding, text, model.sim2mask.w, model.sim2mask.b)
    logits = model.sim2mask.w * similarity(embedding, text) + model.sim2mask.b
    noise = torch.rand_like(logits)
    own = torch.arange(size, device=images.device)
    noise[own, own] = uniform[:, 0]
    relaxed = torch.sigmoid((logits + noise.log() - (-noise).log1p()) / model.sim2mask.tau)
    hard = ((relaxed > 0.5).float() + relaxed - relaxed.detach())[own, own][:, None]
    masked = clip.encode_image(images * F.interpolate(hard, size=images.shape[-2:], mode="nearest"))
    cosine = F.normalize(masked, dim=1, eps=1e-6) @ F.normalize(text, dim=1, eps=1e-6).T
    heads = {head.name: head for head in model.losses.values()}
    scale = {name: heads[name].logit_scale.exp().clamp(max=100) for name in ("loss_tcl_image", "loss_tcl_feature")}
    negatives = ~torch.eye(size, dtype=torch.bool, device=images.device)
    area = pairs["area"]
    found = {
        "loss_tcl_image": info_nce(cosine * scale["loss_tcl_image"]),
        "loss_tcl_feature": info_nce(pairs["similarity"] * scale["loss_tcl_feature"]),
        "loss_area_pos": (area.diagonal().mean() - heads["loss_area_pos"].prior).abs(),
        "loss_area_neg": (area[negatives].mean() - heads["loss_area_neg"].prior).abs(),
        "loss_tv_image": embedding.diff(dim=2).abs().mean() + embedding.diff(dim=3).abs().mean(),
        "loss_tv_mask": pairs["variation"],
    }
    return {name: heads[name].weight * value for name, value in found.items()}
