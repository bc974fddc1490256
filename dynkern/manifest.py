"""Manifests, nested settings under which results were made: where two of them differ, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ABSENT = object()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every entry that is not the same, "a.b (1 then, 2 now)": those of `now` first, in order."""
    old, new = _flat(before), _flat(now)
    return [
        f"{key} ({_brief(old, key)} then, {_brief(new, key)} now)"
        for key in dict.fromkeys([*new, *old])
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat


def _brief(values: Mapping[str, Any], key: str) -> str:
    text = str(values.get(key, "not stated"))
    return text if len(text) <= 40 else text[:37] + "..."
