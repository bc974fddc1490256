"""`dynkern oracle`: rows as the policies alone give them, kills, shards, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynkern.allocation.schema import FILE_NAME
from dynkern.allocation.table import load_table
from dynkern.cli import main
from dynkern.data import encode_prompt, load_records
from dynkern.evaluation import oracle
from dynkern.evaluation.oracle import OracleConfig, run_oracle
from dynkern.evaluation.rouge import score
from dynkern.evaluation.teacher_forced import teacher_forced_losses
from dynkern.llm import LLM
from support.checkpoint import save_checkpoint, save_records
from support.launches import OneOfTwo, launched
from support.tables import dump

COUNT, LAYERS = 7, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("oracle")
    save_checkpoint(directory / "model", num_layers=LAYERS)
    save_records(directory / "data.jsonl", COUNT)
    save_records(directory / "validation.jsonl", 3)
    return directory


def arguments(place: Path, output: Path, *more: str) -> list[str]:
    words = f"oracle --model {place}/model --data {place}/data.jsonl --template plain"
    words += f" --max-new-tokens 9 --batch-size 5 --output {output}"
    return [*words.split(), *more]


def config(place: Path, output: Path, **more) -> OracleConfig:
    return OracleConfig(
        f"{place}/model",
        f"{place}/data.jsonl",
        template="plain",
        max_new_tokens=9,
        batch_size=5,
        output=output,
        **more,
    )


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    """An uninterrupted table and its report."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert main(arguments(place, output)) == 0
    return output


def test_rows_are_those_of_the_policies_alone(place, whole):
    llm = LLM(place / "model")
    records = load_records(place / "data.jsonl")
    prompts = [encode_prompt(llm.tokenizer, r, "plain", 150, 2).ids for r in records]
    found = {row[:3]: row for row in dump(whole / FILE_NAME)["rows"]}
    assert len(found) == COUNT * LAYERS
    full = llm.generate(prompts, "full", max_new_tokens=9)
    for route in range(LAYERS):
        for i, done in enumerate(
            llm.generate(prompts, f"uniform:{route + 1}", max_new_tokens=9, batch_size=3)
        ):
            row = found[i, route, 0]
            ids = np.frombuffer(row[4], dtype="<i4").tolist()
            assert (row[3], ids) == (done.text, done.token_ids)
            scores = score(done.text, records[i].references)
            assert row[5:8] == tuple(scores[name] for name in ("rouge1", "rouge2", "rougeL"))
            assert row[8] == done.mean_layers and row[8] in (None, route + 1)
            assert row[9:11] == (len(ids), done.stop_reason)
            same = sum(a == b for a, b in zip(ids, full[i].token_ids, strict=False))
            assert row[12] == same / max(len(ids), len(full[i].token_ids))
    texts = {row[3] for row in found.values()}
    assert len(texts) > COUNT  # routes differ


def test_losses_and_states_are_those_of_the_prompt(place, whole):
    llm = LLM(place / "model")
    record = load_records(place / "data.jsonl")[2]
    prompt = encode_prompt(llm.tokenizer, record, "plain", 150, 2).ids
    target = [*llm.tokenizer(record.output, add_special_tokens=False)["input_ids"], 2]
    content = dump(whole / FILE_NAME)
    (loss,) = (row for row in content["losses"] if row[:2] == (2, LAYERS - 1))
    assert loss[2] == pytest.approx(sum(teacher_forced_losses(llm, [prompt], [target])), abs=1e-3)
    assert loss[3] == len(target)
    assert len({row[2] for row in content["losses"] if row[0] == 2}) == LAYERS
    states = []

    class Watching:
        def plan(self, requests):
            states.extend(r.prompt_state.clone() for r in requests)
            return [[True] * LAYERS for _ in requests]

    llm.generate([prompt], Watching(), max_new_tokens=2)
    (kept,) = (row[1] for row in content["states"] if row[0] == 2)
    assert np.array_equal(np.frombuffer(kept, dtype="<f4"), states[0].numpy())


def test_running_again_changes_nothing(place, whole, capsys):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert set(before) >= {FILE_NAME, "results.json", "curve.csv", "routes.csv", "allocation.png"}
    assert main(arguments(place, whole)) == 2
    assert "go on with --resume or take another --output" in capsys.readouterr().err
    assert main(arguments(place, whole, "--resume")) == 0
    after = {path.name: path.read_bytes() for path in whole.iterdir()}
    # the report says by which command it was written, and when
    pages = [files.pop("report.html").partition(b'id="settings"')[0] for files in (before, after)]
    assert after == before and pages[0] == pages[1] and b"<figure>" in pages[0]
    results = json.loads(before["results.json"])
    assert results["num_layers"] == LAYERS and sum(results["oracle"]["histogram"]) == 1
    assert results["equal_quality"]["oracle"]["mean_layers"] <= LAYERS


# one process imports everything and forks a child for each kill
KILLED = """
import os, signal, sys
from contextlib import contextmanager
import transformers
from dynkern.allocation.store import TableStore
from dynkern.cli import main
from dynkern.evaluation import fill, oracle

transformers.AutoTokenizer
transaction = TableStore.transaction


@contextmanager
def dying(self):
    # everything is written, nothing committed
    with transaction(self) as connection:
        yield connection
        os.kill(os.getpid(), signal.SIGKILL)


def child(method, left):
    whole = getattr(TableStore, method)

    def counted(self, *arguments):
        nonlocal left
        left -= 1
        if left == 0:
            TableStore.transaction = dying
        return whole(self, *arguments)

    setattr(TableStore, method, counted)
    fill.KEPT_SECONDS = 0.0
    fill.LOSS_ROWS = 5
    return main(sys.argv[1:])


for line in sys.stdin:
    method, left = line.split()
    pid = os.fork()
    if not pid:
        os._exit(child(method, int(left)))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_loses_no_more_than_the_rows_in_flight(place, whole, tmp_path):
    output = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, *arguments(place, output, "--resume")]
    held = []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        # while the table is laid out, between texts, between losses
        for method, at in (("_lay_out", 1), ("put", 9), ("put_losses", 3)):
            print(method, at, file=killed.stdin, flush=True)
            said = iter(killed.stdout.readline, "")
            # what the command tells goes there too
            code = next(line for line in said if line.strip().lstrip("-").isdigit())
            assert int(code) == -signal.SIGKILL
            assert (output / FILE_NAME).exists()
            content = dump(output / FILE_NAME) if held or method != "_lay_out" else {"rows": []}
            held.append((len(content["rows"]), len(content.get("losses", []))))
        killed.stdin.close()
    assert held[0] == (0, 0) and 8 <= held[1][0] < COUNT * LAYERS
    assert held[2] == (COUNT * LAYERS, 10)
    assert main(arguments(place, output, "--resume")) == 0
    assert dump(output / FILE_NAME) == dump(whole / FILE_NAME)
    assert (output / "curve.csv").read_bytes() == (whole / "curve.csv").read_bytes()
    assert sorted(p.name for p in output.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_two_processes_give_the_table_of_one(place, whole, tmp_path):
    output = tmp_path / "out"
    done = launched(2, arguments(place, output))
    assert done.returncode == 0, done.stderr
    assert dump(output / FILE_NAME) == dump(whole / FILE_NAME)
    assert (output / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert not list(output.glob("*shard*"))


def test_shards_of_a_rank_that_died_are_joined(place, whole, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    monkeypatch.setattr(oracle, "Team", lambda: OneOfTwo(0))
    with pytest.raises(ValueError, match="ended early"):
        run_oracle(config(place, output))
    monkeypatch.undo()
    shard = output / "table.shard-0-of-2.sqlite"
    assert shard.exists() and not dump(output / FILE_NAME)["rows"]
    assert main(arguments(place, output)) == 2  # not without --resume
    assert "--resume" in capsys.readouterr().err
    assert main(["merge", str(output)]) == 0
    assert f"{4 * LAYERS} rows joined" in capsys.readouterr().out
    assert not shard.exists() and len(dump(output / FILE_NAME)["rows"]) == 4 * LAYERS
    joined = dump(output / FILE_NAME)
    assert main(["merge", str(output)]) == 0
    assert dump(output / FILE_NAME) == joined
    # what is missing is then done by one process
    assert main(arguments(place, output, "--resume")) == 0
    assert dump(output / FILE_NAME) == dump(whole / FILE_NAME)


def test_a_run_goes_on_from_leftover_shards(place, whole, tmp_path, monkeypatch):
    output = tmp_path / "out"
    monkeypatch.setattr(oracle, "Team", lambda: OneOfTwo(0))
    with pytest.raises(ValueError, match="ended early"):
        run_oracle(config(place, output))
    # then the same rank again, with the other one beside it
    with pytest.raises(ValueError, match="ended early"):
        run_oracle(config(place, output, resume=True))
    assert len(dump(output / FILE_NAME)["rows"]) == 4 * LAYERS
    monkeypatch.setattr(oracle, "Team", lambda: OneOfTwo(1))
    with pytest.raises(ValueError, match="ended early"):
        run_oracle(config(place, output, resume=True))
    assert len(dump(output / "table.shard-1-of-2.sqlite")["rows"]) == 3 * LAYERS
    monkeypatch.undo()
    run_oracle(config(place, output, resume=True))
    assert dump(output / FILE_NAME) == dump(whole / FILE_NAME)


def test_samples_and_the_held_out_oracle(place, tmp_path, monkeypatch):
    more = {"samples": 4, "temperature": 1.0, "budgets": "1,3", "losses": False, "seed": 3}
    run_oracle(config(place, tmp_path, **more))
    # draws hang on the row's place alone: an interrupted run comes to the same
    monkeypatch.setattr(oracle, "Team", lambda: OneOfTwo(0))
    with pytest.raises(ValueError, match="ended early"):
        run_oracle(config(place, tmp_path / "again", **more))
    monkeypatch.undo()
    run_oracle(config(place, tmp_path / "again", resume=True, **more))
    assert dump(tmp_path / "again" / FILE_NAME) == dump(tmp_path / FILE_NAME)
    table = load_table(tmp_path)
    assert table.quality.shape == (COUNT, 3, 4) and table.routes.names == ("1", "3", "4")
    assert np.isnan(table.loss).all()
    assert (table.quality.std(axis=2) > 0).any()
    results = json.loads((tmp_path / "results.json").read_text())
    assert "held_out" in results["equal_quality"]
    assert "held_out_low" in (tmp_path / "curve.csv").read_text().splitlines()[0]


def test_greedy_removal_is_searched_once_and_kept(place, tmp_path, monkeypatch):
    output = tmp_path / "out"
    more = {"family": "greedy", "validation": f"{place}/validation.jsonl", "losses": False}
    seen = []
    search = oracle.removal_order

    def stopped(llm, prompts, targets, store, batch_size, report):
        put, left = store.put_removal, [1]

        def once(layer, loss):
            put(layer, loss)
            seen.append((layer, loss))
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1

        store.put_removal = once
        return search(llm, prompts, targets, store, batch_size, report)

    monkeypatch.setattr(oracle, "removal_order", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_oracle(config(place, output, **more))
    monkeypatch.setattr(oracle, "removal_order", search)
    run_oracle(config(place, output, resume=True, **more))
    content = dump(output / FILE_NAME)
    assert [row[1:] for row in content["removals"]][:2] == seen
    dropped = [row[1] for row in content["removals"]]
    assert len(set(dropped)) == LAYERS - 1
    keep = [route[3] for route in content["routes"]]
    assert keep[-1] == "1" * LAYERS
    for step, layer in enumerate(dropped):
        before, after = keep[LAYERS - 1 - step], keep[LAYERS - 2 - step]
        assert [i for i in range(LAYERS) if before[i] != after[i]] == [layer]
    # the first step takes the layer that the answers miss least
    llm = LLM(place / "model")
    records = load_records(place / "validation.jsonl")
    prompts = [encode_prompt(llm.tokenizer, r, "plain", 150, 2).ids for r in records]
    targets = [
        [*llm.tokenizer(r.output, add_special_tokens=False)["input_ids"], 2] for r in records
    ]
    import torch

    from dynkern.evaluation.teacher_forced import teacher_forced_sums

    losses = []
    for layer in range(LAYERS):
        route = torch.ones(LAYERS, dtype=torch.bool)
        route[layer] = False
        losses.append(sum(teacher_forced_sums(llm, prompts, targets, [route] * 3)))
    assert dropped[0] == int(np.argmin(losses))
    monkeypatch.setattr(oracle, "removal_order", None)  # not asked again
    run_oracle(config(place, output, resume=True, **more))


BAD = [
    (["--family", "best"], "family: got 'best', expected one of uniform"),
    (["--family", "file:{p}/absent.json"], "no file {p}/absent.json"),
    (["--family", "greedy"], "validation: got none, expected a file"),
    (["--family", "even", "--budgets", "3"], "expected a divisor of the 4 layers"),
    (["--budgets", "1..5"], "budgets: got 5, expected 1 to 4 layers"),
    (["--budgets", "0"], "budgets: got 0"),
    (["--budgets", "many"], "budgets: got 'many', expected e.g. 1..4"),
    (["--samples", "2"], "give --temperature, e.g. 0.7"),
    (["--samples", "0"], "samples: got 0"),
    (["--temperature", "-1"], "temperature: got -1"),
    (["--temperature", "nan"], "temperature: got nan"),
    (["--top-p", "0"], "top_p: got 0"),
    (["--template", "chat"], "template: got 'chat'"),
    (["--batch-size", "0"], "batch_size: got 0"),
    (["--max-new-tokens", "4000"], "max_new_tokens: got 4000"),
    (["--data", "{p}/absent.jsonl"], "{p}/absent.jsonl"),
    (["--model", "{p}/absent"], "{p}/absent"),
    (["--output", "{p}/data.jsonl"], "data.jsonl cannot be made"),
    (["--seed", "-1"], "seed: got -1"),
]


@pytest.mark.parametrize(("more", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(place, tmp_path, capsys, more, named):
    output = tmp_path / "out"
    words = arguments(place, output, *(word.format(p=place) for word in more))
    assert main(words) == 2
    complaint = capsys.readouterr().err.strip().splitlines()
    assert len(complaint) == 1 and complaint[0].startswith("dynkern: ")
    assert named.format(p=place) in complaint[0]
    assert not output.exists()


def test_another_model_or_data_set_is_refused(place, whole, tmp_path, capsys):
    before = (whole / FILE_NAME).read_bytes()
    save_checkpoint(tmp_path / "other", num_layers=LAYERS, seed=1)
    save_records(tmp_path / "other.jsonl", COUNT + 1)
    capsys.readouterr()
    for more, named in (
        (["--model", f"{tmp_path}/other"], "model.weights"),
        (["--data", f"{tmp_path}/other.jsonl"], "data ("),
        (["--limit", "3"], "prompts (7 then, 3 now)"),
        (["--max-new-tokens", "8"], "max_new_tokens (9 then, 8 now)"),
        (["--family", "early-exit"], "family (uniform then, early-exit now)"),
        (["--dtype", "bfloat16"], "dtype (float32 then, bfloat16 now)"),
        (["--seed", "4"], "seed (0 then, 4 now)"),
    ):
        assert main(arguments(place, whole, "--resume", *more)) == 2
        complaint = capsys.readouterr().err.strip()
        assert named in complaint and "take another --output" in complaint
        assert "\n" not in complaint
    assert (whole / FILE_NAME).read_bytes() == before
