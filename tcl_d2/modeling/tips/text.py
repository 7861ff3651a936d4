"""TIPSv2's text tower and its tokenizer, both on transformers."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from ...utils.downloads import local_weights
from ...utils.errors import expect
from ..encoders.renaming import rename_weights
from ..encoders.transformers import import_transformers as import_library
from ..encoders.weights import load_weights

import_transformers = partial(import_library, "TIPSv2", (5, 14))
PADDING = 0  # the token's number
_CONTEXT = 64
_FILES = ("tokenizer.json", "tokenizer.model")  # transformers' own, and SentencePiece's, as the release has it
_PREFIX = "text_encoder."  # of the text tower's weights in the hub's file
_BLOCK = "transformer.resblocks."
_NAMES = (  # the release's and transformers', see rename_weights
    ("token_embedding.*", "embeddings.token_embedding.*"),
    (f"{_BLOCK}#.ln_#.*", "encoder.layers.#.layer_norm#.*"),
    (f"{_BLOCK}#.attn.in_proj_*", "encoder.layers.#.self_attn.?_proj.*"),
    (f"{_BLOCK}#.attn.out_proj.*", "encoder.layers.#.self_attn.out_proj.*"),
    (f"{_BLOCK}#.mlp.c_fc.*", "encoder.layers.#.mlp.fc1.*"),
    (f"{_BLOCK}#.mlp.c_proj.*", "encoder.layers.#.mlp.fc2.*"),
    ("ln_final.*", "final_layer_norm.*"),
)

# ------------------------------------------------------------------------------------ tower


def build_text_tower(width: int, depth: int, hidden: int, heads: int, vocab_size: int) -> nn.Module:
    """Build transformers' Tipsv2TextModel with random weights.

    Args:
        hidden: width of the hidden layers of its MLPs.
    """
    transformers = import_transformers()
    expected = f"a divisor of the text tower's width, {width}"
    expect(heads > 0 and width % heads == 0, "MODEL.TIPS.TEXT_HEADS", heads, expected)
    config = transformers.Tipsv2TextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=_CONTEXT,
    )
    return transformers.Tipsv2TextModel(config)


def load_text_tower(state: Mapping[str, Tensor], heads: int, source: str) -> nn.Module:
    """Build the text tower of a state dict, the release's or the hub's, whose other weights are left out.

    Raises:
        ValueError: it has no text tower, or not all of one; names `source`.
    """
    state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name.startswith(("token_embedding.", _BLOCK, "ln_final."))}
    first = state.get(f"{_BLOCK}0.mlp.c_fc.weight")
    if first is None or "token_embedding.weight" not in state:
        raise ValueError(
            f"MODEL.TIPS.TEXT: '{source}' has no text tower of TIPSv2: expected the weights token_embedding.weight and "
            f"{_BLOCK}*, as in the release's files ..._text.npz, or the same behind {_PREFIX}, as on the hub"
        )

    # All sizes but the heads are those of the weights
    vocab_size, width = state["token_embedding.weight"].shape
    depth = len({name.split(".")[2] for name in state if name.startswith(_BLOCK)})
    tower = build_text_tower(width, depth, len(first), heads, vocab_size)
    load_weights(tower, rename_weights(state, _NAMES), f"MODEL.TIPS.TEXT: '{source}' is no whole text tower")
    return tower


# ------------------------------------------------------------------------------------ tokenizer


class TIPSTokenizer:
    """TIPSv2's tokenizer, by transformers: texts in lower case, without tokens for start and end.

    Attributes:
        context_length: tokens of a text at most; shorter ones are padded by PADDING.
    """

    context_length = _CONTEXT

    def __init__(self, folder: str | Path):
        """Read the tokenizer of a folder that has tokenizer.json or, which needs sentencepiece, tokenizer.model.

        Raises:
            ValueError, RuntimeError: it cannot be read, or what reads it is not installed; says what is needed.
        """
        transformers = import_transformers()
        try:
            self._tokenizer = transformers.Tipsv2Tokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # many types, of several readers
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"MODEL.TIPS.TOKENIZER: '{folder}' has no tokenizer that transformers reads ({reason}). A "
                "tokenizer.model of SentencePiece needs the package: pip install sentencepiece"
            ) from None
        self.vocab_size = self._tokenizer.vocab_size

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize N texts: int64 [N, 64]."""
        texts = [text.lower() for text in texts]
        size = {"padding": "max_length", "truncation": True, "max_length": _CONTEXT}
        return self._tokenizer(texts, **size, return_tensors="pt")["input_ids"].to(torch.int64)


def find_tokenizer(name: str) -> Path:
    """Return the folder of a tokenizer: a folder, a file tokenizer.model or its address, or a model on the hub.

    Raises:
        OSError: there is none, or it could not be downloaded; says what is needed.
    """
    if Path(name).name in _FILES:
        folder = Path(local_weights("MODEL.TIPS.TOKENIZER", name)).parent
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        folder = _download(name)
    if not any((folder / file).is_file() for file in _FILES):
        raise FileNotFoundError(f"MODEL.TIPS.TOKENIZER: '{name}' has neither {' nor '.join(_FILES)}")
    return folder


def _download(name: str) -> Path:
    patterns = ["tokenizer*", "special_tokens_map.json"]
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        except OSError:
            return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many types
        raise OSError(
            f"MODEL.TIPS.TOKENIZER: there is no folder '{name}', and the hub's model of that name is not in the local "
            f"cache and could not be downloaded ({type(error).__name__}). Run once where the network reaches the hub "
            "and keep its cache (HF_HOME), or give the release's tokenizer.model: MODEL.TIPS.TOKENIZER "
            "/path/tokenizer.model"
        ) from None
