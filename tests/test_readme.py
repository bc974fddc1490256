"""Every command and every piece of Python in README runs; its generated table is up to date."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import op_table
from dynkern.assets import bundle_folder
from dynkern.cli import main
from dynkern.ops import OPS
from dynkern.ops.backends import BACKENDS
from support.checkpoint import save_checkpoint, save_records
from support.forked import Forked

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


# what a loop of prompts reads
TYPED = "Today is a beautiful day\n/policy uniform:6\nand I want\n"
COMMANDS = [
    command.strip()
    for block in blocks("bash")
    for line in block.splitlines()
    for command in line.split("&&")
    if command.strip()
]


# commands of the blocks with a test of their own: its file, and words of it
ELSEWHERE = {
    "dynkern reproduce --model OPT-ALPACA/model --data tatsu-lab/alpaca": (
        "evaluation/test_reproduce.py",
        "reproduce --model",
    ),
}
# what stands in the place of the hub's, which is not asked: a random model of as many layers
HUB = {
    "facebook/opt-1.3b": "OPT-1.3B",
    "OPT-ALPACA/model": "OPT-1.3B",
    "tatsu-lab/alpaca": "DATA.jsonl",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("readme")
    save_checkpoint(directory / "MODEL")
    save_checkpoint(directory / "OPT-1.3B", num_layers=24, max_position_embeddings=512)
    save_records(directory / "DATA.jsonl", 8)
    phase = {"until_tokens": 400, "layers": 2, "families": ["copy"]}
    recipe = {"phases": [phase], "hidden_size": 32, "vocab_size": 320, "eval_records": 4}
    recipe |= {"batch_tokens": 400, "tokenizer_records": 50}
    (directory / "recipe.json").write_text(json.dumps(recipe))
    return directory


@pytest.fixture(scope="module")
def forked(place: Path) -> Iterator[Forked]:
    """Processes that have imported already what commands import."""
    with Forked() as server:
        words = f"eval --model {place}/MODEL --data {place}/DATA.jsonl --template plain --limit 2"
        words += f" --policy full --no-timing --max-new-tokens 3 --output {place}/warm"
        server.warm(words.split())
        (place / "typed").write_text(TYPED)
        yield server


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    """TABLE and PREDICTOR, which some commands need and others make."""
    save_records(place / "MORE.jsonl", 60)
    words = f"oracle --model {place}/MODEL --data {place}/MORE.jsonl --template plain --no-losses"
    assert main([*words.split(), "--max-new-tokens", "6", "--output", f"{place}/TABLE"]) == 0
    words = f"train-predictor {place}/TABLE --output {place}/PREDICTOR --train-share 0.6"
    assert main(words.split()) == 0
    return place


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.startswith("dynkern") and c not in ELSEWHERE],
    ids=lambda c: c[:60],
)
def test_dynkern_command_runs(place, forked, command, tmp_path, request):
    words = [str(place / "DATA.jsonl") if w == "DATA" else w for w in shlex.split(command)]
    words = [str(place / "MODEL") if w == "MODEL" else w for w in words]
    words = [str(place / HUB[w]) if w in HUB else w for w in words]
    if "oracle" not in words and ("TABLE" in command or "PREDICTOR" in command):
        made = request.getfixturevalue("made")
        fresh = words.index("--output") + 1 if "train-predictor" in words else None
        for place_of, word in enumerate(words):
            if place_of != fresh:
                word = word.replace("TABLE", f"{made}/TABLE")
                words[place_of] = word.replace("PREDICTOR", f"{made}/PREDICTOR")
        words = [w.replace("/DATA.jsonl", "/MORE.jsonl") for w in words]
    if words == ["dynkern", "eval"]:
        if not (bundle_folder() / "config.json").is_file():
            pytest.skip("no bundled model in dynkern/assets yet")
        words += ["--limit", "8"]
    if "pretrain" in words:
        words += ["--recipe", str(place / "recipe.json")]
    if "eval" in words:
        # the model and the data are tiny, so are the lengths
        words += ["--max-new-tokens", "6", "--repeat", "1", "--batch-size", "4"]
    if "oracle" in words:
        words += ["--max-new-tokens", "6"]
    if "train-predictor" in words:
        # of prompts that are mostly equal, more fall on one side than on the other
        words += ["--train-share", "0.6"]
    done = forked.run(
        words[1:], tmp_path, stdin=str(place / "typed"), cwd=str(tmp_path), brief=True
    )
    assert done.code in (0, 1) if "doctor" in words else done.code == 0, done.error
    assert "Traceback" not in done.error
    assert done.out.strip()


def test_the_other_commands_are_known(tmp_path):
    others = sorted({c for c in COMMANDS if not c.startswith("dynkern")})
    # the continuous integration runs these two as they stand; the first is tried here
    tests = "pytest -q -n auto --dist loadfile"
    assert others == ["pip install -e '.[test]'", "pip install .", tests]
    script = (ROOT / ".ci" / "run").read_text()
    assert tests in script and "pip install --quiet -e '.[test]'" in script
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    install += ["--no-build-isolation", "--target", str(tmp_path), str(ROOT)]
    # test_build.py has pip compile it
    quick = {**os.environ, "DYNKERN_SKIP_EXT": "1"}
    done = subprocess.run(install, env=quick, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen = subprocess.run(
        [sys.executable, "-c", "import dynkern; print(dynkern.__file__, dynkern.__version__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert seen.stdout.startswith(str(tmp_path)), seen.stderr


# commands within the text, and what makes them tiny; FOLDER is a fresh one
_INLINE = re.compile(
    r"(?<!`)`((?:python -m|dynkern|torchrun|accelerate launch|pip install|pytest|\.ci/)[^`]*)`"
)
INLINE = {
    " ".join(c.split()) for c in _INLINE.findall(re.sub(r"```.*?```", "", README, flags=re.S))
}
INLINE = {c for c in INLINE if not c.startswith(("dynkern.", "dynkern/"))}
INLINE -= {"dynkern"}  # the name of a logger
TINY = {
    "python -m bench.compare OLD NEW": "{root}/bench/results/cpu.csv {root}/bench/results/cpu.csv",
    "python -m bench.cpu_plot": "{root}/bench/results/cpu.csv cpu.png",
    "python -m bench.int8_kernels --output DIR": "--output . --dry-run",
    "python -m bench.claims": "",
    "python -m bench.figures": ".",
    "python -m tests.fuzz --minutes N": "--minutes 0 budgets",
}
# run by a test of their own, in a file that names them so
OWN_TEST = {
    "python -m bench.aot --output DIR": ("bench/test_aot.py", "bench.aot"),
    "python -m bench.controllers MODEL DATA CONTROLLERS": (
        "bench/test_controllers.py",
        "controllers.main",
    ),
    "python -m bench.cost_model --output DIR": ("bench/test_cost_model.py", "_dry(cost_model"),
    "python -m bench.depths --model M --data D --table TABLE --output DIR": (
        "bench/test_depths.py",
        "invoke(depths,",
    ),
    "python -m bench.keep_eval OUTPUT MODEL DATA": ("bench/test_keep_eval.py", "keep_eval.main"),
    "python -m bench.keep_reproduce OUTPUT SECONDS": (
        "bench/test_keep_reproduce.py",
        "keep_reproduce.main",
    ),
    "python -m bench.measure --output DIR": ("bench/test_measure.py", "invoke(measure,"),
    "python -m bench.oracle_table --model M --data D --output DIR": (
        "bench/test_oracle_table.py",
        "invoke(oracle_table,",
    ),
    "python -m bench.levels --output DIR": ("bench/test_cost_model.py", "_dry(levels"),
    "python -m bench.scaling --output DIR": ("bench/test_cost_model.py", "_dry(scaling"),
    "python -m bench.end_to_end --output DIR": ("bench/test_end_to_end.py", "invoke(end_to_end,"),
    "python -m bench.gpu_acceptance --output DIR": (
        "bench/test_gpu_acceptance.py",
        "bench.gpu_acceptance",
    ),
    "python -m bench.quality MODEL DATA": ("bench/test_quality.py", "quality.main"),
    "python -m bench.scheduling --output DIR": ("bench/test_scheduling.py", "invoke(scheduling,"),
    "dynkern bench ops": ("bench/test_ops.py", '"bench", "ops"'),
    "dynkern bundle --model SMALL/model --training SMALL/pretrain.json --output BUNDLE": (
        "evaluation/test_bundle.py",
        "bundle --model",
    ),
    "pytest bench/ops --benchmark-only": ("bench/test_ops.py", '"--benchmark-only"'),
    "torchrun": ("evaluation/test_sweep_shards.py", "launched(2"),
    "torchrun --nproc-per-node 2 -m dynkern oracle …": (
        "evaluation/test_oracle.py",
        "launched(2, arguments(",
    ),
    "torchrun --nproc-per-node 2 -m dynkern pretrain --output SMALL": (
        "training/test_pretraining_run.py",
        "run_in_two_processes(",
    ),
}
SKIPPED = {
    ".ci/run": "it is what runs these tests",
    "accelerate launch": "the same processes as torchrun's",
    "pip install '.[bench]'": "asks the package index for several GB of peers",
    "pip install '.[gpu]'": "asks the package index for Triton",
    "python -m tests.support.sanitize": "minutes; tests/csrc/test_csrc_sanitize.py runs a part",
    "torchrun -m dynkern finetune …": "the same launch as oracle's, which a test runs",
}


def test_every_inline_command_is_accounted_for():
    # names of commands: those of the blocks above, which run
    named = {c for c in INLINE if re.fullmatch(r"dynkern [a-z-]+", c)}
    run = {" ".join(c.split()[:2]) for c in COMMANDS}
    assert named <= run, sorted(named - run)
    assert INLINE - named == {*TINY, *OWN_TEST, *SKIPPED}
    assert set(COMMANDS) >= ELSEWHERE.keys()


@pytest.mark.parametrize("command", TINY)
def test_inline_command_runs(command, tmp_path, monkeypatch, capfd):
    words = command.split()
    if "int8_kernels" in command and (why := _int8_obstacle()):
        pytest.skip(why)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [words[2], *TINY[command].format(root=ROOT).split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(words[2], run_name="__main__", alter_sys=False)
    assert not ended.value.code, capfd.readouterr().err
    assert capfd.readouterr().out.strip() or list(tmp_path.iterdir())


def _int8_obstacle() -> str | None:
    from bench.int8_kernels import obstacle

    return obstacle()


@pytest.mark.parametrize("command", [*OWN_TEST, *ELSEWHERE])
def test_inline_command_has_a_test(command):
    file, words = {**OWN_TEST, **ELSEWHERE}[command]
    assert words in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", SKIPPED)
def test_inline_command_that_is_left_out(command):
    pytest.skip(SKIPPED[command])


def test_every_link_into_the_page_meets_a_heading():
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-") for heading in headings]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert {link[1:] for link in links if link.startswith("#")} <= set(anchors)
    assert len(set(anchors)) == len(anchors)
    files = [link for link in links if not link.startswith(("#", "https://"))]
    assert files and [file for file in files if not (ROOT / file).is_file()] == []


def test_every_environment_variable_is_in_the_table():
    files = [ROOT / "setup.py", *(ROOT / "dynkern").rglob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    read = set(re.findall(r"""["'](DYNKERN_[A-Z0-9_]+)["']""", text))
    for file in (ROOT / "csrc").rglob("*.*"):
        read |= set(re.findall(r'getenv\("(DYNKERN_\w+)"', file.read_text(encoding="utf-8")))
    table = README.split("## Environment variables")[1].split("\n## ")[0]
    assert read == set(re.findall(r"^\| `(DYNKERN_\w+)", table, re.MULTILINE))


@pytest.mark.parametrize("code", blocks("python"), ids=lambda c: c.split("\n")[2][:40])
def test_python_runs(place, code, capsys):
    exec(compile(code.replace("MODEL", str(place / "MODEL")), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_kernel_table_is_that_of_the_ops():
    assert README.count(op_table.START) == README.count(op_table.END) == 1
    table = README.split(op_table.START)[1].split(op_table.END)[0]
    assert table == op_table.table()  # python -m bench.op_table --write
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    for op, row in zip(OPS.values(), rows, strict=True):
        cells = dict(zip(BACKENDS, row.split(" | ")[1:], strict=True))
        assert {name for name in BACKENDS if cells[name].strip(" |") != "–"} == set(op.kernels)
