"""How many tokens a text really has, so that none is cut off at the end of a model's context.

open_clip's tokenizers cut in silence. Some put the end-of-text token back at the cut and some models are read where it stands, but
either way the model has not seen the sentence. Here the tokens are counted before anything is cut.
"""

from collections.abc import Sequence
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, basic_clean, canonicalize_text

from autoft.config import ModelConfig
from autoft.errors import DataError, ModelError
from autoft.models.load import Tokenizer

_SHOWN = 3


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The tokenizer of a study's model, without its weights. Raises ModelError if the model is unknown or has none."""
    where = f"model.name = {config.name!r}"
    try:
        known = open_clip.get_model_config(config.name) is not None
        if known:
            tokenizer: Tokenizer = open_clip.get_tokenizer(config.name)
            return tokenizer
    except Exception as error:  # files that are not there or damaged, a Hub that is not reached, libraries that are not installed
        lines = str(error).strip().splitlines()
        raise ModelError(f"{where}: its tokenizer cannot be loaded: {lines[0][:300] if lines else type(error).__name__}") from None
    raise ModelError(f"{where} is no open_clip model")


def context_length(tokenizer: Tokenizer) -> int:
    """The most tokens a text may have, start and end counted; open_clip's default where the tokenizer has none of its own."""
    own: int | None = getattr(tokenizer, "context_length", None)
    return own or int(open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)


def token_count(tokenizer: Tokenizer, text: str) -> int:
    """Tokens of a text as the tokenizer would give them to the model, start, end and class tokens counted, nothing cut.

    Raises:
        ModelError: a tokenizer that is none of open_clip's.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2  # start and end of text
    if not isinstance(tokenizer, HFTokenizer | SigLipTokenizer):
        raise ModelError(f"the tokens of a {type(tokenizer).__name__} cannot be counted; known are open_clip's tokenizers")
    inner: Any = tokenizer.tokenizer
    if isinstance(tokenizer, SigLipTokenizer):
        return len(inner(canonicalize_text(basic_clean(text)), truncation=False).input_ids)
    if tokenizer.tokenizer_mode == "clips":  # which adds start, end and class itself
        return len(inner(tokenizer.clean_fn(text), add_special_tokens=False, truncation=False).input_ids) + 3
    return len(inner(tokenizer.clean_fn(text), truncation=False).input_ids)


def check_lengths(
    tokenizer: Tokenizer, sentences: Sequence[Sequence[str]], names: Sequence[str], field: str = "data.descriptions"
) -> None:
    """Check that every sentence fits into the model's context.

    Args:
        sentences: (classes, any number each); names: (classes,), for the message.

    Raises:
        DataError: naming field, class, sentence, its length and the limit, for the first few that do not fit.
    """
    limit = context_length(tokenizer)
    lengths = [(name, text, token_count(tokenizer, text)) for name, texts in zip(names, sentences, strict=True) for text in texts]
    long = [f"{name}: {text!r} has {count}" for name, text, count in lengths if count > limit]
    if long:
        rest = f"; and {len(long) - _SHOWN} more" if len(long) > _SHOWN else ""
        raise DataError(
            f"{field}: {len(long)} of {len(lengths)} sentences do not fit into the model's context of {limit} tokens (start and end "
            f"counted) and would be cut: {'; '.join(long[:_SHOWN])}{rest}"
        )
