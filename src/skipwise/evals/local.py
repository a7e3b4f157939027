"""A model whose weights lie here, as evaluations read it: long rows in pieces, shared prefixes once.

Neither logits nor attention masks of a long row are ever whole. The hidden states of a row pass the output
head some hundred tokens at a time. A row that does not fit on the GPU goes through the model in pieces, each
continuing the cache of keys and values; the pieces are halved until they fit. The result is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from skipwise.evals.reader import Tokens, common_prefix
from skipwise.models.attention import continue_caches
from skipwise.models.windows import decoder_of, windowed_layers
from skipwise.rope import text_config
from skipwise.scores import Subject

HEAD_TOKENS = 1_024
"""Tokens that pass the output head at a time: 0.5 GB of float32 logits for a vocabulary of 128k."""

TOKENS_AT_ONCE = {"cuda": 65_536, "cpu": 2_048}
"""Tokens of short rows in one forward pass, by device."""

MASKED_PAIRS = 2**27
"""Pairs of query and key in one piece where attention needs its mask written out: 0.3 GB in bfloat16."""


class LocalReader:
    """A `Reader` over a model in memory. ``piece``: tokens in one forward pass; None: as many as fit."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        subject: Subject | None = None,
        *,
        piece: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.subject = subject or Subject(name="model")
        self._device = next(model.parameters()).device
        self._piece = piece
        self._rows = TOKENS_AT_ONCE.get(self._device.type, 2_048)
        self._maskless = continue_caches(model)
        self._continues = _can_continue(text_config(model.config))
        self._plain_head: bool | None = None
        self._seen: list[int] = []  # the tokens whose keys and values the cache holds
        self._cache: DynamicCache | None = None

    def at_once(self, length: int) -> int:
        """As many rows as have the tokens of one full forward pass."""
        return max(1, self._rows // length)

    @torch.inference_mode()
    def losses(self, rows: Sequence[Tokens], first: int = 1) -> list[NDArray[np.float64]]:
        """See `Reader.losses`."""
        self.forget()
        tokens = torch.from_numpy(np.array(rows, dtype=np.int64)).to(self._device)
        return self._until_it_fits(lambda: self._losses(tokens, first))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Tokens], new_tokens: int) -> list[str]:
        """See `Reader.generate`. What a prompt shares with those before it is read once."""
        rows = [[int(token) for token in prompt] for prompt in prompts]
        found: dict[int, list[int]] = {}
        for group in self._read_together(rows):
            some = [rows[number] for number in group]
            answers = self._until_it_fits(lambda: self._generate(some, new_tokens))  # noqa: B023
            found |= dict(zip(group, answers, strict=True))
        return [
            str(self.tokenizer.decode(found[number], skip_special_tokens=True)) for number in range(len(rows))
        ]

    def _read_together(self, rows: list[list[int]]) -> list[list[int]]:
        """Numbers of rows that go through the model together.

        All, padded at their ends; only those of one length where windows, or states that pass from token to
        token, would count the padding.
        """
        numbers = list(range(len(rows)))
        if self._continues and not windowed_layers(decoder_of(self.model).config):
            return [numbers]
        lengths = sorted({len(row) for row in rows})
        return [[number for number in numbers if len(rows[number]) == length] for length in lengths]

    def forget(self) -> None:
        """Free the memory of the prefix that the next prompt might share."""
        self._seen, self._cache = [], None

    def _until_it_fits(self, work: Any) -> Any:
        """The result of ``work``, in pieces half as long after each time that the GPU's memory was full."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                self.forget()
                whole = self.subject.window or 2**20
                self._piece = (self._piece or whole) // 2
                if self._piece < 256 or not self._continues:
                    raise
            torch.cuda.empty_cache()

    def _losses(self, tokens: torch.Tensor, first: int) -> list[NDArray[np.float64]]:
        length = tokens.shape[1]
        found = []  # of each piece (B, scored tokens)
        for start, states, head in self._pieces(tokens):
            skip = max(first - 1 - start, 0)  # the state of token t - 1 predicts token t
            labels = tokens[:, start + 1 + skip : start + 1 + states.shape[1]]
            states = states[:, skip : length - 1 - start].flatten(0, 1).split(HEAD_TOKENS)
            if labels.numel():
                losses = [
                    torch.nn.functional.cross_entropy(head(part).float(), label, reduction="none")
                    for part, label in zip(states, labels.flatten().split(HEAD_TOKENS), strict=True)
                ]
                found.append(torch.cat(losses).view(labels.shape))
        return list(torch.cat(found, dim=1).double().cpu().numpy())

    def _pieces(self, tokens: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, Any]]:
        """Of each piece of the rows: the index of its first token, its states, and their way to logits."""
        if self._plain_head is None:
            self._plain_head = self._head_is_all(tokens[:1, :8])
        length = tokens.shape[1]
        step = self._step(length)
        if not self._plain_head and self._continues:
            step = min(step, HEAD_TOKENS)
        cache = self._new_cache() if step < length else None
        for start in range(0, length, step):
            inputs = self._inputs(tokens[:, start : start + step], cache, start)
            if self._plain_head:
                yield start, self.model.base_model(**inputs)[0], self.model.get_output_embeddings()
            else:  # the family scales or caps its logits: only the whole model knows how
                yield start, self.model(**inputs).logits, torch.nn.Identity()

    def _generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        lengths = [len(prompt) for prompt in prompts]
        shared = min(common_prefix(prompts), min(lengths) - 1) if self._continues else 0
        self._read_prefix(prompts[0][:shared])
        cache = self._cache if len(prompts) == 1 else _repeated(self._cache, len(prompts))
        cache = cache if cache is not None else self._new_cache()
        ends, found = self._end_tokens(), [list[int]() for _ in prompts]
        logits = self._read_prompts(prompts, cache, shared)
        length = torch.tensor(lengths, device=self._device)
        seen = (torch.arange(max(lengths), device=self._device) < length[:, None]).long()
        for number in range(new_tokens):
            chosen = logits.argmax(-1)
            for each, token in zip(found, chosen.tolist(), strict=True):
                if not (each and each[-1] in ends):
                    each.append(token)
            if number + 1 == new_tokens or all(each[-1] in ends for each in found):
                break
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            inputs = {"input_ids": chosen[:, None], "position_ids": length[:, None] + number}
            padded = {"attention_mask": seen} if len(set(lengths)) > 1 else {}
            logits = self.model(**inputs, **padded, past_key_values=cache, use_cache=True).logits[:, -1]
        if len(prompts) == 1 and self._continues:
            _crop(cache, shared)
        return [each[:-1] if each[-1] in ends else each for each in found]

    def _read_prompts(self, prompts: list[list[int]], cache: DynamicCache, start: int) -> torch.Tensor:
        """The logits ``(B, vocabulary)`` after each prompt; the cache holds their first ``start`` tokens.

        Prompts are padded at their ends: no token of them sees that.
        """
        longest = max(map(len, prompts))
        padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
        tokens = torch.tensor(padded, device=self._device)
        found: dict[int, torch.Tensor] = {}
        for first in range(start, longest, step := self._step(longest)):
            inputs = self._inputs(tokens[:, first : first + step], cache, first)
            ends_here = {
                row: len(prompt) - 1 - first
                for row, prompt in enumerate(prompts)
                if first < len(prompt) <= first + step
            }
            places = sorted(set(ends_here.values())) or [0]
            keep = torch.tensor(places, device=self._device)
            logits = self.model(**inputs, logits_to_keep=keep).logits
            found |= {row: logits[row, places.index(place)] for row, place in ends_here.items()}
        return torch.stack([found[row] for row in range(len(prompts))])

    def _read_prefix(self, tokens: list[int]) -> None:
        """Let the cache hold just ``tokens``; what it holds of them already is not read again."""
        keep = common_prefix([self._seen, tokens])
        if self._cache is None or not keep:
            self.forget()
        if not tokens:
            return
        self._cache = self._cache or self._new_cache()
        _crop(self._cache, keep)
        rows = torch.tensor([tokens], device=self._device)
        for start in range(keep, len(tokens), step := self._step(len(tokens))):
            self._seen = []  # not to be trusted if this fails half-way
            self.model.base_model(**self._inputs(rows[:, start : start + step], self._cache, start))
        self._seen = list(tokens)

    def _inputs(self, tokens: torch.Tensor, cache: DynamicCache | None, start: int) -> dict[str, Any]:
        positions = torch.arange(start, start + tokens.shape[1], device=self._device)[None]
        inputs: dict[str, Any] = {"input_ids": tokens, "position_ids": positions}
        if cache is None:
            inputs["attention_mask"] = torch.ones_like(tokens)
            return inputs | {"use_cache": False}
        return inputs | {"past_key_values": cache, "use_cache": True}

    def _step(self, length: int) -> int:
        """Tokens of a piece of rows of ``length``."""
        if not self._continues:
            return length
        step = min(self._piece or length, length)
        return step if self._maskless else min(step, max(MASKED_PAIRS // length, 128))

    def _new_cache(self) -> DynamicCache:
        """One that forgets nothing: layers with windows mask what they may not see."""
        return DynamicCache() if self._continues else DynamicCache(config=self.model.config)

    def _head_is_all(self, tokens: torch.Tensor) -> bool:
        """False for families that scale or cap their logits after the output head."""
        inputs = self._inputs(tokens, None, 0)
        head = self.model.get_output_embeddings()
        expected = head(self.model.base_model(**inputs)[0])
        return torch.allclose(self.model(**inputs).logits.float(), expected.float(), rtol=1e-3, atol=1e-3)

    def _end_tokens(self) -> set[int]:
        """Tokens that end an answer, by the model's generation config or its tokenizer."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = self.tokenizer.eos_token_id if ends is None else ends
        return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}


def _can_continue(config: PretrainedConfig) -> bool:
    """Whether a row can be read in pieces: attention only, and angles that do not depend on its length."""
    known = {"full_attention", "sliding_attention", "chunked_attention"}
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = rope and all(isinstance(each, dict) for each in rope.values())
    ropes = rope.values() if by_layer_type else [rope]
    return known.issuperset(getattr(config, "layer_types", None) or ()) and not any(
        _changes_with_length(each) for each in ropes
    )


def _changes_with_length(rope: dict[str, Any]) -> bool:
    """Types of RoPE whose frequencies depend on how long the row is."""
    kind = rope.get("rope_type", "default")
    return kind == "dynamic" or (kind == "longrope" and rope.get("short_factor") != rope.get("long_factor"))


def _crop(cache: DynamicCache, length: int) -> None:
    """Keep the first ``length`` tokens. (`DynamicCache.crop` means other things in other versions.)"""
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            continue
        if layer.keys.numel():
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


def _repeated(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """A copy of a cache of one row, for several rows that begin with it."""
    if cache is None:
        return None
    copy: Any = DynamicCache()
    for number, layer in enumerate(cache.layers):
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        copy.update(layer.keys.repeat(rows, 1, 1, 1), layer.values.repeat(rows, 1, 1, 1), number)
    found: DynamicCache = copy
    return found
