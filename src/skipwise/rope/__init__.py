"""Interpolation: a model config with a longer window, written in terms stock `transformers` understands.

With base ``b``, rotary size ``d``, frequencies ``theta_j = b^(-2j/d)`` and ``alpha = target / window``:

- ``linear`` (Chen et al. 2023, arXiv 2306.15595): positions divided by alpha;
- ``ntk`` (bloc97 2023): base multiplied by ``alpha^(d / (d - 2))``, so the highest frequency stays and the
  lowest is divided by alpha; stock `transformers` has no type for it, a new ``rope_theta`` says the same;
- ``abf`` (Xiong et al. 2023, arXiv 2309.16039): another base, option ``rope_theta``;
- ``yarn`` (Peng et al. 2023, arXiv 2309.00071): frequencies that turn often in the window kept, slow ones
  divided by alpha, a ramp between, cos and sin scaled by ``0.1 ln(alpha) + 1``;
- ``ntk-by-parts``: the same frequencies, cos and sin not scaled;
- ``pose-yarn`` (Zhu et al. 2023, arXiv 2309.10400): ``theta_j / ((1 - g_j) alpha + g_j)``, ``g_j`` the share
  that YaRN's ramp keeps; YaRN itself has ``theta_j ((1 - g_j) / alpha + g_j)``. Scaled as YaRN;
- ``llama3`` (Llama 3.1): kept, divided and blended by wavelength; options ``low_freq_factor`` (1),
  ``high_freq_factor`` (4) and ``factor`` (alpha);
- ``longrope`` (Ding et al. 2024, arXiv 2402.13753): given divisors of each frequency, options ``long_factor``
  and ``short_factor`` (the same list unless given: `transformers` chooses between them by the longest row of
  a batch, so two lists mean that a row's angles depend on its neighbours);
- ``none``: only the window changes.

**A model that is scaled already** was trained with those frequencies up to its window: alpha counts from
that window, ramps and blends from the original one. linear, yarn and llama3 over their own kind multiply the
factors (YaRN 4 over 8k, from 32k to 128k, is YaRN 16 over 8k); ntk, abf and none change nothing but the base
or the window. Any other pair becomes the product of both slowings, a ``longrope`` divisor for each frequency,
and the factors on cos and sin are multiplied too. The same form says in Phi-3's config, which has no other
type, what the rest say in theirs.

**Parameters by layer type** (Gemma 3, OLMo 3): layers with a window keep theirs, since no distance inside the
window is new to them. Where one set serves all layers (gpt-oss, Mistral) all are scaled.

Left out on purpose: ``dynamic``, whose frequencies depend on the longest row seen, so that rows of the train
length would be taught frequencies that the target length never uses. Where only a part of a head rotates,
`transformers` scales cos and sin of that part only; DeepSeek's ``mscale`` and ``mscale_all_dim`` of 1
(options of ``yarn``) scale the whole product of query and key.

    reading   what a config says: window, parameters by layer type, frequencies
    scaling   the methods
    extend    the new config, or the reason why not
    legacy    the same for older readers
"""

from skipwise.rope.extend import extend_rope
from skipwise.rope.legacy import attention_scale_for_vllm, legacy_rope_keys
from skipwise.rope.reading import frequencies, model_window, rotary_share, rotary_size, text_config

__all__ = [
    "attention_scale_for_vllm",
    "extend_rope",
    "frequencies",
    "legacy_rope_keys",
    "model_window",
    "rotary_share",
    "rotary_size",
    "text_config",
]
