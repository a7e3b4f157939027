import pytest

from skipwise.evals.ruler.scoring import EFFECTIVE, EFFECTIVE_BASE, effective_length, score


@pytest.mark.parametrize(
    ("task", "prediction", "answers", "value"),
    [
        ("niah_single_1", " 1234567.", ("1234567",), 1.0),
        ("niah_single_1", " 1234568.", ("1234567",), 0.0),
        ("niah_single_1", "", ("1234567",), 0.0),
        ("niah_multivalue", "1111111, 3333333", ("1111111", "2222222", "3333333", "4444444"), 0.5),
        ("niah_multiquery", "x 4444444 y", ("1111111", "2222222", "3333333", "4444444"), 0.25),
        ("vt", "abcde fghij", ("ABCDE", "FGHIJ", "KLMNO", "PQRST", "UVWXY"), 0.4),
        ("cwe", "1. apple 2. Pear", ("pear", "plum"), 0.5),
        ("cwe", "category", ("cat",), 1.0),  # anywhere, as in the benchmark
        ("fwe", "\n\x00abc\x1fdef\t", ("abc", "def", "xyz"), 2 / 3),
        ("niah_single_3", "one\ttwo", ("one\ntwo",), 1.0),  # every control character becomes a line break
        ("qa_1", "It was Denver.", ("Denver", "the Denver Broncos"), 1.0),
        ("qa_1", "denver", ("Boston", "DENVER"), 1.0),
        ("qa_2", "maybe", ("yes",), 0.0),
        ("qa_2", "Yes, it is", ("yes",), 1.0),
    ],
)
def test_golden_scores(task, prediction, answers, value):
    assert score(task, prediction, answers) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "length"),
    [
        ({}, None),
        ({4096: 0.847, 8192: 0.799}, None),  # LongChat in the paper's table: <4K
        (
            {4096: 0.955, 8192: 0.938, 16384: 0.916, 32768: 0.874, 65536: 0.847, 131072: 0.770},
            32768,
        ),  # Llama-3.1
        ({4096: 0.881, 8192: 0.855, 16384: 0.845}, 4096),  # InternLM2.5
        ({4096: 0.967, 131072: 0.944}, 131072),
        ({8192: 0.80, 4096: 0.9, 16384: 0.86}, 16384),  # not monotone: the largest that reaches it
        ({4096: 0.856}, 4096),
        ({4096: 0.856 - 1e-15}, 4096),
        ({4096: 0.8559}, None),
    ],
)
def test_effective_length(scores, length):
    assert effective_length(scores) == length


def test_base_models_have_their_own_threshold():
    assert (EFFECTIVE, EFFECTIVE_BASE) == (0.856, 0.794)
    assert effective_length({4096: 0.8, 8192: 0.79}, EFFECTIVE_BASE) == 4096
