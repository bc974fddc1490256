"""Fuzz targets of what is named or stored: budgets and families of routes, task sources, and the
bytes of route files, tables, predictors and controllers.

Damage is refused in one line, or what is read is what was written.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from dynkern.allocation.families import FAMILIES, make_routes, parse_budgets, read_routes
from dynkern.allocation.policies import build
from dynkern.allocation.predictor import JSON_NAME, TENSORS_NAME, Predictor, load_predictor
from dynkern.allocation.schema import PromptRow, Row, digest_ids
from dynkern.allocation.store import TableStore
from dynkern.allocation.table import Table, load_table
from dynkern.allocation.training import parse_budget, train
from dynkern.controller_file import GateStack, read_controller
from dynkern.data import load_records
from dynkern.tasks import FAMILIES as TASKS
from dynkern.tasks import LEVELS, SPLITS, parse_source
from fuzz.refusal import refused
from support.controllers import made_controller

LAYERS, WIDTH, PROMPTS = 6, 8, 40
MANIFEST = {"family": "uniform", "samples": 2, "prompts": PROMPTS, "model": {"weights": "abc"}}

_NUMBER = st.integers(-1, LAYERS + 2).map(str) | st.sampled_from(
    ["L", "", "0", "1", "9" * 5000, "٣", "1e3", "0.5", "nan", "inf", "equal", "-0", "+2", " 2 "]
)
_PART = st.one_of(
    _NUMBER,
    st.builds("{}..{}".format, _NUMBER, _NUMBER),
    st.builds("{}..{}:{}".format, _NUMBER, _NUMBER, _NUMBER),
    st.text(max_size=4),
)
BUDGETS = st.lists(_PART, min_size=1, max_size=3).map(",".join)
_RISING = st.tuples(st.integers(1, LAYERS), st.integers(1, LAYERS), st.integers(1, 3)).filter(
    lambda part: part[0] <= part[1]
)

_VALUES = st.one_of(
    st.lists(st.sampled_from([*TASKS, "sum", "", "\n"]), max_size=3).map("+".join),
    st.lists(st.sampled_from([*map(str, LEVELS), "0", "5", "٣", ""]), max_size=3).map("+".join),
    st.integers(-1, 40).map(str),
    st.sampled_from(["9" * 5000, str(2**64), str(2**63 - 1), "1_0", " 1", "1\n", "x\ny"]),
    st.text(max_size=5),
)
_ITEM = st.builds(
    "{}={}".format,
    st.sampled_from(["family", "difficulty", "seed", "count", "level", "", "Seed"]),
    _VALUES,
)
SOURCES = st.one_of(
    st.builds(
        "tasks{}{}{}".format,
        st.sampled_from(["", ":", ":test", ":train", ":validation", ":dev", ":test:", ":test\n"]),
        st.sampled_from(["", "?", "??", "&", "\n"]),
        st.lists(_ITEM, max_size=3).map("&".join),
    ),
    st.text(max_size=8).map("tasks:{}".format),
    st.text(max_size=8).map("tasks?{}".format),
)

_ROUTE = st.one_of(
    st.lists(st.sampled_from("01"), min_size=LAYERS, max_size=LAYERS).map("".join),
    st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=LAYERS),
    st.lists(st.integers(-1, LAYERS) | st.booleans() | st.floats(), max_size=3),
    st.sampled_from(["0" * LAYERS, "1" * (LAYERS + 1), "١" * LAYERS, "", None, 5, {}]),
    st.text(max_size=LAYERS),
)
_NAMED = st.lists(st.tuples(st.text(max_size=3), _ROUTE), max_size=4)
DAMAGE = st.binary(max_size=4) | st.sampled_from(
    [b'"', b"\n", b",", b"{", b"[" * 3000, b"9" * 5000, b"NaN", b"1e999", b"\x00", b"\xff", b"-"]
    + [b'"a": 1,', b"x" * 140000]
)


class Stored:
    """A table, a predictor and controllers for a model of 6 layers, whole, as bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "stored"
        self.folder.mkdir()
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir()

    @cached_property
    def table(self) -> tuple[bytes, Table]:
        """The bytes of a table of 40 prompts, and the table."""
        path = self.folder / "table.sqlite"
        generator = np.random.default_rng(0)
        with TableStore.create(path, MANIFEST, resume=False) as store:
            store.put_routes(make_routes("uniform", LAYERS))
            for prompt in range(PROMPTS):
                digest = digest_ids([2, prompt])
                store.put_prompts([PromptRow(prompt, f"r{prompt}", digest, 2, None)])
                rows = [
                    Row(
                        prompt, route, sample, "some text", (5, 2), 0.5, 0.25,
                        float(generator.random()), float(route + 1), 2, "eos",
                    )
                    for route in range(LAYERS)
                    for sample in range(2)
                ]  # fmt: skip
                store.put(rows, {prompt: generator.normal(0, 1, WIDTH).astype(np.float32)})
                store.put_losses((prompt, route, 3.0 * (route + 1), 3) for route in range(LAYERS))
                store.put_agreements((0.5, prompt, route, 0) for route in range(LAYERS))
        return path.read_bytes(), load_table(path)

    @cached_property
    def predictor(self) -> tuple[dict[str, bytes], Predictor]:
        """The bytes of a predictor's files, and the predictor."""
        folder = self.folder / "predictor"
        folder.mkdir()
        train(self.table[1], "ridge", "3", 0.6).save(folder)
        files = {name: (folder / name).read_bytes() for name in (JSON_NAME, TENSORS_NAME)}
        return files, load_predictor(folder)

    @cached_property
    def controllers(self) -> dict[str, tuple[bytes, GateStack]]:
        """The bytes of controllers of both kinds of policy, and their gates."""
        found = {}
        for kind, size in (("fixed", 1), ("hidden", WIDTH)):
            path = made_controller(self.folder / f"{kind}.safetensors", kind, LAYERS, size)
            found[kind] = path.read_bytes(), read_controller(path)
        return found


def _damaged(content: bytes, data: st.DataObject) -> bytes:
    """`content` with bits flipped, bytes put in or taken out; sometimes cut or empty."""
    for _ in range(data.draw(st.integers(1, 3))):
        # half of the damage where headers are
        near = data.draw(st.booleans())
        at = data.draw(st.integers(0, min(len(content), 200) if near else len(content)))
        if data.draw(st.booleans()):
            flipped = bytes([b ^ 1 << data.draw(st.integers(0, 7)) for b in content[at : at + 1]])
            content = content[:at] + flipped + content[at + 1 :]
        else:
            gone = data.draw(st.sampled_from([0, 1, 4, 30, 5000, len(content)]))
            content = content[:at] + data.draw(DAMAGE) + content[at + gone :]
    return content


def _same(one: Any, other: Any) -> bool:
    """Equal, NaN to NaN, through what dataclasses, lists and arrays hold."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def budget_specs(place: Any, data: st.DataObject) -> None:
    """Budgets of a family as Python's own ranges give them, and routes of just as many layers."""
    parts = data.draw(st.lists(_RISING, min_size=1, max_size=3))
    good = ",".join("{}..{}:{}".format(*part) for part in parts)
    want = sorted({n for low, high, step in parts for n in range(low, high + 1, step)})
    assert parse_budgets(good, LAYERS) == want
    text = data.draw(BUDGETS)
    bad, budgets = refused(lambda: parse_budgets(text, LAYERS), "budgets: ")
    if not bad:
        assert budgets and budgets == sorted(set(budgets)) and set(text) <= set("0123456789L.,: ")
        assert 1 <= budgets[0] and budgets[-1] <= LAYERS
    family = data.draw(st.sampled_from([*FAMILIES, "file:", "file:absent.json", "", "none"]))
    names = ("budgets: ", "family: ", "order: ", "uniform-even", "uniform budget")
    refusal, made = refused(lambda: make_routes(family, LAYERS, text, seed=3), *names)
    assert refusal or not bad
    if not refusal:
        assert set(made.budgets) == {*budgets, LAYERS}
        if family not in ("even", "early-exit"):
            nested = zip(made.keep, made.keep[1:], strict=False)
            assert all(low <= high for pair in nested for low, high in zip(*pair, strict=True))
    bad, mean = refused(lambda: parse_budget(text, LAYERS), "budget: ")
    assert bad or (mean is None and text == "equal") or 0 < mean <= LAYERS


def task_sources(place: Any, data: st.DataObject) -> None:
    """A name of a part of the suite gives records of that part alone, or is refused by name."""
    name = data.draw(SOURCES)
    names = ("data: ", "split: ", "family: ", "difficulty: ", "seed: ", "count: ")
    bad, source = refused(lambda: parse_source(name), *names)
    refusal, found = refused(lambda: load_records(name, "validation", limit=5), *names)
    assert bad == refusal
    if bad:
        return
    head, _, query = name.partition("?")
    assert (source.split or "validation") in SPLITS and head == f"tasks:{source.split}"[: len(head)]
    asked = dict(item.split("=") for item in query.split("&") if "?" in name)
    assert len(asked) == query.count("&") + ("?" in name)
    assert asked.get("family", "") == "+".join(source.families)
    assert asked.get("difficulty", "") == "+".join(map(str, source.difficulties))
    assert int(asked.get("seed", 0)) == source.seed and int(asked.get("count", 1024)) > 0
    assert len(found) == 5
    for record in found:
        assert record.id.startswith(f"{source.split or 'validation'}-{source.seed}-")
        assert record.family in (source.families or TASKS)
        assert record.difficulty in (source.difficulties or LEVELS)
        assert record.output in record.references


def route_files(place: Any, data: st.DataObject) -> None:
    """Routes from .json and .csv, whole or damaged: as they are written, or refused by file."""
    named = data.draw(_NAMED)
    scratch = place.stored.scratch
    lines = io.StringIO()
    csv.writer(lines).writerows([("name", "route"), *named])
    contents = {
        "object.json": json.dumps(dict(named)),
        "list.json": json.dumps([route for _, route in named]),
        "lines.csv": lines.getvalue(),
    }
    harm = data.draw(st.booleans())
    for name, text in contents.items():
        file = scratch / name
        content = text.encode("utf-8", "surrogatepass")
        file.write_bytes(_damaged(content, data) if harm else content)
        start = f"family: {file}"
        bad, found = refused(lambda file=file: read_routes(file, LAYERS), start)
        refusal, made = refused(lambda file=file: make_routes(f"file:{file}", LAYERS), start,
                                "routes: the name")  # fmt: skip
        assert refusal or not bad
        if bad:
            continue
        assert found and all(len(keep) == LAYERS and any(keep) for _, keep in found)
        if not refusal:
            assert made.keep[-1] == (True,) * LAYERS
            assert {keep for _, keep in found} | {made.keep[-1]} == set(made.keep)
        if not harm:
            wanted = dict(named).values() if name == "object.json" else [r for _, r in named]
            kept = [tuple(at in r or r[at : at + 1] == "1" for at in range(LAYERS))
                    if isinstance(r, list) else tuple(bit == "1" for bit in r)
                    for r in wanted]  # fmt: skip
            assert [keep for _, keep in found] == kept
        names = [name for name, _ in found]
        assert len(set(names)) == len(names)


def damaged_tables(place: Any, data: st.DataObject) -> None:
    """A table with damaged bytes is refused, or read as it was written."""
    content, whole = place.stored.table
    file = place.stored.scratch / "table.sqlite"
    for name in ("table.sqlite", "table.sqlite-wal", "table.sqlite-shm", "table.sqlite-journal"):
        (place.stored.scratch / name).unlink(missing_ok=True)
    file.write_bytes(_damaged(content, data))
    bad, table = refused(lambda: load_table(file), "table: ")
    refusal, policy = refused(lambda: build("oracle", f"0.5@{file}"), "table: ")
    assert bad == refusal
    if bad:
        return
    kept = vars(whole) | {"path": file}
    assert [name for name in kept if not _same(getattr(table, name), kept[name])] == []
    assert policy.choice.keys() == set(whole.digests)


def damaged_predictors(place: Any, data: st.DataObject) -> None:
    """A predictor with damaged bytes is refused, or read as it was written."""
    files, whole = place.stored.predictor
    harmed = data.draw(st.sampled_from([*files]))
    folder = place.stored.scratch
    for name, content in files.items():
        (folder / name).write_bytes(_damaged(content, data) if name == harmed else content)
    bad, made = refused(lambda: load_predictor(folder), "predictor: ")
    refusal, policy = refused(lambda: build("predictor", str(folder)), "predictor: ")
    assert bad == refusal
    if bad:
        return
    assert all(_same(getattr(made, name), value) for name, value in vars(whole).items())
    assert policy.spec == f"predictor:{folder}"


def damaged_controllers(place: Any, data: st.DataObject) -> None:
    """A controller with damaged bytes is refused, or read as it was written."""
    kind = data.draw(st.sampled_from(["fixed", "hidden"]))
    content, whole = place.stored.controllers[kind]
    file = place.stored.scratch / "controller.safetensors"
    file.write_bytes(_damaged(content, data))
    bad, made = refused(lambda: read_controller(file), "controller: ")
    if bad:
        return
    fields = ("info", "weights", "biases", "sampled", "signature")
    assert all(_same(getattr(made, name), getattr(whole, name)) for name in fields)


TARGETS: dict[str, Callable[[Any, st.DataObject], None]] = {
    target.__name__: target
    for target in (
        budget_specs,
        task_sources,
        route_files,
        damaged_tables,
        damaged_predictors,
        damaged_controllers,
    )
}
