"""Samplers by name: the registry, the options each class takes, and mixtures as people write them."""

from typing import get_args

import numpy as np
import pytest

from skipwise.config import SamplerName
from skipwise.data.balanced import Balanced
from skipwise.data.cream import Cream
from skipwise.data.mixture import Mixture
from skipwise.data.samplers import SAMPLERS, make_sampler, title
from skipwise.data.skips import Contiguous, FullLength, PoSE, RandPos


def test_names_of_recipes():
    assert {name: kind.__name__ for name, kind in SAMPLERS.items()} == {
        "pose": "PoSE",
        "randpos": "RandPos",
        "contiguous": "Contiguous",
        "full-length": "FullLength",
        "cream": "Cream",
        "balanced": "Balanced",
    }
    assert get_args(SamplerName) == tuple(SAMPLERS)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("pose", PoSE(13, 37, 3, "aligned")),
        ("balanced", Balanced(13, 37, 3, "aligned")),
        ("randpos", RandPos(13, 37)),
        ("contiguous", Contiguous(13, 37)),
        ("full-length", FullLength(13, 37)),
        ("cream", Cream(13, 37)),
    ],
)
def test_options_go_where_they_belong(name, sampler):
    assert make_sampler(name, 13, 37, chunks=3, content="aligned") == sampler
    assert make_sampler(name, 13, 37) == type(sampler)(13, 37)


def test_headroom_is_for_pose_alone():
    for name in SAMPLERS:
        assert make_sampler(name, 13, 37, headroom=5).target_length == (42 if name == "pose" else 37)


def test_a_mixture():
    mixture = Mixture((PoSE(13, 42, 3, "aligned"), Contiguous(13, 37)), (0.8, 0.2))
    for written in ("pose:0.8,contiguous:0.2", "pose:.8, contiguous:2e-1"):
        assert make_sampler(written, 13, 37, chunks=3, content="aligned", headroom=5) == mixture
    assert make_sampler("cream:1", 13, 37) == Mixture((Cream(13, 37),), (1.0,))


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (PoSE(13, 37), "PoSE"),
        (FullLength(13, 37), "Full-length"),
        (Cream(13, 37), "CREAM"),
        (Balanced(13, 37), "Balanced"),
        (Mixture((PoSE(13, 37), Contiguous(13, 37)), (0.93, 0.07)), "93 % PoSE, 7 % Contiguous"),
        (
            Mixture((PoSE(13, 37), Contiguous(13, 37), PoSE(13, 37, 2, "aligned")), (0.3, 0.5, 0.2)),
            "50 % PoSE, 50 % Contiguous",
        ),
        (Mixture((PoSE(13, 37), PoSE(13, 37, 2, "aligned")), (0.3, 0.7)), "PoSE"),
    ],
)
def test_titles(sampler, words):
    assert title(sampler) == words


NAMES = "must be one of pose, randpos, contiguous, full-length, cream, balanced, or a mixture of them"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prose", f"sampler = 'prose': {NAMES}"),
        ("", f"sampler = '': {NAMES}"),
        ("pose,contiguous", f"sampler = 'pose,contiguous': {NAMES}"),
        ("pose:0.8,prose:0.2", f"sampler = 'prose': {NAMES}"),
        *(
            (name, f"sampler = {name!r}: must be written as pose:0.8,contiguous:0.2")
            for name in ("pose:", "pose:half", "pose:0.8,contiguous", "pose:0.8,", "pose:0.5:0.5")
        ),
        ("pose:0.8,contiguous:0.3", "weights = (0.8, 0.3): must sum to 1, not 1.1"),
        ("pose:1,contiguous:nan", "weights = (1.0, nan): must be finite and larger than 0"),
        (
            "pose:0.8,full-length:0.2",
            "samplers = PoSE of 13, FullLength of 37 tokens a row: must have one row length",
        ),
    ],
)
def test_errors_name_field_value_and_rule(name, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 -- the whole message is compared
        make_sampler(name, 13, 37)
    assert str(error.value) == words


@pytest.mark.parametrize("name", [*SAMPLERS, "pose:0.5,cream:0.25,randpos:0.25"])
def test_the_contract_of_a_sampler(name):
    sampler = make_sampler(name, 13, 37)
    shortest, longest = sampler.passage_length
    assert sampler.row_length <= shortest <= longest <= sampler.target_length == 37
    row = sampler.sample(np.arange(longest + 3), np.random.default_rng(0))
    assert row.position_ids.shape == row.token_ids.shape == (sampler.row_length,)
    assert row.position_ids[-1] < 37
