"""`dynkern eval` without arguments, on a tiny bundle; and what is filled in when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dynkern import assets
from dynkern.assets import bundle_folder
from dynkern.cli import main
from dynkern.data import load_records
from dynkern.evaluation.bundle import bundle_bytes
from dynkern.evaluation.standard import DEFAULT_LIMIT, defaults, planned
from dynkern.evaluation.task_scores import budgets, score_tasks
from dynkern.llm import LLM
from dynkern.training.pretraining.recipe import DEFAULT_RECIPE, read_recipe
from support.bundle import save_task_checkpoint, use_bundle
from support.checkpoint import save_checkpoint, save_records

pytestmark = pytest.mark.usefixtures("brief_windows")
SMALL = "--limit 12 --repeat 1 --max-new-tokens 6 --batch-size 4"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("default")
    save_task_checkpoint(folder / "MODEL")
    words = f"bundle --model {folder}/MODEL --output {folder}/BUNDLE --work {folder}/WORK"
    assert main([*words.split(), "--limit", "0", "--predictor-prompts", "48"]) == 0
    return folder / "BUNDLE"


def results(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


@pytest.fixture
def default(bundle, monkeypatch, tmp_path) -> Path:
    use_bundle(monkeypatch, bundle)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_arguments_run_the_standard_set(default, capsys):
    assert main(["eval", *SMALL.split()]) == 0
    out = capsys.readouterr().out
    found = results(default / "dynkern-eval")
    policies = [run["policy"] for run in found["runs"]]
    assert policies == [
        *("full", "uniform:6", "uniform:4", "uniform:2"),
        *("early_exit:5", "early_exit:3", "early_exit:1", "random:4"),
        *("oracle:0.5@dynkern-eval/oracle", "predictor:0.5@default"),
    ]
    arguments = found["meta"]["arguments"]
    assert (arguments["model"], arguments["data"]) == ("default", "tasks:test")
    assert (arguments["template"], found["meta"]["prompts"]) == ("plain", 12)
    rouge = {run["policy"]: run["rougeL"] for run in found["runs"]}
    layers = {run["policy"]: run["mean_layers"] for run in found["runs"]}
    oracle = "oracle:0.5@dynkern-eval/oracle"
    # chosen by these very scores, among the uniform routes
    assert rouge[oracle] >= max(rouge["uniform:4"], rouge["uniform:2"]) - 1e-9
    assert layers[oracle] <= 4 + 1e-6
    assert all(run["seconds"] > 0 for run in found["runs"])
    assert "upper bound" in out and "dynkern-eval" in out.strip().splitlines()[-1]


def test_a_stopped_run_goes_on_and_a_used_folder_is_refused(default, capsys):
    words = ["eval", *SMALL.split(), "--no-timing"]
    assert main(words) == 0
    first = results(default / "dynkern-eval")["runs"]
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--resume" in error
    assert main([*words, "--resume"]) == 0
    assert results(default / "dynkern-eval")["runs"] == first
    # a kill ahead of the sweep leaves the table alone
    for name in ("samples.jsonl", "results.json"):
        (default / "dynkern-eval" / name).unlink()
    assert main([*words, "--resume"]) == 0
    assert results(default / "dynkern-eval")["runs"] == first


def test_policies_of_ones_own_go_before_the_standard_set(default):
    assert main(["eval", *SMALL.split(), "--no-timing", "--policy", "uniform:3"]) == 0
    assert [run["policy"] for run in results(default / "dynkern-eval")["runs"]] == [
        "full",
        "uniform:3",
    ]
    assert not (default / "dynkern-eval" / "oracle").exists()


def test_a_bundle_without_predictor_goes_without(bundle, default, monkeypatch):
    shutil.copytree(bundle, default / "bare")
    shutil.rmtree(default / "bare" / "predictor")
    use_bundle(monkeypatch, default / "bare")
    assert main(["eval", *SMALL.split(), "--no-timing", "--limit", "4"]) == 0
    policies = [run["policy"] for run in results(default / "dynkern-eval")["runs"]]
    assert len(policies) == 9 and not any("predictor" in policy for policy in policies)


def test_model_and_data_may_be_given_alone(default):
    save_checkpoint(default / "model", num_layers=6)
    save_records(default / "data.jsonl", 4)
    end = [*SMALL.split(), "--no-timing", "--policy", "uniform:2"]
    assert main(["eval", "--model", "model", "--output", "a", *end]) == 0
    assert main(["eval", "--data", "data.jsonl", "--output", "b", *end]) == 0
    model, data = results(default / "a")["meta"], results(default / "b")["meta"]
    assert (model["num_layers"], model["arguments"]["data"]) == (6, "tasks:test")
    assert (data["num_layers"], data["prompts"]) == (8, 4)
    assert (model["arguments"]["template"], data["arguments"]["template"]) == ("alpaca", "plain")


def test_what_is_filled_in():
    assert defaults(None, None, None, None, None) == {
        "model": "default",
        "data": "tasks:test",
        "template": "plain",
        "limit": DEFAULT_LIMIT,
        "max_new_tokens": 32,
    }
    given = ("m", "d.jsonl", None, None, None)
    assert list(defaults(*given).values()) == ["m", "d.jsonl", "alpaca", None, 64]
    given = ("default", "d.jsonl", "alpaca", 5, 7)
    assert list(defaults(*given).values()) == ["default", "d.jsonl", "alpaca", 5, 7]
    assert list(defaults("m", None, None, None, None).values())[2:] == ["alpaca", DEFAULT_LIMIT, 32]


def test_the_set_fits_any_depth():
    assert planned(1) == (*("uniform:1",) * 3, *("early_exit:0",) * 3, "random:1")
    assert planned(24)[:3] == ("uniform:18", "uniform:12", "uniform:6")


def test_without_a_bundle_it_is_one_line(default, monkeypatch, capsys):
    use_bundle(monkeypatch, default / "absent")
    assert main(["eval"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no 'default' model" in error


# -- the bundle that is shipped -------------------------------------------------------------------

# the wanted 0.80 at full depth, less what 64 records may miss it by
FLOOR = 0.75
shipped = pytest.mark.skipif(
    not (bundle_folder() / "config.json").is_file(),
    reason=f"no bundled model: {assets.BUNDLE_NAME} is not in dynkern/assets yet",
)


@shipped
def test_the_shipped_bundle_is_small_and_says_where_it_comes_from():
    folder = bundle_folder()
    assert bundle_bytes(folder) <= 20e6
    page = (folder / "README.md").read_text()
    assert "Apache-2.0" in page and "synthetic" in page and "Not stated" not in page
    assert json.loads((folder / "scores.json").read_text())["scores"]
    for name in ("predictor/predictor.json", "tokenizer.json", "generation_config.json"):
        assert (folder / name).is_file()


@shipped
def test_the_shipped_recipe_made_the_shipped_bundle():
    scores = json.loads((bundle_folder() / "scores.json").read_text())
    told = scores["training"]["recipe"]
    recipe = json.loads(json.dumps(read_recipe(DEFAULT_RECIPE).to_json()))
    # how often it was looked at changes nothing
    assert {**recipe, "eval_tokens": 0} == {**told, "eval_tokens": 0}
    assert scores["training"]["tokens"] >= recipe["phases"][-1]["until_tokens"]


@shipped
def test_what_the_shipped_bundle_was_scored_is_what_was_wanted():
    scores = json.loads((bundle_folder() / "scores.json").read_text())["scores"]["bundle"]
    full, most, half, quarter = scores["rougeL"].values()
    assert full >= 0.8 and most >= 0.9 * full
    assert most > half + 0.02 and half > quarter + 0.02
    for label, source in (("full", "exact_difficulty"), ("1/4", "difficulty")):
        levels = [scores[source][label][level] for level in "1234"]
        assert levels == sorted(levels, reverse=True)


@shipped
def test_the_shipped_bundle_answers_and_loses_by_skipping():
    llm = LLM()
    records = load_records("tasks:test", limit=64)
    found = score_tasks(llm, records, budgets(llm.spec.num_layers, (0.25,)))["rougeL"]
    assert found["full"] >= FLOOR > found["1/4"]
