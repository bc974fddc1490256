"""dynkern explain: parts that add up, predictions from what rows ran, and fitting words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynkern.cli import main
from dynkern.cost import CostModel, LayerTimes, PassCount
from dynkern.evaluation import explain as module
from dynkern.evaluation.explain import Case, Explainer, Option, Parts, parts_of
from dynkern.evaluation.explain_report import advice, sentences
from dynkern.llm import LLM
from dynkern.policies import policy
from support.opt import save_opt

NUM_LAYERS = 6
pytestmark = pytest.mark.usefixtures("brief_windows")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("opt")
    save_opt(place)
    return place


@pytest.fixture(scope="module")
def llm(directory):
    return LLM(directory)


def found(llm, spec, **options):
    sizes = {"batch_size": 4, "prompt_tokens": 5, "new_tokens": 6, "repeat": 1}
    case = Case(policy(spec), spec, **(sizes | options))
    return Explainer(llm, case).measure(lambda done, total, label: None)


@pytest.fixture(scope="module")
def base(llm):
    return found(llm, "uniform:3")


def test_parts_add_up_to_the_possible_time():
    model = CostModel(
        fixed=LayerTimes((1, 4), (5.0, 6.0)),
        layer=LayerTimes((1, 4), (2.0, 3.0)),
        fill=LayerTimes((1, 4), (0.5, 0.8)),
        head=LayerTimes((1, 4), (4.0, 4.5)),
    )
    count = PassCount(4, (4, 1, 0), fill_rows=(0, 3, 4), head_rows=4)
    parts = parts_of(model, [count, count], lambda c: 1.5)
    assert parts == Parts(
        fixed=6.0,
        weights=4.0,
        rows=1.0,
        fill=pytest.approx(0.7 + 0.8),
        heads=4.5,
        attention=1.5,
    )
    assert parts.total == pytest.approx(model.pass_time(count))


def test_planned_rows_that_differ(llm):
    result = found(llm, "random:3")
    mine, *others = result.options
    assert (mine.name, mine.batch_size, mine.mean_layers) == ("random:3", 4, 3.0)
    assert 3.0 < mine.union <= NUM_LAYERS
    by_name = {option.name: option for option in others}
    assert list(by_name) == ["1 rows", "2 rows", "8 rows", "cohorts", "uniform:3"]
    assert by_name["1 rows"].union == by_name["uniform:3"].union == 3.0
    assert by_name["8 rows"].union >= by_name["2 rows"].union
    assert by_name["cohorts"].union <= mine.union
    assert all(option.mean_layers == 3.0 for option in result.options)
    assert result.full_parts.fill == result.parts.fill == 0
    assert result.full_parts.total > 0 and result.num_layers == NUM_LAYERS
    assert any("shared weights: a row runs 3.0 of 6" in said for said in sentences(result))


def test_token_policies_fill_and_ask_heads(llm):
    result = found(llm, "confidence:top_prob=0.0001,exits=2")
    # whoever leaves does without the final head
    assert result.parts.fill > 0 and result.parts.heads == 0
    stays = found(llm, "confidence:top_prob=1.0,exits=2")
    assert stays.parts.fill == 0 and stays.parts.heads > 0
    assert [o.name for o in result.options[1:]] == ["1 rows", "2 rows", "8 rows", "uniform:3"]
    deferred = found(llm, "stochastic:0.5", kv_fill="deferred", batch_size=1)
    assert deferred.options[0].mean_layers < NUM_LAYERS


def test_words_follow_the_parts(base):
    quiet = replace(
        base,
        parts=Parts(0.1, 0.9, 0.0, 0.0, 0.0, 0.0),
        full_parts=Parts(0.1, 1.9, 0.0, 0.0, 0.0, 0.0),
        efficiency=0.9,
        judged=replace(base.judged, realisation=0.99),
    )
    (only,) = sentences(quiet)
    assert only.startswith("reading weights: 90% of the pass")
    heavy = replace(
        quiet,
        parts=Parts(0.3, 0.3, 0.2, 0.1, 0.1, 0.1),
        full_parts=Parts(0.3, 0.9, 0.3, 0.0, 0.0, 0.1),
        efficiency=0.2,
        judged=replace(base.judged, realisation=0.7),
    )
    said = [sentence.split(":")[0] for sentence in sentences(heavy)]
    assert said == [
        *("LM head", "arithmetic", "attention", "K/V fill"),
        *("exit heads", "launches", "between the parts"),
    ]
    assert "the speed-up would be 5.0" in sentences(heavy)[0]


def test_advice_names_what_pays(base):
    mine = Option("random:3", 4, 3.0, 5.0, 100.0, 1.1)
    better = [
        (Option("cohorts", 4, 3.0, 3.0, 150.0, 1.6), "sorting rows into cohorts: 1.50 x"),
        (Option("8 rows", 8, 3.0, 6.0, 130.0, 1.0), "the same policy with 8 rows: 1.30 x"),
        (Option("uniform:3", 4, 3.0, 3.0, 120.0, 1.6), "most would pay uniform:3: 1.20 x"),
    ]
    for option, words in better:
        assert words in advice(replace(base, options=[mine, option]))
    small = replace(mine, name="8 rows", tokens_per_second=104.0)
    assert "none of these" in advice(replace(base, options=[mine, small]))


def test_command(directory, capsys, monkeypatch):
    monkeypatch.setattr(module, "COUNTED_TOKENS", 3)
    arguments = "--policy random:2 --batch-size 2 --prompt-tokens 4 --new-tokens 4 --repeat 1"
    assert main(["explain", "--model", str(directory), *arguments.split()]) == 0
    out = capsys.readouterr().out
    for words in ("possible time of a pass", "speed-up of decoding", "what would pay", "cohorts"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--policy nonsense", "policy"),
        ("--policy random:9", "random budget: got 9, expected 1 to 6"),
        ("--policy full --batch-size 0", "batch_size: got 0, expected 1 or more"),
        ("--policy full --new-tokens 1", "new_tokens: got 1, expected 2 or more"),
        ("--policy full --prompt-tokens 0", "prompt_tokens: got 0, expected 1 or more"),
        ("--policy full --prompt-tokens 900", "too long"),
        ("--policy full --repeat 0", "repeat: got 0, expected 1 or more"),
        ("--policy full --kv-fill guess", "kv_fill: got 'guess'"),
        ("--policy full --seed -1", "seed: got -1"),
    ],
)
def test_bad_input_is_one_line(directory, capsys, arguments, words):
    assert main(["explain", "--model", str(directory), *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
