"""Families: which routes they hold, nested where they say so, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from dynkern import routes
from dynkern.allocation.families import check_family, make_routes, parse_budgets, random_order


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1..12", list(range(1, 13))),
        ("1,3,6", [1, 3, 6]),
        ("2..12:2", [2, 4, 6, 8, 10, 12]),
        ("6..L:3", [6, 9, 12]),
        ("L", [12]),
        ("6, 1..3, 2", [1, 2, 3, 6]),
    ],
)
def test_budgets(text, expected):
    assert parse_budgets(text, 12) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "13", "1..13", "3..1", "1..4:0", "a", "1-4", "1,,2", "-1", "1.5", "²"]
)
def test_bad_budgets(text):
    with pytest.raises(ValueError, match="budgets: got") as caught:
        parse_budgets(text, 12)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["uniform", "early-exit", "random", "greedy"])
def test_nested_families_end_with_the_full_route(family):
    order = [5, 0, 3, 1, 2, 4] if family == "greedy" else None
    made = make_routes(family, 6, seed=3, order=order)
    assert made.budgets == [1, 2, 3, 4, 5, 6] and made.names == ("1", "2", "3", "4", "5", "6")
    assert routes.is_nested(torch.tensor(made.keep))
    assert all(made.keep[-1])
    if family == "uniform":
        assert made.keep[3] == tuple(routes.uniform(6, 4).tolist())
    if family == "greedy":
        assert [made.keep[0][5], made.keep[1][0], made.keep[2][3]] == [True] * 3


def test_even_takes_divisors():
    made = make_routes("even", 12)
    assert made.budgets == [1, 2, 3, 4, 6, 12]
    assert made.keep[3] == tuple(routes.uniform_even(12, 4).tolist())
    with pytest.raises(ValueError, match="divisor"):
        make_routes("even", 12, "5")


def test_the_full_route_comes_on_top_of_any_budgets():
    assert make_routes("uniform", 12, "2,4").names == ("2", "4", "12")


def test_the_random_order_hangs_on_the_seed():
    assert random_order(12, 1) == random_order(12, 1) != random_order(12, 2)
    assert sorted(random_order(12, 1)) == list(range(12))


def test_routes_from_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"ends": "100001", "middle": [2, 3]}))
    made = make_routes(f"file:{tmp_path}/a.json", 6)
    assert made.budgets == [2, 2, 6] and set(made.names) == {"ends", "middle", "6"}
    (tmp_path / "b.csv").write_text("name,route\nall,111111\none,010000\n")
    made = make_routes(f"file:{tmp_path}/b.csv", 6)
    assert made.names == ("one", "all") and made.keep[0] == (False, True, *[False] * 4)
    assert make_routes(f"file:{tmp_path}/b.csv", 6, "6").names == ("all",)
    (tmp_path / "c.json").write_text(json.dumps(["110000", [0]]))
    assert make_routes(f"file:{tmp_path}/c.json", 6).names == ("r1", "r0", "6")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.json", "[", "broken JSON"),
        ("a.json", "3", "no list or object"),
        ("a.json", "[]", "holds no route"),
        ("a.json", '["11"]', "expected 6 of 0 and 1"),
        ("a.json", '["000000"]', "runs no layer"),
        ("a.json", "[[6]]", "layers from 0 to 5"),
        ("a.json", "[[true]]", "layers from 0 to 5"),
        ("a.json", "[7]", "layers from 0 to 5"),
        ("a.csv", "x,111111,3\n", "not name,route"),
        ("a.csv", "x,111110\nx,110000\n", "names 'x' twice"),
        ("a.csv", "6,111110\n", "'6' stands for two routes"),
        ("a.csv", '"x,111110\n', "broken CSV"),
        ("a.json", '{"x": "111110", "x": "110000"}', "a name occurs twice"),
        ("a.txt", "111111", "extension '.txt'"),
    ],
)
def test_bad_files(tmp_path, name, content, named):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=named) as caught:
        make_routes(f"file:{tmp_path}/{name}", 6)
    assert "\n" not in str(caught.value)


def test_unknown_families():
    with pytest.raises(ValueError, match="family: got 'even-more', expected one of uniform"):
        check_family("even-more")
    with pytest.raises(ValueError, match="family: got 'file:'"):
        check_family("file:")
    with pytest.raises(FileNotFoundError, match="no file"):
        make_routes("file:absent.json", 6)
    with pytest.raises(ValueError, match="order: got None"):
        make_routes("greedy", 6)
