"""The bundled model's tokenizer: byte-level BPE, so that any text goes in and comes out unchanged."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|end|>"
# Their ids are their indices.
SPECIAL_TOKENS = (END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)


def train_tokenizer(prose: Iterable[str], dialogue: Iterable[str], dialogue_weight: int = 8) -> Tokenizer:
    """Learns the merges.

    Args:
        prose: general text.
        dialogue: text of questions and answers, counted `dialogue_weight` times so that its words become whole tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*prose, *list(dialogue) * dialogue_weight], trainer)
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of one of the special tokens.

    Raises:
        ValueError: the tokenizer does not have it.
    """
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return token_id
