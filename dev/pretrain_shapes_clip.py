#!/usr/bin/env python
"""Pre-train the small world's CLIP from random weights, on scenes and their captions, with open_clip's model and loss.

This made the weights in tcl_d2/assets/shapes_clip. It draws its scenes from another seed than prepare_shapes.py, so
neither TCL nor the evaluation sees them again. It can be stopped and started again.

    python dev/pretrain_shapes_clip.py --output output/shapes_clip
"""

import argparse
import math
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from tcl_d2.data.shapes import draw_scene
from tcl_d2.utils.files import replacing
from tcl_d2.utils.tensors import save_tensors

ASSETS = Path(__file__).resolve().parent.parent / "tcl_d2/assets/shapes_clip"
SEED = 1_000_003  # not a seed of prepare_shapes.py
HELD_OUT = 2000  # pairs that are not trained on
WARM_UP = 150  # steps
PLAIN = 0.3  # share of scenes on a blank ground: the image-level loss shows CLIP masked pictures
MEAN, STD = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255  # as TCL normalizes


def _draw(index: int) -> tuple[np.ndarray, str]:
    scene = draw_scene(SEED, index, plain=PLAIN)
    return scene.image, scene.caption


def draw_pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw scenes; return images uint8 [count, 3, S, S] and tokens int16 [count, context]."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer(ASSETS / "bpe.txt.gz", context_length=32)
    with Pool() as pool:
        pairs = list(tqdm(pool.imap(_draw, range(count), chunksize=256), "drawing", count, mininterval=5))
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
    return images, tokenizer([caption for _, caption in pairs]).short()


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Normalize RGB images in 0..255, [B, 3, S, S]."""
    mean, std = (torch.tensor(x, dtype=torch.float32, device=images.device).view(3, 1, 1) for x in (MEAN, STD))
    return (images - mean) / std


def random_flip(images: torch.Tensor) -> torch.Tensor:
    """Flip each image along each axis with a probability of a half."""
    for axis in (-1, -2):
        flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(flip, images.flip(axis), images)
    return images


@torch.no_grad()
def retrieval_accuracy(model, images: torch.Tensor, tokens: torch.Tensor, batch: int = 100) -> float:
    """Return the share of images, in percent, whose caption has the highest score among `batch` captions."""
    model.eval()
    hits = 0
    for image, token in zip(images.split(batch), tokens.split(batch)):
        logits, _ = model.get_logits(normalize(image), token.long())
        hits += (logits.argmax(1) == torch.arange(len(image), device=logits.device)).sum().item()
    model.train()
    return 100 * hits / len(images)


def build_optimizer(model: torch.nn.Module, lr: float, steps: int) -> tuple[AdamW, LambdaLR]:
    """Return AdamW, without weight decay for norms and biases, and its schedule: a warm-up, then a cosine."""
    decay = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    no_decay = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=lr, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        warm_up = min(1, (step + 1) / WARM_UP)
        return warm_up * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))

    return optimizer, LambdaLR(optimizer, factor)


class Training:
    """A CLIP with its optimizer and schedule, which is saved now and then, and goes on from there."""

    def __init__(self, folder: Path, steps: int, lr: float, device: str):
        """Build the model with random weights, or go on from the folder's checkpoint.

        Args:
            folder: of the checkpoint.
            steps: in all.
            lr: the largest learning rate.
            device: of the model.
        """
        torch.manual_seed(SEED)
        open_clip.add_model_config(ASSETS / "model.json")
        self.model = open_clip.create_model("model", device=device)
        self.optimizer, self.schedule = build_optimizer(self.model, lr, steps)
        self.clip_loss = ClipLoss()

        # Go on from the checkpoint
        self.path = folder / "last.pth"
        self.num_done = 0
        if self.path.exists():
            state = torch.load(self.path, map_location=device, weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.num_done = state["step"]
            print(f"going on from step {self.num_done} of {self.path}")

    def _parts(self) -> dict[str, torch.nn.Module | AdamW | LambdaLR]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def save(self) -> None:
        """Write the checkpoint."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        with replacing(self.path) as unfinished:
            torch.save({**states, "step": self.num_done}, unfinished)

    def run_step(self, images: torch.Tensor, tokens: torch.Tensor) -> str:
        """Train on pairs, images uint8 [B, 3, S, S] and tokens [B, context]; return how well they go together."""
        image, text, scale = self.model(normalize(random_flip(images.float())), tokens.long())
        loss = self.clip_loss(image, text, scale)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.model.logit_scale.data.clamp_(0, math.log(100))
        self.num_done += 1

        # Say how well
        is_right = (scale * image @ text.T).argmax(1).eq(torch.arange(len(image), device=image.device))
        accuracy = 100 * is_right.float().mean().item()
        return f"loss {loss.item():.3f} batch accuracy {accuracy:.1f}% scale {scale.item():.1f}"


def train(training: Training, images: torch.Tensor, tokens: torch.Tensor, steps: int, batch_size: int) -> None:
    """Train on random batches of pairs until all steps are done.

    Args:
        training: goes on.
        images: uint8 [N, 3, S, S].
        tokens: int16 [N, context].
        steps: in all.
        batch_size: pairs of a step.
    """
    start, start_time = training.num_done, time.perf_counter()
    generator = torch.Generator().manual_seed(SEED + start)
    for step in range(start + 1, steps + 1):
        batch = torch.randint(len(images), (batch_size,), generator=generator).to(images.device)
        message = training.run_step(images[batch], tokens[batch])

        if step % 20 == 0:
            minutes_left = (time.perf_counter() - start_time) / (step - start) * (steps - step) / 60
            print(f"step {step}/{steps} {message}, {minutes_left:.0f} min left", flush=True)
        if step % 100 == 0 or step == steps:
            training.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/shapes_clip"))
    parser.add_argument("--scenes", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    # Draw the pairs, and hold some out
    images, tokens = (tensor.to(args.device) for tensor in draw_pairs(args.scenes))
    held_out, images = images[:HELD_OUT], images[HELD_OUT:]
    held_out_tokens, tokens = tokens[:HELD_OUT], tokens[HELD_OUT:]

    training = Training(args.output, args.steps, args.lr, args.device)
    train(training, images, tokens, args.steps, args.batch)

    # Test, and write the weights
    accuracy = retrieval_accuracy(training.model, held_out, held_out_tokens)
    print(f"held-out scenes: {accuracy:.1f}% find their caption among 100")
    weights = {name: tensor.half().contiguous() for name, tensor in training.model.state_dict().items()}
    save_tensors(args.output / "weights.safetensors", weights)
    print(f"written: {args.output / 'weights.safetensors'}; copy it to {ASSETS} to use it")


if __name__ == "__main__":
    main()
