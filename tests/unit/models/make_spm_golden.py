"""Write spm_golden.json: small SentencePiece models and the ids `sentencepiece` gives for odd texts.

    pip install sentencepiece==0.2.3 && python tests/unit/models/make_spm_golden.py

The first is made as Baichuan2's report says (BPE, byte fallback, nothing normalized, no dummy space, digits
apart, pieces made of spaces), the second with SentencePiece's defaults for spaces.
"""

import base64
import io
import json
import random
from pathlib import Path

import sentencepiece

WORDS = ["for", "key", "in", "table", "hello", "world", "return", "12345", "naïve", "été", "aabab", "abab"]
WORDS += ["数据", "模型", "长文本", "窗口", "日本語", "мир"]
PARTS = [
    *"ab c  def\t\n\r▁0129数据é<>/s_rveunk語.,",
    "<reserved_1>",
    "<reserved_10>",
    "</",
    "<0x0A>",
    "    ",
    "aab",
]
PARTS += [
    "\U0001f600",
    "\u0301",
    "\x00",
    "\u200d",
    "\u3000",
    "\u00a0",
    "\ufeff",
    "\u0661",
    "\ud7a3",
    "\U000e0001",
]
SYMBOLS = ["<reserved_1>", "<reserved_10>", "<reserved_2>"]
KINDS = {
    "plain": {
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": [*SYMBOLS, "▁▁", "▁▁▁▁"],
    },
    "spaced": {"byte_fallback": True, "user_defined_symbols": SYMBOLS},
}


def main():
    rng = random.Random(0)

    def sentence():
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 9)))

    corpus = [sentence() for _ in range(2000)]
    odd = [
        "",
        " ",
        "  a ",
        "\n",
        "\n\n \n",
        "数据 模型",
        "    return",
        "a\tb",
        "<reserved_1>a<reserved_10>",
        "12 345",
    ]
    odd += ["".join(rng.choice(PARTS) for _ in range(rng.randint(0, 24))) for _ in range(120)]
    odd += [sentence() for _ in range(20)]
    odd = [text for text in dict.fromkeys(odd) if text.strip() not in SYMBOLS]  # see the docstring of spm.py
    golden = {"sentencepiece": sentencepiece.__version__, "texts": odd, "models": {}}
    for kind, options in KINDS.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="bpe",
            vocab_size=420,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            split_digits=True,
            minloglevel=2,
            **options,
        )
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        golden["models"][kind] = {
            "file": base64.b64encode(model.getvalue()).decode(),
            "ids": [processor.encode(text) for text in odd],
            "decoded": [processor.decode(processor.encode(text)) for text in odd],
        }
    Path(__file__).with_name("spm_golden.json").write_text(json.dumps(golden, indent=None) + "\n")


if __name__ == "__main__":
    main()
