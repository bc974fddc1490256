"""ROUGE F1 against values worked out by hand."""

from __future__ import annotations

import pytest

from dynkern.evaluation.rouge import METRICS, score
from support.errors import one_line_error


def test_by_hand():
    # 3 of 4 words in common, in order; of 3 bigrams "the cat"
    got = score("the cat sat down", ["the cat has sat"])
    assert got == pytest.approx({"rouge1": 3 / 4, "rouge2": 1 / 3, "rougeL": 3 / 4})
    # 2 of 2 words found in 4: precision 1, recall 1/2
    got = score("the cat", ["The cat sat down."])
    assert got == pytest.approx({"rouge1": 2 / 3, "rouge2": 1 / 2, "rougeL": 2 / 3})


def test_order_counts_for_rouge_l_only_where_words_are_the_same():
    got = score("b a", ["a b"])
    assert got == pytest.approx({"rouge1": 1.0, "rouge2": 0.0, "rougeL": 0.5})


def test_no_stemmer():
    assert score("cats", ["cat"])["rouge1"] == 0.0


@pytest.mark.parametrize("prediction", ["", "  \n", "?!"])
def test_empty_prediction_scores_zero(prediction):
    assert score(prediction, ["a b"]) == dict.fromkeys(METRICS, 0.0)
    assert score(prediction, [""]) == dict.fromkeys(METRICS, 0.0)


def test_the_best_reference_counts_for_each_metric():
    references = ["d c b a", "a b x y", "nothing"]
    got = score("a b c d", references)
    each = [score("a b c d", [r]) for r in references]
    assert got == {name: max(e[name] for e in each) for name in METRICS}
    # no single reference is best in both
    assert got["rouge1"] == each[0]["rouge1"] > each[1]["rouge1"]
    assert got["rouge2"] == each[1]["rouge2"] > each[0]["rouge2"]


def test_plain_floats_in_range():
    got = score("a b", ("a b",))
    assert list(got) == ["rouge1", "rouge2", "rougeL"]
    assert all(type(value) is float and value == 1.0 for value in got.values())


@pytest.mark.parametrize("references", [[], (), "a b"])
def test_references_that_are_none(references):
    with one_line_error(ValueError, "references: got .* expected at least one text"):
        score("a b", references)
