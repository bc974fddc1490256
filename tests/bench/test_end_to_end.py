"""bench.end_to_end at tiny size: every group, without any peer but transformers."""

from __future__ import annotations

import csv
import sys

import pytest
import transformers

import dynkern
from bench import end_to_end, engines, latency, latency_plot, peer_rows, peer_runs
from support.benches import invoke


def _invoke(*arguments: str):
    return invoke(end_to_end, *arguments)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    kinds = ("dynkern-float32", "hf-float32", "openvino-int8")
    result = _invoke(
        *("--output", str(folder), "--dry-run", "--work", str(folder)),
        *(word for kind in kinds for word in ("--kind", kind)),
    )
    assert result.exit_code == 0, result.output
    with (folder / "cpu.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_group_has_rows(rows):
    assert {row["group"] for row in rows} == {"peers", "memory", "smaller", *end_to_end.GROUPS}
    assert {row["shape"] for row in rows} == {"tiny"}
    assert all(row["dry_run"] == "1" for row in rows)


def test_engines_are_compared_case_by_case(rows):
    whole = [r for r in rows if r["case"] == "whole loop"]
    for batch in ("1", "2"):
        engines = {r["engine"] for r in whole if r["batch"] == batch}
        assert {"dynkern-float32", "hf-float32"} <= engines
    for row in whole:
        tokens = int(row["batch"]) * int(row["new_tokens"])
        assert float(row["tokens_per_second"]) == pytest.approx(tokens / float(row["seconds"]))
    prefill = [r for r in rows if r["case"] == "prefill"]
    assert prefill and all(r["prompt"] == "128" and r["new_tokens"] == "1" for r in prefill)


def test_a_missing_peer_is_a_line_and_no_failure(rows):
    notes = [r["note"] for r in rows if r["engine"] == "openvino-int8" and r["case"] == "load"]
    measured = [r for r in rows if r["engine"] == "openvino-int8" and r["seconds"]]
    assert measured or (len(notes) == 1 and "not installed" in notes[0])


def test_routes_stand_beside_models_of_their_depth(rows):
    cases = {r["case"]: r for r in rows if r["group"] == "smaller" and r["batch"] == "2"}
    depths = (3, 2, 1)
    assert set(cases) == {
        f(k) for k in depths for f in ("uniform:{}".format, "{}-layer model".format)
    }
    for depth in depths:
        assert float(cases[f"{depth}-layer model"]["speedup"]) == 1.0
        assert float(cases[f"uniform:{depth}"]["speedup"]) > 0


def test_rows_say_what_ran_and_under_which_load(rows):
    timed = [r for r in rows if r["seconds"]]
    assert timed and all(float(r["foreign_load"]) >= 0 for r in timed)
    whole = {r["engine"]: r["engine_version"] for r in timed if r["case"] == "whole loop"}
    assert whole["dynkern-float32"].startswith(dynkern.__version__)
    assert whole["hf-float32"] == transformers.__version__


def test_own_cases_carry_their_possible_time(rows):
    judged = [r for r in rows if r["group"] in ("realisation", "mixed", "confidence")]
    assert judged and all(float(r["realisation"]) > 0 for r in judged)
    assert all(0 < float(r["efficiency"]) for r in judged)
    assert any("first exit" in r["note"] or "no gain" in r["note"] for r in judged)
    serving = {r["case"] for r in rows if r["group"] == "serving"}
    assert serving == {"greedy", "temperature 1", "top-k 50, top-p 0.9", "streaming"}


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--group", "speed", "--group: got 'speed', expected one of peers"),
        ("--shape", "7b", "--shape: got '7b', expected one of tiny"),
        ("--kind", "vllm", "--kind: got 'vllm', expected one of dynkern-float32"),
        ("--dtype", "fp8", "--dtype: got 'fp8', expected one of float32"),
        ("--batch", "0", "--batch: got 0, expected more"),
        ("--new-tokens", "1", "--new-tokens: got 1, expected more"),
        ("--repeats", "0", "--repeats: got 0, expected more"),
        ("--limit", "0", "--limit: got 0, expected more than 0 seconds"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capfd, argument, value, message):
    result = _invoke("--output", str(tmp_path), argument, value)
    assert result.exit_code == 2
    assert message in result.output + capfd.readouterr().err
    assert not (tmp_path / "cpu.csv").exists()


def test_a_worker_that_dies_says_so(tmp_path):
    engine = engines.Engine("dynkern-float32", tmp_path / "nowhere", sys.executable)
    assert engine.obstacle and "nowhere" in engine.obstacle
    engine.close()


def test_a_worker_that_takes_too_long_is_ended_and_says_so(tmp_path):
    engine = engines.Engine("dynkern-float32", tmp_path, sys.executable, limit=0.01)
    assert engine.obstacle == "dynkern-float32: no answer within 0.01 s, given up"
    # asked again it says the same, and its process is gone
    assert engine.answer([[2, 5]], 2)["reason"] == engine.obstacle
    engine.close()


SIZES = {"batch": 1, "prompt": 4, "new_tokens": 2}


class Stub:
    """An engine that answers from a script: seconds of each run, or a reason."""

    version = "1"

    def __init__(self, *script):
        self.script, self.asked = list(script), []

    def answer(self, prompts, new_tokens, **how):
        self.asked.append(prompts)
        said = self.script.pop(0)
        if isinstance(said, str):
            return {"reason": said}
        times = [[said * (i + 1) / new_tokens for i in range(new_tokens)] for _ in prompts]
        return {"seconds": said, "times": times, "foreign": 0.0, "peak": 7}

    def run(self, **sizes):
        said = self.script.pop(0)
        return {"reason": said} if isinstance(said, str) else {"seconds": said, "foreign": 0.0}


def test_an_engine_that_fails_later_is_a_row_and_the_others_go_on():
    kept, lost = Stub(9.0, 1.0, 1.0), Stub(9.0, 1.0, "out of memory")
    rows = list(peer_rows.compare_engines({"a-x": kept, "b-x": lost}, SIZES, 320, 2))
    by_engine = {row["engine"]: row for row in rows}
    assert by_engine["a-x"]["seconds"] == 1.0
    assert by_engine["b-x"] == {"engine": "b-x", "note": "out of memory"}


def test_latencies_of_a_run_and_the_reason_of_a_failure():
    lengths = iter([3, 5, 4])
    good, bad = Stub(8.0, 2.0, 2.0), Stub(8.0, 4.0, "too long")
    entrants = [
        latency.Entrant("dynkern-float32", "full", good),
        latency.Entrant("hf_static-float32", "full", bad),
    ]
    rows = list(latency.compare(entrants, lambda: [[2] * next(lengths)], 4, False, 2))
    # the longest prompt is the one that is not timed
    assert [len(prompts[0]) for prompts in good.asked] == [5, 4, 3]
    assert rows[0]["first_p50"] == rows[0]["token_p99"] == 0.5
    assert rows[0]["warm_up"] == 8.0 and rows[0]["speedup"] == 1.0 and rows[0]["rounds"] == 2
    assert rows[1]["note"] == "too long" and "seconds" not in rows[1]


def test_rows_that_a_scheduler_lets_in_later_have_their_first_token_later():
    assert peer_runs.first_steps([2, 2, 2], [3, 3]) == [0, 0]
    # the second row comes a step later, and the first ends before it
    assert peer_runs.first_steps([1, 2, 1, 1], [2, 3]) == [0, 1]
    with pytest.raises(ValueError, match="expected steps of rows of"):
        peer_runs.first_steps([1, 1, 2, 2], [3, 3])


@pytest.fixture(scope="module")
def latencies(tmp_path_factory):
    """transformers on a static cache, compiled, beside dynkern, one row and two."""
    folder = tmp_path_factory.mktemp("latency")
    result = _invoke(
        *("--output", str(folder), "--dry-run", "--group", "latency"),
        *("--kind", "dynkern-float32", "--kind", "hf_static-float32", "--kind", "openvino-int8"),
    )
    assert result.exit_code == 0, result.output
    with (folder / "end_to_end.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_static_cache_compiles_and_answers_for_each_number_of_rows(latencies):
    compiled = [r for r in latencies if r["engine"] == "hf_static-float32"]
    assert [(r["batch"], r["rounds"], r["note"]) for r in compiled] == [
        ("1", "1", ""),
        ("2", "1", ""),
    ]


@pytest.mark.slow
def test_latencies_stand_beside_full_depth_and_a_smaller_model(latencies, tmp_path):
    own = [r for r in latencies if r["engine"] == "dynkern-float32" and r["batch"] == "2"]
    assert [r["policy"] for r in own] == ["full", "uniform:2", "early_exit:1", "2-layer model"]
    assert all(float(r["speedup"]) > 0 and not r["note"] for r in own)
    rows = [{**row, "dry_run": "0"} for row in latencies]
    widths = []
    for name, drawn in (
        ("one", rows),
        ("two", [*rows, *({**row, "device": "another"} for row in rows)]),
    ):
        latency_plot.draw(drawn, tmp_path / name)
        picture = (tmp_path / name).read_bytes()
        assert picture[:4] == b"\x89PNG"
        widths.append(int.from_bytes(picture[16:20], "big"))
    # each device has columns of its own
    assert widths[1] > 1.5 * widths[0]
