"""Rules of the user: what they tie, and which contradict each other."""

from __future__ import annotations

import pytest

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.units import Rules, make_units
from dmt_plugin.plan.tower_plan import FeatureSpec

FEATURES = [FeatureSpec("a", ("x",)), FeatureSpec("b", ("x",)), *(FeatureSpec(n, (f"t.{n}",)) for n in "cdef")]


def test_units_of_tables_and_of_the_user() -> None:
    found = make_units(FEATURES, Rules(pin={"b": 1}, together=[["c", "e"], ["e", "f"]], apart=[["a", "d", "f"]]), 3)
    assert [u.names for u in found.units] == [("a", "b"), ("c", "e", "f"), ("d",)]
    assert [u.pin for u in found.units] == [1, None, None]
    assert set(found.apart) == {(0, 1), (0, 2), (1, 2)}
    assert not Rules() and Rules(pin={"a": 0})


def test_a_name_twice_in_apart_is_told() -> None:
    with pytest.raises(PlanError, match=r"dmt\.partition\.apart names \['a'\] more than once"):
        make_units([FeatureSpec(n, (n,)) for n in "abc"], Rules(apart=[["a", "a"]]), 2)


def test_groups() -> None:
    found = make_units(FEATURES, Rules(groups={"item": ["a", "b"], "user": ["c"]}), 3)
    assert [u.group for u in found.units] == ["item", "user", "others", "others", "others"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(pin={"a": 0, "b": 1}), "'a' in tower 0 and 'b' in tower 1, .*'a' and 'b' share the table 'x'"),
        (
            Rules(pin={"a": 0, "d": 1}, together=[["b", "c"], ["c", "d"]]),
            "share the table 'x'; .*together keeps 'b' and 'c' together; .*together keeps 'c' and 'd' together",
        ),
        (Rules(apart=[["a", "b"]]), "apart keeps 'a' and 'b' apart, .*share the table 'x'"),
        (Rules(apart=[["c", "d"]], pin={"c": 2, "d": 2}), "'c' and 'd' apart, but .*pin puts 'c' and 'd' in tower 2"),
        (Rules(apart=[["c", "d"]], together=[["d", "c"]]), "'c' and 'd' apart, .*together keeps"),
        (Rules(groups={"g": ["a"], "h": ["b"]}), "'a' is in the group 'g' and 'b' in 'h'"),
        (Rules(groups={"g": ["a", "c"], "h": ["c"]}), r"names the features \['c'\] more than once"),
        (Rules(pin={"z": 0}), "pin names the feature 'z', which the model does not have"),
        (Rules(together=[["a", "z"]]), "together names the feature 'z'"),
        (Rules(pin={"a": 3}), r"'a' in tower 3; with 3 towers they are 0\.\.2"),
    ],
)
def test_contradictions_name_the_pair(rules: Rules, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_units(FEATURES, rules, 3)
