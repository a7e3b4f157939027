"""A tokenizer, a text and two small question sets in the formats of SQuAD and HotpotQA."""

import json

import pytest
from transformers import AutoTokenizer

from skipwise.demo.corpus import held_out_documents
from skipwise.evals.ruler.generator import Generator


@pytest.fixture(scope="session")
def tokenizer(demo_base):
    return AutoTokenizer.from_pretrained(demo_base)


@pytest.fixture(scope="session")
def text():
    return held_out_documents()[:4]


@pytest.fixture(scope="session")
def squad(tmp_path_factory):
    """Five articles of four paragraphs; every paragraph has a question with an answer and one without."""
    articles = []
    for article in range(5):
        paragraphs = [
            {
                "context": f"The river of town {article}-{part} is called Ober{article}{part}. "
                + "It rains. " * 9,
                "qas": [
                    {"question": "Who?", "is_impossible": True, "answers": []},
                    {
                        "question": f"What is the river of town {article}-{part}?",
                        "is_impossible": False,
                        "answers": [{"text": f"Ober{article}{part}"}] * 2
                        + [{"text": f"the Ober{article}{part}"}],
                    },
                ],
            }
            for part in range(4)
        ]
        articles.append({"title": str(article), "paragraphs": paragraphs})
    path = tmp_path_factory.mktemp("squad") / "dev-v2.0.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def hotpotqa(tmp_path_factory):
    """Forty questions with two paragraphs each, every paragraph in the context of two questions."""
    paragraphs = [
        [f"Town {number}", [f"The river of town {number} is called Unter{number}.", " It is wet." * 5]]
        for number in range(40)
    ]
    rows = [
        {
            "question": f"What is the river of town {number}?",
            "answer": f"Unter{number}",
            "context": [paragraphs[number], paragraphs[number - 1]],
        }
        for number in range(40)
    ]
    path = tmp_path_factory.mktemp("hotpot") / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def generator(tokenizer, text, squad, hotpotqa):
    return Generator(tokenizer, text, squad=squad, hotpotqa=hotpotqa)
