"""The meta-architectures: TCL, and MaskCLIP (CLIP's own dense features) as its baseline."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from ..drawing import draw_text
from .grounder import Grounder, Sim2Mask
from .losses import Grounding, build_losses, gather
from .micro_batches import in_parts
from .pairs import pair_statistics, total_variation
from .segmentor import Encoded, ZeroShotSegmentor

_TEXTS_AT_ONCE = 64


@META_ARCH_REGISTRY.register()
class MaskCLIP(ZeroShotSegmentor):
    """Dense CLIP: similarities of CLIP's own last values and the texts (Zhou et al., ECCV 2022). Nothing is trained."""

    def encode(self, images: Tensor) -> Encoded:
        depth = len(self.clip.blocks) - 1
        features = self.dense_clip_features(self.clip.trunk(images, depth), depth, self.clip.grid(images))
        return Encoded(images, features)

    def masks(self, encoded: Encoded, text: Tensor) -> Tensor:
        masks = self.dense_clip_masks(encoded.clip_features, text)
        # Enlarged as TCL's decoder does, so that refinement works at the same resolution for both.
        masks = F.interpolate(masks, scale_factor=4.0, mode="bilinear", align_corners=False)
        return masks if self.pamr is None else self.pamr(encoded.images, masks)


@META_ARCH_REGISTRY.register()
class TCL(ZeroShotSegmentor):
    """Text-grounded contrastive learning (Cha et al., CVPR 2023)."""

    @configurable
    def __init__(
        self,
        *,
        freeze: int,
        losses: Sequence[nn.Module],
        decoder_blocks: int = 2,
        sim2mask: Sim2Mask | None = None,
        kp_weight: float = 0.3,
        train_last_blocks: bool = False,
        micro_batch: int = 0,
        checkpoint_masked: bool = False,
        vis_period: int = 0,
        **zero_shot,
    ):
        """
        Args:
            freeze: blocks of the image encoder that are shared and frozen; the rest is copied.
            losses: loss heads (see losses.py).
            decoder_blocks: doublings of the masks' resolution.
            sim2mask: None for the paper's initial values.
            kp_weight: share of CLIP's own masks at inference (knowledge preservation); 0 for none.
            train_last_blocks: whether the copied blocks train from the start, rather than only the rest.
            micro_batch: images whose activations are held at once in training; 0 for all.
            checkpoint_masked: whether to compute the frozen encoder's pass over the masked image twice, block by block,
                rather than hold its activations.
            vis_period: iterations between pictures of masks; 0 for none.
            zero_shot: the arguments of ZeroShotSegmentor.

        Raises:
            ValueError: a number out of its range; names the config key.
        """
        super().__init__(**zero_shot)
        if not 0 <= kp_weight <= 1:
            raise ValueError(f"TEST.ZERO_SHOT.KP_WEIGHT is a share in 0..1, not {kp_weight}.")
        if micro_batch < 0:
            raise ValueError(f"SOLVER.MICRO_BATCH must be a number of images, or 0 for all of them, not {micro_batch}.")
        if decoder_blocks < 0:
            raise ValueError(f"MODEL.TCL.DECODER_BLOCKS must be at least 0, not {decoder_blocks}.")

        self.freeze = freeze
        self.grounder = Grounder(self.clip, freeze, decoder_blocks)
        self.sim2mask = sim2mask or Sim2Mask()
        self.losses = nn.ModuleDict({type(head).__name__: head for head in losses})
        self.kp_weight = kp_weight
        self.micro_batch = micro_batch
        self.checkpoint_masked = checkpoint_masked
        self.vis_period = vis_period
        self.train_last_blocks(train_last_blocks)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        tcl = cfg.MODEL.TCL
        return {
            **super().from_config(cfg),
            "freeze": tcl.FREEZE,
            "losses": build_losses(cfg),
            "decoder_blocks": tcl.DECODER_BLOCKS,
            "sim2mask": Sim2Mask(tcl.SIM_SCALE_INIT, tcl.SIM_BIAS_INIT, tcl.GUMBEL_TAU),
            "kp_weight": cfg.TEST.ZERO_SHOT.KP_WEIGHT,
            "train_last_blocks": tcl.UNFREEZE_ITER == 0,
            "micro_batch": cfg.SOLVER.MICRO_BATCH,
            "checkpoint_masked": tcl.CHECKPOINT_MASKED,
            "vis_period": cfg.VIS_PERIOD,
        }

    def train_last_blocks(self, train: bool) -> None:
        """Frees or freezes the copied last blocks: the second or the first stage of the schedule."""
        self.grounder.blocks.requires_grad_(train)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """In training, `image` [3, H, W] (RGB, 0..255, one size for the batch) with `caption` (str) or `tokens`
        (int [context]) -> weighted losses by name. In inference see ZeroShotSegmentor.forward."""
        if not self.training:
            return super().forward(batched_inputs)
        images, tokens = self.normalize_images([one["image"] for one in batched_inputs]), self._tokens(batched_inputs)
        losses = self.compute_losses(images, tokens)
        if self.vis_period > 0 and has_event_storage() and get_event_storage().iter % self.vis_period == 0:
            picture = self._draw(images, tokens, [one.get("caption", "") for one in batched_inputs])
            get_event_storage().put_image("image, mask of its text, mask of another, caption", picture)
        return losses

    def _tokens(self, batched_inputs: list[dict]) -> Tensor:
        if all("tokens" in one for one in batched_inputs):
            return torch.stack([one["tokens"] for one in batched_inputs]).to(self.device)
        if all("caption" in one for one in batched_inputs):
            return self.tokenizer([one["caption"] for one in batched_inputs]).to(self.device)
        raise ValueError("Training needs a 'caption' (str) or 'tokens' (Tensor[context]) with every image.")

    def compute_losses(self, images: Tensor, tokens: Tensor, uniform: Tensor | None = None) -> dict[str, Tensor]:
        """
        Args:
            images: normalised, [B, 3, H, W], of whole patches.
            tokens: int [B, context]; text i belongs to image i.
            uniform: noise of the hard masks [B, 1, h, w] in (0, 1), to repeat a step exactly; None draws it.

        Returns:
            the weighted losses by name.
        """
        grounding = self.ground(images, tokens, uniform)
        return {head.name: head(grounding) for head in self.losses.values()}

    def ground(self, images: Tensor, tokens: Tensor, uniform: Tensor | None = None) -> Grounding:
        """What the losses need of a batch; arguments as compute_losses.

        With `micro_batch`, the activations of so many images are held at once. Losses are over what remains of each
        image, so they and their gradients are those of the undivided batch.
        """
        text = gather(self.encode_text(tokens))
        first = comm.get_rank() * len(images)
        needs = sorted({field for head in self.losses.values() for field in head.needs})
        if uniform is None:
            size = [side * self.grounder.scale for side in self.clip.grid(images)]
            uniform = self.sim2mask.noise((len(images), 1, *size), images.device)

        def some(images: Tensor, matching: Tensor, uniform: Tensor) -> list[Tensor]:
            found = self._ground_some(images, text, matching, uniform, needs)
            return [found[field] for field in needs]

        batch = images, text[first : first + len(images)], uniform
        if 0 < self.micro_batch < len(images):
            parts = list(zip(*(whole.split(self.micro_batch) for whole in batch)))
            trained = [p for p in (*self.grounder.parameters(), *self.sim2mask.parameters()) if p.requires_grad]
            values = in_parts(some, parts, trained)
        else:
            values = some(*batch)
        return Grounding(text, first, **dict(zip(needs, values)))

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens int [N, context] -> embeddings fp32 [N, D], not normalised."""
        return torch.cat([self.clip.encode_text(some).float() for some in tokens.split(_TEXTS_AT_ONCE)])

    def _ground_some(
        self, images: Tensor, text: Tensor, matching: Tensor, uniform: Tensor, needs: Collection[str]
    ) -> dict[str, Tensor]:
        """The needed fields of a Grounding for some images and the embeddings [B, D] of their own texts."""
        embedding = self.pixel_embedding(images)
        found = pair_statistics(embedding, text, self.sim2mask, needs)
        if "embedding_variation" in needs:
            found["embedding_variation"] = total_variation(embedding).mean(1)
        if "mean_embedding" in needs:
            found["mean_embedding"] = embedding.mean((2, 3))
        if "masked_image" in needs:
            masks = self.sim2mask.hard(self.sim2mask.matching(embedding, matching), uniform)
            masked = images * F.interpolate(masks, size=images.shape[-2:], mode="nearest")
            found["masked_image"] = self.clip.encode_image(masked, self.checkpoint_masked)
        return found

    def pixel_embedding(self, images: Tensor) -> Tensor:
        """The grounder's pixel embeddings fp32 [B, D, h, w] of normalised images [B, 3, H, W] of whole patches."""
        with torch.no_grad():
            tokens = self.clip.trunk(images, self.freeze)
        return self.grounder(tokens, self.clip.grid(images)).float()

    def encode(self, images: Tensor) -> Encoded:
        grid = self.clip.grid(images)
        tokens = self.clip.trunk(images, self.freeze)
        features = self.dense_clip_features(tokens, self.freeze, grid) if self.kp_weight > 0 else None
        return Encoded(images, features, self.grounder(tokens, grid))

    def masks(self, encoded: Encoded, text: Tensor) -> Tensor:
        masks = torch.sigmoid(self.sim2mask(encoded.embedding, text))
        if self.pamr is not None:
            masks = self.pamr(encoded.images, masks)
        if self.kp_weight > 0:
            kept = self.dense_clip_masks(encoded.clip_features, text)
            kept = F.interpolate(kept, size=masks.shape[-2:], mode="bilinear", align_corners=False)
            masks = self.kp_weight * kept + (1 - self.kp_weight) * masks
        return masks

    @torch.no_grad()
    def _draw(self, images: Tensor, tokens: Tensor, captions: Sequence[str], count: int = 4) -> np.ndarray:
        """RGB uint8 [3, count*H, ...]: images, under the masks of their own and of another text, and captions."""
        images = images[:count]
        soft = torch.sigmoid(self.sim2mask(self.pixel_embedding(images), self.encode_text(tokens[: count + 1])))
        rows = []
        for i, (image, masks) in enumerate(zip(images * self.pixel_std + self.pixel_mean, soft)):
            pair = torch.stack([masks[i], masks[(i + 1) % len(masks)]])[:, None]
            pair = F.interpolate(pair, size=image.shape[-2:], mode="nearest")
            row = torch.cat([image, *(image * (0.2 + 0.8 * mask) for mask in pair)], dim=-1)
            row = row.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
            rows.append(np.concatenate([row, draw_text(captions[i], len(row), 260)], axis=1))
        return np.concatenate(rows).transpose(2, 0, 1)
