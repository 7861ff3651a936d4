"""Work on checkpoints: describe, convert, strip, compare, write a folder for the hub."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from ..checkpoint import TCLCheckpointer, read_checkpoint, to_official
from ..checkpoint.card import carried_activation, carried_config, find_value
from ..checkpoint.hub import portable_config, write_folder
from ..checkpoint.model_config import model_config
from ..config import load_config, merge_options
from ..utils.errors import named, one_message
from ..utils.files import check_output, replacing
from ..utils.tensors import save_tensors

TOLERANCE = 1e-5
PARTS = {"clip.": "frozen CLIP", "grounder.": "grounder", "sim2mask.": "grounder", "losses.": "losses' scales"}
PARTS |= {"head.": "dense head", "kp_head.": "dense head"}


def describe(path: Path) -> None:
    """Print a checkpoint's card and content."""
    checkpoint = read_checkpoint(str(path))

    # Print the card
    state = checkpoint.pop("model")
    card = checkpoint.pop("card", None) or {"card": "none: not written by tcl_d2"}
    for key, text in card.items():
        print(f"{key}: {text}" if "\n" not in text else f"{key}:\n  " + text.strip().replace("\n", "\n  "))
    if isinstance(checkpoint.get("iteration"), int):
        print(f"iterations: {checkpoint['iteration'] + 1}")

    # Count parameters
    sizes, dtypes = Counter(), Counter()
    for name, value in state.items():
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "other")
        sizes[part] += value.numel()
        dtypes[str(value.dtype).removeprefix("torch.")] += 1
    print("parameters: " + ", ".join(f"{part} {size:,}" for part, size in sizes.items()))
    print("weights: " + ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()))
    print(f"beside the model: {', '.join(sorted(map(str, checkpoint))) or 'nothing'}")
    print(f"file: {path.stat().st_size / 1e6:,.1f} MB")


def count_frozen(checkpoint: dict[str, Any], path: Path, given: int | None) -> int:
    """Return a checkpoint's MODEL.TCL.FREEZE by its blocks, as given, or by its configuration."""
    prefixes = ("clip.model.visual.transformer.resblocks.", "grounder.blocks.")
    of_clip, of_grounder = (
        {name.removeprefix(prefix).split(".")[0] for name in checkpoint["model"] if name.startswith(prefix)}
        for prefix in prefixes
    )
    if of_clip:
        num_frozen = len(of_clip) - len(of_grounder)
        if given not in (None, num_frozen):
            raise ValueError(f"--freeze is {given}, but the checkpoint has {num_frozen} frozen blocks: leave it out")
        return num_frozen

    # Without CLIP's blocks, somebody has to say it
    if given is not None:
        return given
    freeze = find_value(carried_config(checkpoint, str(path)) or {}, "MODEL.TCL.FREEZE")
    if isinstance(freeze, int):
        return freeze
    raise ValueError("the checkpoint does not say how many blocks were frozen: give --freeze (11 for ViT-B/16)")


def stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict without the frozen CLIP and the losses; ValueError if that is all of it."""
    kept = {name: value for name, value in state.items() if not name.startswith(("clip.", "losses."))}
    if not kept:
        raise ValueError("--strip would leave nothing: this model, such as a GroupViT, has no frozen CLIP beside it")
    return kept


def convert(source: Path, target: Path, layout: str, strip: bool, freeze: int | None) -> None:
    """Write a checkpoint in another layout ("ours", "official") or format, and print what is left out."""
    checkpoint = read_checkpoint(str(source))
    state, card = checkpoint["model"], checkpoint.get("card") or {}

    # Choose what to write
    written = {"card": card}
    if strip:
        state = stripped(state)
    elif layout == "ours" and target.suffix == ".pth":
        written = checkpoint
    if layout == "official":
        if carried_activation(checkpoint, str(source)) == "GELU":
            raise ValueError("the official code builds its CLIP with QuickGELU, but this checkpoint's has GELU")
        state, written = to_official(state, count_frozen(checkpoint, source, freeze)), {}

    # Write it
    if target.suffix == ".safetensors":
        tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        save_tensors(target, tensors, {"card": json.dumps(card)})
    else:
        with replacing(target) as unfinished:
            torch.save({**written, "model": state}, unfinished)

    lost = sorted(map(str, checkpoint.keys() - written.keys() - {"model"}))
    print(f"{target}: {len(state)} weights, {target.stat().st_size / 1e6:,.1f} MB")
    if lost:
        print(f"left out: {', '.join(lost)}")


def write_hub(source: Path, folder: Path, strip: bool, cfg: CfgNode) -> None:
    """Write a checkpoint as a folder for the hub, and print the next steps."""
    checkpoint = read_checkpoint(str(source))
    state = stripped(checkpoint["model"]) if strip else checkpoint["model"]
    cfg = portable_config(cfg, state)

    load_model(cfg, source)  # weights that do not fit are said before anything is written
    write_folder(folder, state, cfg, checkpoint.get("card") or {})
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}, {size / 1e6:,.1f} MB")
    print(f"TCLPredictor.from_pretrained('{folder}') takes it; to publish it: hf upload OWNER/NAME '{folder}'")


def find_config(args: argparse.Namespace, *paths: Path) -> CfgNode:
    """Return the configuration of --config-file, or of the first checkpoint that carries one, under --opts."""
    if args.config_file:
        cfg = load_config(args.config_file)
    else:
        configs = {path: carried_config(read_checkpoint(str(path)), str(path)) for path in paths}
        path, carried = next((item for item in configs.items() if item[1] is not None), (None, None))
        if carried is None:
            raise ValueError("no checkpoint here carries its configuration: give --config-file")
        with named(f"--config-file is missing, and the configuration that '{path}' carries cannot be used"):
            cfg = model_config(carried, path.parent)

    merge_options(cfg, args.opts)
    return cfg


def load_model(cfg: CfgNode, path: Path) -> nn.Module:
    """Build a model on the CPU, and load a checkpoint; a new model, as checkpoints need not have all weights."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    TCLCheckpointer(model).load(str(path))
    return model


@torch.no_grad()
def outputs(cfg: CfgNode, path: Path) -> dict[str, Tensor]:
    """Return text embeddings and masks of a checkpoint for the same random input."""
    model = load_model(cfg, path)

    # Draw the input
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 100, (3, model.clip.model.context_length), generator=generator)
    image = torch.randn(1, 3, 2 * cfg.TEST.ZERO_SHOT.CROP_SIZE // 3, cfg.TEST.ZERO_SHOT.CROP_SIZE, generator=generator)

    text = model.clip.encode_text(tokens)
    return {"text embeddings": text, "masks": model.crop_masks(*model.encode_crops(image), text)}


def check(paths: list[Path], cfg: CfgNode) -> bool:
    """Print how far the outputs of two checkpoints differ; return whether they are the same."""
    first, second = (outputs(cfg, path) for path in paths)
    differences = {name: (first[name] - second[name]).abs().max().item() for name in first}
    for name, difference in differences.items():
        print(f"{name}: largest difference {difference:.2g}")
    return all(difference <= TOLERANCE for difference in differences.values())


def check_arguments(args: argparse.Namespace) -> None:
    """Check that the arguments go together; ValueError says what does not."""
    if args.check and args.output is None:
        raise ValueError("--check compares two files: give the other one too")
    if args.hub and (args.output or args.check or args.to != "ours"):
        raise ValueError("--hub FOLDER says where to write to: give it without an output, --check and --to")
    if args.output is not None and args.output.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"the output's name must end in .pth or .safetensors, not '{args.output.suffix}'")
    if args.output is not None and args.output.exists() and not args.check:
        raise ValueError(f"there is a file {args.output} already: give another name, or --check to compare the two")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    with one_message():
        check_arguments(args)
        if args.check:
            paths = [args.input, args.output]
            sys.exit(0 if check(paths, find_config(args, *paths)) else "the two differ")
        elif args.hub:
            write_hub(args.input, args.hub, args.strip, find_config(args, args.input))
        elif args.output is None:
            describe(args.input)
        else:
            check_output(args.output)
            convert(args.input, args.output, args.to, args.strip, args.freeze)
