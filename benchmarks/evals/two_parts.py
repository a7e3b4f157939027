"""Attention of queries that continue a cache: one kernel with a shifted triangle, or two parts put together.

    python benchmarks/evals/two_parts.py     (a GPU)

Prints for some shapes the seconds of each way and how far each is from float32 attention with its mask
written out (relative norm, at a length where that fits).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

CUDNN = torch.ops.aten._scaled_dot_product_cudnn_attention


def shifted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One kernel, whichever takes the shifted triangle."""
    return scaled_dot_product_attention(
        query, key, value, attn_mask=causal_lower_right(query.shape[2], key.shape[2])
    )


def two_parts(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """All that was cached, and the rest under a causal mask, both by cuDNN."""
    cached = key.shape[2] - query.shape[2]
    before, before_sum = CUDNN(query, key[:, :, :cached], value[:, :, :cached], None, True)[:2]
    own, own_sum = CUDNN(query, key[:, :, cached:], value[:, :, cached:], None, True, 0.0, True)[:2]
    share = torch.sigmoid(before_sum - own_sum).reshape(*query.shape[:3], 1).to(query.dtype)
    return own + share * (before - own)


def main() -> None:
    """Measure."""
    torch.manual_seed(0)
    for heads, size, queries, keys in (
        (32, 128, 512, 4_096),
        (9, 64, 777, 4_001),
        (32, 128, 16_384, 131_072),
        (9, 64, 65_536, 131_072),
    ):
        query, key, value = (
            torch.randn(1, heads, count, size, device="cuda", dtype=torch.bfloat16)
            for count in (queries, keys, keys)
        )
        exact = None
        if keys < 10_000:
            seen = torch.ones(queries, keys, dtype=torch.bool, device="cuda").tril(keys - queries)
            exact = scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=seen)
        for way in (shifted, two_parts):
            try:
                print(
                    heads,
                    size,
                    queries,
                    keys,
                    way.__name__,
                    *report(way, query, key, value, exact),
                    flush=True,
                )
            except Exception as error:  # noqa: BLE001
                print(
                    heads,
                    size,
                    queries,
                    keys,
                    way.__name__,
                    type(error).__name__,
                    str(error)[:200],
                    flush=True,
                )


def report(
    way: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    exact: torch.Tensor | None,
) -> list[str]:
    """Milliseconds and error."""
    found = way(query, key, value)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(3):
        way(query, key, value)
    torch.cuda.synchronize()
    told = [f"{(time.perf_counter() - started) / 3 * 1e3:.2f} ms"]
    if exact is not None:
        told.append(f"off by {float((found.float() - exact).norm() / exact.norm()):.2e}")
    return told


if __name__ == "__main__":
    main()
