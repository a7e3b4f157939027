"""A SentencePiece BPE model (``tokenizer.model``) as a stock tokenizer with the same ids for every text.

Stock `transformers` turns such a file into a Llama tokenizer and takes Llama's settings for granted (a dummy
space first, byte fallback, no symbols of its own). Baichuan's remote tokenizer asks SentencePiece, which does
what the file says; so does the tokenizer made here. What has no exact counterpart is refused.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto, read here without
the `sentencepiece` package, since a dozen of its fields are all that is needed. Not as SentencePiece:

- special tokens written out in a text become those tokens, as in every tokenizer of `transformers`, and each
  text between them is encoded for itself, as slow tokenizers did;
- if the file asks for a dummy space first, a text that is nothing but one user-defined symbol gets none.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from skipwise.errors import InputError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its place. BPE joins the pair with the highest score first."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What of the file decides about ids."""

    pieces: tuple[Piece, ...]
    byte_fallback: bool
    unknown: int
    dummy_prefix: bool
    one_space: bool
    """Spaces at both ends are dropped, several become one (``remove_extra_whitespaces``)."""


def read_model(path: Path) -> SentencePieceModel:
    """The model in ``path``. Raises InputError when it is none, or one that no stock tokenizer can equal."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(_message(value)))
                score = struct.unpack("<f", _message(piece.get(2, bytes(4))))[0]
                pieces.append(Piece(_message(piece[1]).decode(), score, int(piece.get(3, NORMAL))))
            elif number == 2:
                trainer |= dict(_fields(_message(value)))
            elif number == 3:
                normalizer |= dict(_fields(_message(value)))
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise InputError(f"{path} is not a SentencePiece model, or is cut short") from error
    model = SentencePieceModel(
        pieces=tuple(pieces),
        byte_fallback=bool(trainer.get(35, 0)),
        unknown=int(trainer.get(40, 0)),
        dummy_prefix=bool(normalizer.get(3, 1)),
        one_space=bool(normalizer.get(4, 1)),
    )
    reason = _inexact(model, trainer, normalizer)
    if reason:
        raise InputError(
            f"{path}: {reason}, which no stock tokenizer does in just that way: move the file away to "
            "convert the weights alone"
        )
    return model


def make_tokenizer(
    model: SentencePieceModel, special: Sequence[str], *, bos: str | None = None, eos: str | None = None
) -> Tokenizer:
    """A tokenizer with the ids of ``model``; ``bos`` and ``eos`` are put around every text when given."""
    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=_merges(model.pieces),
            unk_token=model.pieces[model.unknown].text,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    symbols = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    tokenizer.normalizer = _normalizer(model, symbols)
    # Found after the spaces were replaced, as SentencePiece does it: some of them are runs of spaces.
    tokenizer.add_tokens([AddedToken(each, normalized=True) for each in symbols if each not in special])
    tokenizer.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in special])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    if bos or eos:
        template = [each for each in (bos, "$A", eos) if each]
        second = [f"{each.replace('$A', '$B')}:1" for each in template]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template,
            pair=[*template, *second],
            special_tokens=[(each, vocabulary[each]) for each in (bos, eos) if each],
        )
    return tokenizer


def _normalizer(model: SentencePieceModel, symbols: Sequence[str]) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.one_space:
        ends = rf"\A +|[ {SPACE}]+\z"
        steps += [normalizers.Replace(Regex(ends), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", SPACE))
    if model.dummy_prefix:
        # Symbols pass through here too, before they are looked for in texts: they must stay as they are.
        alone = "|".join(map(re.escape, symbols))
        start = rf"\A(?!(?:{alone})\z)(?=[\s\S])" if symbols else r"\A(?=[\s\S])"
        steps.append(normalizers.Replace(Regex(start), SPACE))
    return normalizers.Sequence(steps)


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, in the order in which SentencePiece would choose them."""
    normal = {piece.text for piece in pieces if piece.kind == NORMAL}
    ordered = sorted((piece for piece in pieces if piece.kind == NORMAL), key=lambda piece: -piece.score)
    return [
        (piece.text[:cut], piece.text[cut:])
        for piece in ordered
        for cut in range(1, len(piece.text))
        if piece.text[:cut] in normal and piece.text[cut:] in normal
    ]


def _inexact(
    model: SentencePieceModel, trainer: Mapping[int, int | bytes], normalizer: Mapping[int, int | bytes]
) -> str:
    """Why no stock tokenizer equals this model, or nothing."""
    texts = [piece.text for piece in model.pieces]
    if trainer.get(3, 1) != 2:
        return "it is not a BPE model"
    if normalizer.get(2):
        return "it rewrites characters before it encodes (a precompiled character map)"
    if not normalizer.get(5, 1) or trainer.get(24, 0):
        return "it treats spaces in an unusual way"
    if len(set(texts)) < len(texts) or any(piece.kind == UNUSED for piece in model.pieces):
        return "it has repeated or unused pieces"
    if model.one_space and any(SPACE in piece.text for piece in model.pieces if piece.kind == USER_DEFINED):
        return "it drops spaces and has symbols made of spaces"
    normal = {piece.text for piece in model.pieces if piece.kind == NORMAL}
    known = set(texts)
    whole = next((text for text in normal if any(letter not in known for letter in text)), None)
    return f"its piece {whole!r} has a character that is no piece" if whole else ""


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer: integers decoded, everything else as bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if place + size > len(message):
            raise ValueError("cut short")
        yield number, message[place : place + size]
        place += size
