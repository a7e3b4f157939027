import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipwise.evals.ruler.recipe import Draft, Recipe, largest_size


def recipe(smallest, largest=None, weight=float):
    return Recipe(smallest, lambda size: Draft("", "", ()), largest, weight)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=80),
    st.integers(1, 5),
    st.integers(1, 60),
    st.integers(0, 300),
)
def test_the_largest_size_is_found_whatever_the_units_cost(costs, smallest, fixed, room):
    tokens = fixed + np.cumsum(costs)  # of sizes smallest, smallest + 1, ...
    budget = int(tokens[0]) + room
    largest = smallest + len(costs) - 1
    found = largest_size(recipe(smallest, largest), lambda size: int(tokens[size - smallest]), budget)
    assert found == smallest + int((tokens <= budget).sum()) - 1


@pytest.mark.parametrize("budget", [4096, 131_072, 1_048_576])
@pytest.mark.parametrize("unit", [1.3, 21, 150])
def test_few_sizes_are_counted_and_those_that_fit_in_rising_order(unit, budget):
    counted = []

    def count(size):
        counted.append(size)
        return 700 + int(unit * size)

    size = largest_size(recipe(1), count, budget)
    assert count(size) <= budget < count(size + 1)
    fitting = [each for each in counted[:-2] if 700 + int(unit * each) <= budget]
    assert fitting == sorted(fitting)
    assert len(counted[:-2]) <= 6
    assert sum(700 + unit * each for each in counted[:-2]) < 4.5 * budget


def test_a_weight_makes_the_search_short():
    counted = []

    def count(size):
        counted.append(size)
        return 1000 + size**3

    assert largest_size(recipe(1, weight=lambda size: float(size**3)), count, 10**9) == 999
    with_weight = len(counted)
    assert largest_size(recipe(1), count, 10**9) == 999
    assert with_weight <= 4 < (len(counted) - with_weight) / 2
