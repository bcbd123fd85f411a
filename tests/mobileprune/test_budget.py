"""Budgets as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobileprune.budget import Budget, Quantity, allowing, budgets_key, parse_budgets, shown
from mobileprune.errors import UsageError


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [
        ("12ms", "latency", 12.0),
        (" 1.5 s ", "latency", 1500.0),
        ("800us", "latency", 0.8),
        ("300MMACs", "macs", 3e8),
        ("0.3 GMACs", "macs", 3e8),
        ("1.5MParams", "params", 1.5e6),
        ("2MB", "size", 2e6),
        ("2MiB", "size", 2.0 * 2**20),
        ("64MBRAM", "memory", 64e6),
        (".5ms", "latency", 0.5),
    ],
)
def test_forms(text: str, quantity: str, value: float) -> None:
    budget = Budget.parse(text)
    assert (budget.quantity, budget.value, budget.relative) == (quantity, pytest.approx(value), False)
    assert budget.limit(base=123.0) == pytest.approx(value)


@given(st.floats(0.001, 100))
def test_a_share_is_of_the_base(percent: float) -> None:
    budget = Budget.parse(f"{percent:.6f}%")
    assert budget.limit(80.0) == pytest.approx(0.8 * percent, rel=1e-3)


@pytest.mark.parametrize(
    "text", ["12 parsecs", "ms", "", "12", "-3ms", "0ms", "0%", "101%", "1e3ms", "12ms;rm", "nan%"]
)
def test_what_is_no_budget_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError) as error:
        Budget.parse(text)
    assert repr(text) in str(error.value)


def test_one_budget_per_quantity() -> None:
    assert [b.text for b in parse_budgets(["12ms", "2MB"])] == ["12ms", "2MB"]
    with pytest.raises(UsageError, match="two budgets on latency: 12ms and 50%"):
        parse_budgets(["12ms", "50%"])


def test_key_does_not_depend_on_order_and_names_a_folder() -> None:
    assert budgets_key(parse_budgets(["50%", "2 MB"])) == budgets_key(parse_budgets(["2MB", "50%"])) == "2MB+50pct"


def test_shown_in_the_units_people_use() -> None:
    assert shown("latency", 12.345) == "12.3 ms"
    assert shown("macs", 3e8) == "300 MMACs"
    assert shown("size", 2.5e6) == "2.5 MB"


@given(value=st.floats(1e-3, 1e12), quantity=st.sampled_from(["latency", "macs", "params", "size", "memory"]))
def test_the_budget_that_allows_a_value_is_read_again_and_just_above_it(value: float, quantity: Quantity) -> None:
    asked = Budget.parse(allowing(quantity, value))
    assert asked.quantity == quantity
    assert value * (1 - 1e-9) <= asked.value <= value * 1.0101


def test_large_figures_are_shown_without_exponents() -> None:
    assert shown("macs", 2.05e9) == "2050 MMACs" and shown("latency", 1234.4) == "1234 ms"
    assert shown("latency", 999.7) == "1000 ms" and shown("latency", 999.2) == "999 ms"
