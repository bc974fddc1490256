"""The command line: bad input is one line and exit code 2, good input does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynkern.cli import main
from support.checkpoint import save_checkpoint, save_records


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    save_checkpoint(directory / "model", num_layers=6)
    save_records(directory / "data.jsonl")
    (directory / "empty.jsonl").write_text("")
    lines = (directory / "data.jsonl").read_text().splitlines()
    (directory / "broken.jsonl").write_text("\n".join([*lines[:2], '{"instruction": ', lines[3]]))
    (directory / "llama").mkdir()
    (directory / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (directory / "bare").mkdir()
    return directory


EVAL = "eval --model {p}/model --data {p}/data.jsonl --template plain --output {out}"
GENERATE = "generate --model {p}/model --prompt hello"
# command line, and what its one line must name
BAD = [
    (f"{EVAL} --policy", "--policy"),
    (f"{EVAL} --policy nonsense:3", "nonsense:3"),
    (f"{EVAL} --policy uniform:", "uniform:K"),
    (f"{EVAL} --policy uniform:two", "uniform:K"),
    (f"{EVAL} --policy uniform:7", "uniform budget: got 7, expected 1 to 6"),
    (f"{EVAL} --policy uniform:0", "uniform budget: got 0"),
    (f"{EVAL} --policy uniform-even:4", "divisor"),
    (f"{EVAL} --policy early_exit:6", "early_exit layer: got 6, expected 0 to 5"),
    (f"{EVAL} --policy random:-1", "random budget: got -1"),
    (f"{EVAL} --policy stochastic:1.5", "stochastic probability"),
    (f"{EVAL} --policy confidence:top_prob=2", "confidence top_prob"),
    (f"{EVAL} --policy confidence:top_prob=0.5,exits=9", "confidence exits: got layer 9"),
    (f"{EVAL} --policy full:3", "expected full"),
    (f"{EVAL} --kv-fill guess", "kv_fill: got 'guess'"),
    (f"{EVAL} --prefill half", "prefill: got 'half'"),
    (f"{EVAL} --prefill routed --policy stochastic:0.5", "prefill: 'routed'"),
    (f"{EVAL} --template chat", "template: got 'chat'"),
    (f"{EVAL} --dtype int3", "dtype: got 'int3'"),
    (f"{EVAL} --backend tpu", "backend: got 'tpu'"),
    (f"{EVAL} --backend cuda", "backend: 'cuda' cannot run"),
    (f"{EVAL} --backend reference --dtype int8", "dtype: got 'int8'"),
    (f"{EVAL} --batch-size 0", "batch_size: got 0"),
    (f"{EVAL} --max-new-tokens 0", "max_new_tokens: got 0"),
    (f"{EVAL} --max-new-tokens 4000", "max_new_tokens: got 4000"),
    (f"{EVAL} --repeat 0", "repeat: got 0"),
    (f"{EVAL} --output {{p}}/data.jsonl", "output: {p}/data.jsonl cannot be made"),
    (f"{EVAL} --output /proc/none/here", "output: /proc/none/here cannot be made"),
    (f"{EVAL} --limit 0", "limit: got 0"),
    (f"{EVAL} --seed -1", "seed: got -1"),
    (f"{EVAL} --frobnicate", "frobnicate"),
    ("eval --model {p}/model --data {p}/absent.jsonl --output {out}", "absent.jsonl"),
    ("eval --model {p}/model --data {p}/empty.jsonl --output {out}", "empty"),
    ("eval --model {p}/model --data {p}/broken.jsonl --output {out}", "line 3"),
    ("eval --model {p}/absent --data {p}/data.jsonl --output {out}", "{p}/absent"),
    ("eval --model {p}/llama --data {p}/data.jsonl --output {out}", "'llama', expected 'opt'"),
    ("eval --model {p}/bare --data {p}/data.jsonl --output {out}", "config.json"),
    (f"{GENERATE} --policy uniform:99", "uniform budget: got 99"),
    (f"{GENERATE} --max-new-tokens 999", "max_new_tokens: got 999, expected 1 to 160"),
    (f"{GENERATE} --temperature -1", "temperature: got -1"),
    (f"{GENERATE} --top-p 0 --temperature 1", "top_p: got 0"),
    (f"{GENERATE} --input there", "--template"),
    (f"{GENERATE} --kv-fill all", "kv_fill: got 'all'"),
    ("generate --model {p}/model --prompt  ''", "prompt: empty"),
    ("doctor --model {p}/absent", "{p}/absent"),
    ("frobnicate", "frobnicate"),
]


@pytest.mark.parametrize(("line", "named"), BAD, ids=[f"{i}-{b[1]}" for i, b in enumerate(BAD)])
def test_bad_input_is_one_line(place, tmp_path, capsys, line, named):
    words = [w.strip("'") for w in line.format(p=place, out=tmp_path / "out").split()]
    assert main(words) == 2
    seen = capsys.readouterr()
    complaint = seen.err.strip().splitlines()
    assert len(complaint) == 1, seen.err
    assert complaint[0].startswith("dynkern: ") and named.format(p=place) in complaint[0]
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_generate_streams_the_text_and_tells_the_layers(place, capsys):
    words = GENERATE.format(p=place).split()
    assert main([*words, "--policy", "uniform:2", "--max-new-tokens", "9"]) == 0
    seen = capsys.readouterr()
    assert "2.0 of 6 layers a token" in seen.err and "tokens/s" in seen.err
    from dynkern.llm import LLM

    (expected,) = LLM(place / "model").generate(["hello"], "uniform:2", max_new_tokens=9)
    assert seen.out.rstrip("\n") == expected.text.rstrip("\n")


def test_generate_with_a_template(place, capsys):
    words = GENERATE.format(p=place).split()
    assert main([*words, "--template", "plain", "--input", "there", "--max-new-tokens", "3"]) == 0
    assert "6.0 of 6 layers a token" in capsys.readouterr().err


def test_info_names_every_op_and_the_gpu_note(capsys, monkeypatch):
    from dynkern.ops import OPS

    monkeypatch.setenv("COLUMNS", "200")
    assert main(["info"]) == 0
    seen = capsys.readouterr().out
    assert all(op.label in seen for op in OPS.values())
    assert "csrc/cpu" in seen and "csrc/cuda" in seen and "GPU" in seen


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    seen = capsys.readouterr().out
    assert all(name in seen for name in ("eval", "generate", "info", "doctor"))
    assert all(name in seen for name in ("oracle", "merge", "allocate", "train-predictor"))


def test_an_interrupt_says_how_to_go_on(place, tmp_path, capsys, monkeypatch):
    from dynkern.evaluation import sweep

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_quality", interrupted)
    assert main(EVAL.format(p=place, out=tmp_path / "out").split()) == 130
    assert capsys.readouterr().err.strip().endswith("--resume goes on with a stopped eval")
