"""`dynkern eval` in several processes: the texts and scores of one, whoever dies on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from dynkern.cli import main
from dynkern.evaluation import sweep
from dynkern.evaluation.samples import rows_of
from dynkern.evaluation.shards import shard_paths
from dynkern.evaluation.speed import SpeedReport
from dynkern.evaluation.sweep import SweepConfig, run_sweep
from dynkern.llm import LLM
from support.checkpoint import save_checkpoint, save_records
from support.launches import OneOfTwo, launched

POLICIES = ("uniform:2", "stochastic:0.5")
COUNT = 9  # batches of 4, 4 and 1


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    save_checkpoint(directory / "model", num_layers=4)
    save_records(directory / "data.jsonl", COUNT)
    return directory


def arguments(place: Path, output: Path, *more: str) -> list[str]:
    words = f"eval --model {place}/model --data {place}/data.jsonl --template plain"
    words += " --max-new-tokens 6 --batch-size 4 --repeat 1"
    words += "".join(f" --policy {spec}" for spec in POLICIES)
    return [*words.split(), "--output", str(output), *more]


def run(place: Path, output: Path, **more) -> None:
    given = {"template": "plain", "max_new_tokens": 6, "batch_size": 4, "timing": False, **more}
    config = SweepConfig(f"{place}/model", f"{place}/data.jsonl", POLICIES, output=output, **given)
    run_sweep(config, Console(quiet=True))


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    """Output of one process."""
    output = tmp_path_factory.mktemp("whole") / "out"
    run(place, output)
    return output


def scores(output: Path) -> list[dict]:
    """What results.json says beside times."""
    runs = json.loads((output / "results.json").read_text())["runs"]
    timed = ("seconds", "speedup", "tokens", "realisation", "saved", "roofline", "peak", "loaded")
    return [
        {k: v for k, v in run.items() if not k.startswith((*timed, "predicted"))} for run in runs
    ]


def test_two_processes_give_the_files_of_one(place, whole, tmp_path):
    output = tmp_path / "out"
    done = launched(2, arguments(place, output))
    assert done.returncode == 0, done.stderr
    assert "processes 2" in done.stdout
    assert (output / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert scores(output) == scores(whole)
    assert not shard_paths(output / "samples.jsonl")
    # rank 0 timed them, and only it reports
    results = json.loads((output / "results.json").read_text())
    assert all(run["seconds"] > 0 and run["speedup_decode"] > 0 for run in results["runs"])
    assert done.stdout.count("results in") == 1


def test_accelerate_launches_too(place, whole, tmp_path):
    output = tmp_path / "out"
    # --cpu starts one process, whatever their number, unless there is MPI
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = launched(2, arguments(place, output, "--no-timing"), launcher)
    assert done.returncode == 0, done.stderr
    assert "processes 2" in done.stdout
    assert (output / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert scores(output) == scores(whole)


def stopped(place: Path, output: Path, monkeypatch, rank: int, **more) -> None:
    """Rank `rank` of two does its share, and finds the other one gone."""
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "Team", lambda: OneOfTwo(rank))
        with pytest.raises(ValueError, match="ended early"):
            run(place, output, **more)


def rows(output: Path) -> dict[tuple[str, str], dict]:
    lines = (output / "samples.jsonl").read_text().splitlines()[1:]
    made = [json.loads(line) for line in lines]
    return {(row["policy"], row["prompt_id"]): row for row in made}


def test_the_share_of_a_rank_that_died_is_done_by_whoever_goes_on(
    place, whole, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "out"
    stopped(place, output, monkeypatch, 0)
    (shard,) = shard_paths(output / "samples.jsonl")
    # batches 0 and 2, under each policy
    assert {spec: len(ids) for spec, ids in rows_of(shard).items()} == dict.fromkeys(
        ("full", *POLICIES), 5
    )
    assert not rows(output)
    assert main(arguments(place, output)) == 2  # not without --resume
    assert f"{shard} is left of a stopped run; go on with --resume" in capsys.readouterr().err
    with pytest.raises(ValueError, match="made with other settings: max_new_tokens"):
        run(place, tmp_path / "out", resume=True, max_new_tokens=5)
    generate, prompts = LLM.generate, []

    def counted(self, batch, *arguments, **options):
        prompts.append(len(batch))
        return generate(self, batch, *arguments, **options)

    monkeypatch.setattr(LLM, "generate", counted)
    run(place, output, resume=True)
    assert prompts == [4] * 3  # batch 1 of each policy
    assert rows(output) == rows(whole) and scores(output) == scores(whole)
    assert not shard_paths(output / "samples.jsonl")
    before = (output / "samples.jsonl").read_bytes()
    run(place, output, resume=True)
    assert (output / "samples.jsonl").read_bytes() == before and len(prompts) == 3


def test_shards_of_both_ranks_are_joined_in_the_order_of_one_process(
    place, whole, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    stopped(place, output, monkeypatch, 0)
    stopped(place, output, monkeypatch, 1, resume=True)
    assert len(shard_paths(output / "samples.jsonl")) == 2
    # a kill in the middle of a write
    torn = shard_paths(output / "samples.jsonl")[1]
    torn.write_bytes(torn.read_bytes() + b'{"policy": "full", "prom')
    with monkeypatch.context() as patch:
        patch.setattr(LLM, "generate", None)  # nothing is left to do
        run(place, output, resume=True)
    assert (output / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert scores(output) == scores(whole)


def test_only_rank_0_times(place, tmp_path, monkeypatch):
    class Alone(OneOfTwo):
        def wait(self):
            self.waited += 1

    timed = []

    def measured(*arguments):
        timed.append(1)
        return SpeedReport(dict.fromkeys(("full", *POLICIES), {}), {})

    monkeypatch.setattr(sweep, "measure_speed", measured)
    (tmp_path / "out").mkdir()
    for rank in (0, 1):
        monkeypatch.setattr(sweep, "Team", lambda rank=rank: Alone(rank))
        run(place, tmp_path / "out", timing=True, resume=True, limit=4)
        assert len(timed) == 1
    assert not [p.name for p in (tmp_path / "out").glob("*shard-0*")]
