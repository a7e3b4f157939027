"""Variable tracking against the rules of the official variable_tracking.py."""

import re

import pytest

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ASSIGNED = re.compile(r"VAR (\w+) = (?:VAR (\w+) |(\d{5}))")


def split(sample):
    example, question = sample.prompt.split("\n\nMemorize and track", 1)
    return example.removeprefix("Memorize and track"), question


def lines_of(part):
    return part.split("following text.\n\n")[1].split("\nQuestion:")[0].split("\n")


@pytest.mark.parametrize("length", [999, 2000, 4096])
@pytest.mark.parametrize("index", range(4))
def test_a_chain_of_four_hops_after_a_solved_example(tokenizer, generator, length, index):
    sample = generator.sample("vt", length, 2, index)
    values = []
    for part, letters in zip(split(sample), (3, 5), strict=True):
        lines = lines_of(part)
        chain = [line for line in lines if line != NOISE]
        names = [ASSIGNED.fullmatch(line).group(1) for line in chain]
        assert len(set(names)) == 5
        assert all(re.fullmatch(rf"[A-Z]{{{letters}}}", name) for name in names)
        # in order: the value first, then each name from the one before it
        value = ASSIGNED.fullmatch(chain[0]).group(3)
        assert [ASSIGNED.fullmatch(line).group(2) for line in chain[1:]] == names[:-1]
        assert 10_000 <= int(value) < 99_999
        values.append(value)
        # between lines of noise, one at least between any two and after the last
        places = [number for number, line in enumerate(lines) if line != NOISE]
        assert all(later - place > 1 for place, later in zip(places, [*places[1:], len(lines)], strict=True))
        asked = f"Question: Find all variables that are assigned the value {value} in the text above."
        prefix = (
            " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are "
            f"assigned the value {value}, they are: "
        )
        if letters == 3:
            assert part.endswith(f"{asked}{prefix} {' '.join(names)}")
            most = min(500, length // 4)
            tokens = len(tokenizer(sample.prompt.split(" " + names[0] + " " + names[1])[0])["input_ids"])
            noise = len(tokenizer(NOISE + "\n")["input_ids"])
            assert tokens > most - 1.5 * noise
            assert tokens <= most or lines.count(NOISE) == 5  # the fewest possible
        else:
            assert part.endswith(asked + prefix)
            assert sample.answer_prefix == prefix
            assert tuple(names) == sample.answers
    assert values[0] != values[1]


def test_the_chain_stands_anywhere(generator):
    first, last = [], []
    for index in range(40):
        lines = lines_of(split(generator.sample("vt", 3000, 0, index))[1])
        places = [number for number, line in enumerate(lines) if line != NOISE]
        first.append(places[0] / len(lines))
        last.append(places[-1] / len(lines))
    assert min(first) < 0.03
    assert max(first) > 0.3
    assert min(last) < 0.7
    assert max(last) > 0.95
