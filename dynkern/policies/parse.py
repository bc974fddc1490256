"""Spec strings: "uniform:6", "confidence:top_prob=0.9,exits=2+5" to policies."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from dynkern.policies.controller import load_controller
from dynkern.policies.planned import EarlyExit, Full, Random, Uniform, UniformEven
from dynkern.policies.token import MEASURES, Confidence, RandomStep, Stochastic

_FORMS = {
    "full": "full",
    "uniform": "uniform:K",
    "uniform-even": "uniform-even:K",
    "random": "random:K[,force_first=1]",
    "random-step": "random-step:K[,force_first=1]",
    "early_exit": "early_exit:E",
    "stochastic": "stochastic:P",
    "confidence": "confidence:top_prob|margin|cosine=X[,exits=A+B+…]",
    "oracle": "oracle:BUDGET@TABLE",
    "predictor": "predictor:[BUDGET@]PATH",
    "histogram": "histogram:PATH or histogram:BUDGET@TABLE",
    "controller": "controller:PATH[,sample=1]",
}
# made in a room above this one, which it may name but not import; `build(name, argument)` there
# takes what stands behind the colon as it is, since paths may hold commas
_ELSEWHERE = dict.fromkeys(("oracle", "predictor", "histogram"), "dynkern.allocation.policies")


def parse(spec: str) -> Any:
    """The policy that `spec` describes; a one-line ValueError names the form expected."""
    if not isinstance(spec, str):
        raise ValueError(f"policy: got {type(spec).__name__}, expected a spec string or a policy")
    name, colon, rest = spec.strip().partition(":")
    if name not in _FORMS:
        raise ValueError(f"policy {spec!r}: unknown, expected one of {', '.join(_FORMS.values())}")
    arguments = rest.split(",") if colon else []
    try:
        if name in _ELSEWHERE:
            return _built_elsewhere(name, rest)
        return _BUILDERS[name](arguments)
    except _Malformed:
        raise ValueError(f"policy {spec!r}: malformed, expected {_FORMS[name]}") from None


class _Malformed(Exception):
    pass


def _built_elsewhere(name: str, argument: str) -> Any:
    made = importlib.import_module(_ELSEWHERE[name]).build(name, argument)
    if made is None:
        raise _Malformed
    return made


def _number(text: str, kind: Callable[[str], Any]) -> Any:
    # int() and float() take "1_0", " 6" and "nan", which are slips rather than numbers here
    if not text or text.strip() != text or "_" in text or "n" in text.lower():
        raise _Malformed
    try:
        return kind(text)
    except ValueError:
        raise _Malformed from None


def _single(build: Callable[[Any], Any], kind: Callable[[str], Any]) -> Callable[..., Any]:
    def from_arguments(arguments: list[str]) -> Any:
        if len(arguments) != 1:
            raise _Malformed
        return build(_number(arguments[0], kind))

    return from_arguments


def _full(arguments: list[str]) -> Full:
    if arguments:
        raise _Malformed
    return Full()


def _random(build: Callable[..., Any]) -> Callable[..., Any]:
    def from_arguments(arguments: list[str]) -> Any:
        if not arguments or arguments[1:] not in ([], ["force_first=0"], ["force_first=1"]):
            raise _Malformed
        return build(_number(arguments[0], int), arguments[1:] == ["force_first=1"])

    return from_arguments


def _confidence(arguments: list[str]) -> Confidence:
    options = dict(argument.partition("=")[::2] for argument in arguments)
    exits = options.pop("exits", None)
    if len(options) != 1 or len(options) + (exits is not None) != len(arguments):
        raise _Malformed
    measure, threshold = next(iter(options.items()))
    if measure not in MEASURES:
        raise _Malformed
    layers = () if exits is None else tuple(_number(e, int) for e in exits.split("+"))
    return Confidence(measure, _number(threshold, float), layers)


def _controller(arguments: list[str]) -> Any:
    sampled = arguments[-1:] == ["sample=1"]
    # a path may hold commas
    path = ",".join(arguments[:-1] if arguments[-1:] in (["sample=0"], ["sample=1"]) else arguments)
    if not path:
        raise _Malformed
    return load_controller(path, sampled)


_BUILDERS: dict[str, Callable[[list[str]], Any]] = {
    "full": _full,
    "uniform": _single(Uniform, int),
    "uniform-even": _single(UniformEven, int),
    "random": _random(Random),
    "random-step": _random(RandomStep),
    "early_exit": _single(EarlyExit, int),
    "stochastic": _single(Stochastic, float),
    "confidence": _confidence,
    "controller": _controller,
}
