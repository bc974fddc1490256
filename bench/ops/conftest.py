"""Options of `pytest bench/ops`: the same grid as `dynkern bench ops`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.ops.contest import BASELINES, KERNELS, Clock, Contest
from bench.ops.grid import Selection, Spec
from bench.ops.suite import FILE, Row, Suite, check_selection
from bench.results_file import append


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ops", "microbenchmarks of ops")
    for name, words in (
        ("op", "an op of the table"),
        ("shape", "125m, 1.3b or 6.7b"),
        ("dtype", "float32, bfloat16 or float16"),
        ("rows", "1 to 512"),
        ("routes", "all, none, half, bimodal or straggler"),
        ("backend", "cpu, triton or cuda beside the baselines"),
    ):
        kind = int if name == "rows" else str
        group.addoption(f"--ops-{name}", action="append", type=kind, help=f"{words}; repeat it")
    group.addoption("--ops-all", action="store_true", help="the whole grid")
    group.addoption("--ops-quick", action="store_true", help="one short round of a few cases")
    group.addoption("--ops-output", type=Path, help="folder whose ops.csv is appended to")


def _selection(config: pytest.Config) -> Selection:
    axes = {f"{n}s": config.getoption(f"ops_{n}") for n in ("op", "shape", "dtype")}
    rest = {name: config.getoption(f"ops_{name}") for name in ("rows", "routes")}
    everything, quick = (config.getoption(f"ops_{name}") for name in ("all", "quick"))
    return Selection(**axes, **rest, everything=everything, quick=quick)


def _suite(config: pytest.Config) -> Suite:
    quick = config.getoption("ops_quick")
    clock = Clock(repeats=1, window=0.1, limit=float("inf")) if quick else Clock()
    if config.getoption("benchmark_disable"):
        clock = None
    return Suite(config.getoption("ops_backend") or KERNELS, clock, trial=quick)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each case and contestant, those of one case behind one another."""
    if "spec" not in metafunc.fixturenames:
        return
    selection, suite = _selection(metafunc.config), _suite(metafunc.config)
    try:
        check_selection(selection, suite.kernels)
    except ValueError as error:
        raise pytest.UsageError(str(error).replace("--", "--ops-", 1)) from None
    specs, found = selection.specs(), []
    for device in suite.devices():
        here = ["cpu"] if device.type == "cpu" else ["triton", "cuda"]
        names = [*BASELINES, *(name for name in here if name in suite.kernels)]
        found += [(spec, device, name) for spec in specs for name in names]
    ids = [f"{spec}, {device.type}-{name}" for spec, device, name in found]
    metafunc.parametrize(("spec", "device", "contestant"), found, ids=ids)


class Contests:
    """The contest of the case at hand, held once for all of its contestants."""

    def __init__(self, suite: Suite, output: Path | None) -> None:
        self.suite, self.output = suite, output
        self.rows: dict[str, Row] = {}
        self._key: tuple[Spec, torch.device] | None = None
        self._held: Contest | None = None

    def of(self, spec: Spec, device: torch.device) -> Contest | None:
        """Its outcomes; `rows` are then those of ops.csv, by contestant, and appended."""
        if self._key != (spec, device):
            self._key, self._held = (spec, device), self.suite.contest(spec, device)
            rows = self.suite.rows(self._held) if self._held and self.suite.clock else []
            self.rows = {row["backend"]: row for row in rows}
            if self.output is not None:
                append(self.output / FILE, rows)
        return self._held


@pytest.fixture(scope="session")
def contests(request: pytest.FixtureRequest) -> Contests:
    return Contests(_suite(request.config), request.config.getoption("ops_output"))
