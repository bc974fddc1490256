"""Spec strings: canonical forms, malformed ones, and whatever a fuzzer comes up with."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dynkern
from dynkern.policies import (
    Confidence,
    EarlyExit,
    Full,
    Random,
    RandomStep,
    Stochastic,
    Uniform,
    UniformEven,
)
from support.errors import one_line_error

CANONICAL = {
    "full": Full(),
    "uniform:6": Uniform(6),
    "uniform-even:12": UniformEven(12),
    "random:6": Random(6),
    "random:6,force_first=1": Random(6, force_first=True),
    "random-step:3": RandomStep(3),
    "random-step:3,force_first=1": RandomStep(3, force_first=True),
    "early_exit:0": EarlyExit(0),
    "stochastic:0.5": Stochastic(0.5),
    "stochastic:1": Stochastic(1.0),
    "stochastic:0.123456789": Stochastic(0.123456789),
    "confidence:top_prob=0.9": Confidence("top_prob", 0.9),
    "confidence:margin=0.25,exits=2+5": Confidence("margin", 0.25, (2, 5)),
    "confidence:cosine=-0.5,exits=0": Confidence("cosine", -0.5, (0,)),
    "confidence:cosine=0.99999999": Confidence("cosine", 0.99999999),
}

# what is written, and its canonical form
VARIATIONS = {
    "  uniform:6\n": "uniform:6",
    "uniform:06": "uniform:6",
    "random:6,force_first=0": "random:6",
    "stochastic:5e-1": "stochastic:0.5",
    "stochastic:.5": "stochastic:0.5",
    "stochastic:1.0": "stochastic:1",
    "confidence:exits=2+5,margin=0.250": "confidence:margin=0.25,exits=2+5",
}

MALFORMED = [
    "",
    " ",
    ":",
    "fulll",
    "Full",
    "full:",
    "full:6",
    "uniform",
    "uniform:",
    "uniform:six",
    "uniform:6.0",
    "uniform:6,",
    "uniform:6,7",
    "uniform:6:7",
    "uniform: 6",
    "uniform :6",
    "uniform:1_0",
    "uniform:6,force_first=1",
    "uniform:nan",
    "uniform=6",
    "uniform-even:",
    "uniform_even:6",
    "random:",
    "random:,force_first=1",
    "random:6,force_first",
    "random:6,force_first=2",
    "random:6,force_first=true",
    "random:6,force_first=1,force_first=1",
    "random:force_first=1",
    "random_step:6",
    "early-exit:5",
    "early_exit:",
    "early_exit:5.5",
    "stochastic:",
    "stochastic:half",
    "stochastic:50%",
    "stochastic:nan",
    "stochastic:inf",
    "stochastic:-0.1",
    "stochastic:1.1",
    "stochastic:1e999",
    "confidence",
    "confidence:",
    "confidence:0.9",
    "confidence:top_prob",
    "confidence:top_prob=",
    "confidence:top_prob=nan",
    "confidence:top_prob=1.5",
    "confidence:top_prob=-0.1",
    "confidence:margin=2",
    "confidence:cosine=-1.1",
    "confidence:entropy=0.5",
    "confidence:top_prob=0.9,margin=0.2",
    "confidence:top_prob=0.9,top_prob=0.9",
    "confidence:top_prob=0.9,exits=",
    "confidence:top_prob=0.9,exits=1+",
    "confidence:top_prob=0.9,exits=1,2",
    "confidence:top_prob=0.9,exits=1+x",
    "confidence:top_prob=0.9,exits=1,exits=2",
    "confidence:exits=1+2",
    "uniform:6\nuniform:7",
    "uniform:" + "9" * 5000,
]


@pytest.mark.parametrize(("spec", "expected"), CANONICAL.items())
def test_canonical_specs_round_trip(spec, expected):
    policy = dynkern.policy(spec)
    assert policy == expected
    assert policy.spec == spec
    assert dynkern.policy(policy.spec) == policy


@pytest.mark.parametrize(("written", "canonical"), VARIATIONS.items())
def test_other_ways_to_write_a_spec(written, canonical):
    assert dynkern.policy(written).spec == canonical


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1))
def test_thresholds_keep_every_digit(number):
    for policy in (Stochastic(number), Confidence("margin", number)):
        assert dynkern.policy(policy.spec) == policy


def check_spec(spec: str) -> None:
    """A policy with a stable canonical form, or a one-line ValueError that names the argument."""
    try:
        policy = dynkern.policy(spec)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        assert str(error).startswith(("policy ", "stochastic ", "confidence "))
    else:
        assert dynkern.policy(policy.spec).spec == policy.spec


@pytest.mark.parametrize("spec", MALFORMED)
def test_malformed_specs(spec):
    with pytest.raises(ValueError):
        dynkern.policy(spec)
    check_spec(spec)


NAMES = [spec.partition(":")[0] for spec in CANONICAL]
PIECES = [*NAMES, *":,=+-._ \n", "force_first=1", "top_prob=", "margin=", "cosine=", "exits=", "é"]
SPECS = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from(PIECES) | st.integers().map(str), max_size=7).map("".join),
    st.builds("{}:{}".format, st.sampled_from(NAMES), st.text("0123456789.,+-=e_ ٣n", max_size=8)),
    st.builds("{}:{}".format, st.sampled_from(NAMES), st.integers() | st.floats()),
)


@settings(max_examples=400, deadline=None)
@given(SPECS)
@example("stochastic:-0")
@example("confidence:cosine=1e-300,exits=+1")
@example("uniform:٣")
def test_any_string_gives_a_policy_or_a_value_error(spec):
    check_spec(spec)


@pytest.mark.parametrize("given", [None, 6, 0.5, [], object()])
def test_what_is_no_policy(given):
    with one_line_error(ValueError, "^policy: got "):
        dynkern.policy(given)


def test_policy_objects_are_handed_back():
    chosen = Uniform(3)
    assert dynkern.policy(chosen) is chosen


def test_is_planned():
    token = ("random-step", "stochastic", "confidence")
    for spec in CANONICAL:
        assert dynkern.is_planned(dynkern.policy(spec)) == (spec.partition(":")[0] not in token)
