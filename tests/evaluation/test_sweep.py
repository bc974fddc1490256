"""The evaluation end to end: what it writes, that it resumes and loses nothing, and real input."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console

from dynkern.evaluation import sweep
from dynkern.evaluation.report import RUN_KEYS
from dynkern.evaluation.sweep import SweepConfig, run_sweep
from dynkern.llm import LLM
from support.checkpoint import save_checkpoint, save_records

pytestmark = pytest.mark.usefixtures("brief_windows")
POLICIES = ("uniform:3", "early_exit:1", "stochastic:0.5", "confidence:margin=0.2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweep")
    save_checkpoint(directory / "model", num_layers=6)
    save_records(directory / "data.jsonl", 10)
    return directory


def config_for(place: Path, output: Path, **changes) -> SweepConfig:
    settings = {
        "model": str(place / "model"),
        "data": str(place / "data.jsonl"),
        "policies": POLICIES,
        "template": "plain",
        "batch_size": 4,
        "max_new_tokens": 8,
        "output": output,
        "timing": False,
    }
    return SweepConfig(**{**settings, **changes})


def sweep_quietly(config: SweepConfig) -> dict:
    run_sweep(config, Console(quiet=True))
    return json.loads((config.output / "results.json").read_text())


def samples(output: Path) -> list[dict]:
    lines = (output / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_what_it_writes(place, tmp_path):
    results = sweep_quietly(config_for(place, tmp_path / "out"))
    assert [run["policy"] for run in results["runs"]] == ["full", *POLICIES]
    for run in results["runs"]:
        assert set(RUN_KEYS) <= set(run)
        assert run["seconds"] is None and 0.0 <= run["rougeL"] <= 1.0
        assert run["rougeL_ci"][0] <= run["rougeL"] <= run["rougeL_ci"][1]
    by_policy = {run["policy"]: run for run in results["runs"]}
    assert by_policy["full"]["mean_layers"] == 6 and by_policy["full"]["agreement_with_full"] == 1
    assert by_policy["uniform:3"]["mean_layers"] == 3
    assert by_policy["early_exit:1"]["mean_layers"] == 2
    assert 1 < by_policy["stochastic:0.5"]["mean_layers"] < 6
    rows = samples(tmp_path / "out")
    assert len(rows) == 5 * 10
    full = {row["prompt_id"]: row for row in rows if row["policy"] == "full"}
    assert all(sum(row["layer_counts"]) == 6 * (row["new_tokens"] - 1) for row in full.values())
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_identical_runs_give_identical_rows(place, tmp_path):
    for name in ("a", "b"):
        sweep_quietly(config_for(place, tmp_path / name))
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


@pytest.mark.parametrize("lines_left", [2, 7, 23])
def test_a_stopped_run_resumes_and_loses_nothing(place, tmp_path, lines_left):
    whole = sweep_quietly(config_for(place, tmp_path / "whole"))
    sweep_quietly(config_for(place, tmp_path / "cut"))
    path = tmp_path / "cut" / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    # killed in the middle of writing a row
    path.write_text("".join(lines[:lines_left]) + lines[lines_left][:40])
    (tmp_path / "cut" / "results.json").unlink()
    resumed = sweep_quietly(config_for(place, tmp_path / "cut", resume=True))
    assert samples(tmp_path / "cut") == samples(tmp_path / "whole")
    assert resumed["runs"] == whole["runs"]


def test_an_interrupt_keeps_the_rows_that_are_done(place, tmp_path, monkeypatch):
    generate, calls = LLM.generate, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LLM, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep_quietly(config_for(place, tmp_path / "out"))
    # four batches were done: all ten full rows and the first four of the next policy
    assert len(samples(tmp_path / "out")) == 14
    assert not (tmp_path / "out" / "results.json").exists()
    calls.clear()
    monkeypatch.setattr(LLM, "generate", lambda s, *a, **k: calls.append(1) or generate(s, *a, **k))
    sweep_quietly(config_for(place, tmp_path / "out", resume=True))
    assert len(samples(tmp_path / "out")) == 50 and len(calls) == 11


def test_resuming_with_other_settings_is_refused(place, tmp_path):
    sweep_quietly(config_for(place, tmp_path / "out", policies=()))
    with pytest.raises(ValueError, match="--resume"):
        sweep_quietly(config_for(place, tmp_path / "out", policies=()))
    with pytest.raises(ValueError, match="max_new_tokens"):
        sweep_quietly(config_for(place, tmp_path / "out", resume=True, max_new_tokens=9))
    more = sweep_quietly(config_for(place, tmp_path / "out", resume=True, policies=("uniform:2",)))
    assert [run["policy"] for run in more["runs"]] == ["full", "uniform:2"]


def test_timing_columns(place, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "TIMED_BATCHES", 1)
    run, known = LLM.run, []

    def watched(self, *arguments, **options):
        known.append((options.get("force_length", False), self.engine.cost_model))
        return run(self, *arguments, **options)

    monkeypatch.setattr(LLM, "run", watched)
    policies = ("uniform:3", "stochastic:0.5")
    config = config_for(
        place,
        tmp_path / "out",
        policies=policies,
        timing=True,
        repeat=1,
        limit=4,
        kv_fill="project",
    )
    results = sweep_quietly(config)
    for run in results["runs"]:
        for key in ("seconds", "seconds_prefill", "seconds_decode", "tokens_per_second"):
            assert run[key] > 0
        for key in ("speedup", "speedup_decode", "predicted_speedup", "realisation"):
            assert math.isfinite(run[key]) and run[key] > 0
        assert run["speedup_spread"][0] <= run["speedup"] <= run["speedup_spread"][1]
        assert run["roofline_efficiency"] > 0
        assert run["saved_fraction"] is None or math.isfinite(run["saved_fraction"])
    assert results["runs"][0]["speedup"] == results["runs"][0]["speedup_decode"] == 1.0
    stamp = results["meta"]["timing"]
    assert stamp["timed_prompts"] == 4 and stamp["peaks"]["bandwidth"] > 0
    assert stamp["cost_model"]["fill"] is not None
    # natural runs, which have rows that wait, are scheduled by what was measured
    natural = [model for forced, model in known if not forced]
    kept = json.loads(json.dumps(asdict(natural[-1]))) if natural[-1] else None
    assert kept == stamp["cost_model"] and natural[-1].layer.rows == (1, 2, 4)


def test_policies_given_twice_run_once(place, tmp_path):
    config = config_for(place, tmp_path / "out", policies=("full", "uniform:2", "uniform:2"))
    assert [run["policy"] for run in sweep_quietly(config)["runs"]] == ["full", "uniform:2"]


def test_long_prompts_are_cut_and_counted(place, tmp_path):
    record = {"instruction": "say this", "input": "the river " * 300, "output": "the river"}
    (tmp_path / "long.json").write_text(json.dumps([record]))
    config = config_for(place, tmp_path / "out", data=str(tmp_path / "long.json"), policies=())
    meta = sweep_quietly(config)["meta"]
    assert meta["truncated_prompts"] == 1
    # 160 positions; the last of 8 new tokens needs none
    assert meta["prompt_tokens"] == 160 - 8 + 1


def test_real_input(shared_dir, tmp_path):
    """A trained checkpoint on real prompts: Hugging Face's very texts, and depth that matters."""
    config = SweepConfig(
        model=str(shared_dir / "models" / "opt-nlg-11m"),
        data=str(shared_dir / "data" / "nlg" / "test.jsonl"),
        policies=("uniform:9", "uniform:3", "early_exit:2"),
        template="plain",
        dtype="float32",
        limit=24,
        max_new_tokens=32,
        output=tmp_path / "out",
        timing=False,
    )
    results = sweep_quietly(config)
    rouge = {run["policy"]: run["rougeL"] for run in results["runs"]}
    assert rouge["full"] > rouge["uniform:3"] > rouge["early_exit:2"]
    twin = transformers.OPTForCausalLM.from_pretrained(config.model, dtype=torch.float32).eval()
    llm = LLM(config.model, dtype="float32")
    lines = (shared_dir / "data" / "nlg" / "test.jsonl").read_text().splitlines()
    full = [row for row in samples(tmp_path / "out") if row["policy"] == "full"]
    for row, line in zip(full, lines, strict=False):
        record = json.loads(line)
        text = "### Instruction:\n{instruction}\n### Input:\n{input}\n### Response:\n"
        ids = torch.tensor([llm.encode(text.format(**record))])
        output = twin.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32)
        assert row["token_ids"] == output[0, ids.shape[1] :].tolist()
        decoded = llm.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert row["text"] == decoded
