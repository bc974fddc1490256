"""Rows of the table: commands that make tables, predictors, controllers and figures of them."""

from __future__ import annotations

from bad_input.cases import Case

ON = "--model {p}/model --data {p}/data.jsonl --template plain --output {out}"
ORACLE = f"oracle {ON} --max-new-tokens 4"
# the table of the place was made so
TABLE = "--no-losses --limit 6 --budgets 3 --template plain --max-new-tokens 4"
REFILL = f"oracle --data {{p}}/data.jsonl --output {{p}}/table {TABLE}"
PREDICTOR = "train-predictor {p}/table --output {out}"
GENERATE = "generate --model {p}/model --prompt hello --policy"
CONTROLLER = f"train-controller {ON} --max-length 100"
FINETUNE = f"finetune {ON} --max-length 100"
CALIBRATE = f"calibrate {ON} --split all --max-new-tokens 4"
HIDDEN = f"analyze hidden-states {ON} --split all --max-length 100"
QUALITY = f"analyze quality {ON} --split all --max-length 100"
REPRODUCE = f"reproduce {ON}"
EXPLAIN = "explain --model {p}/model --policy full"
TASKS = "tasks --output {out}/a.jsonl"


TABLES = [
    Case("family", "'deep'", f"{ORACLE} --family deep", "uniform, even"),
    Case("family", "'file:'", f"{ORACLE} --family file:", "file:PATH"),
    Case("family", "{p}/absent.json", f"{ORACLE} --family file:{{p}}/absent.json", "routes in"),
    Case("family", "'101'", f"{ORACLE} --family file:{{p}}/short.json", "6 of 0 and 1"),
    Case("family", "broken JSON", f"{ORACLE} --family file:{{p}}/broken.json", "Expecting"),
    Case("family", "byte 0xff", f"{ORACLE} --family file:{{p}}/bytes.json", "UTF-8"),
    Case("family", "'.txt'", f"{ORACLE} --family file:{{p}}/data.txt", ".json or .csv"),
    Case("budgets", "7", f"{ORACLE} --budgets 7", "1 to 6"),
    Case("budgets", "99999999999", f"{ORACLE} --budgets 1..99999999999", "1 to 6"),
    Case("budgets", "'4..2'", f"{ORACLE} --budgets 4..2", "a rising range"),
    Case("budgets", "'x'", f"{ORACLE} --budgets x", "1..6"),
    Case("uniform-even budget", "4", f"{ORACLE} --family even --budgets 4", "a divisor"),
    Case("samples", "0", f"{ORACLE} --samples 0", "1 or more"),
    Case("samples", "2 of greedy", f"{ORACLE} --samples 2", "--temperature"),
    Case("temperature", "nan", f"{ORACLE} --temperature nan", "0 or more"),
    Case("top_p", "0", f"{ORACLE} --top-p 0", "more than 0"),
    Case("validation", "none", f"{ORACLE} --family greedy", "a file of records"),
    Case("output", "already holds a table", f"{REFILL} --model {{p}}/model", "--resume"),
    Case("output", "num_layers", f"{REFILL} --model {{p}}/other --resume", "the same ones"),
    Case("table", "{p}/absent", "allocate {p}/absent", "dynkern oracle"),
    Case("table", "{p}/damaged", "allocate {p}/damaged", "a copy back"),
    Case("table", "{p}/data.jsonl", "allocate {p}/data.jsonl", "a copy back"),
    Case("resamples", "0", "allocate {p}/table --output {out} --resamples 0", "1 or more"),
    Case("seed", "-1", "allocate {p}/table --output {out} --seed -1", "0 or more"),
    Case("table", "{p}/absent", "merge {p}/absent", "dynkern oracle"),
    Case("table", "{p}/damaged", "merge {p}/damaged", "a copy back"),
]

PREDICTORS = [
    Case("table", "5 prompts to train", PREDICTOR, "10 or more"),
    Case("head", "'tree'", f"{PREDICTOR} --head tree", "ridge, mlp"),
    Case("budget", "'0'", f"{PREDICTOR} --budget 0", "mean layers"),
    Case("budget", "'nan'", f"{PREDICTOR} --budget nan", "mean layers"),
    Case("train_share", "1.0", f"{PREDICTOR} --train-share 1", "between 0 and 1"),
    Case("resamples", "0", f"{PREDICTOR} --resamples 0", "1 or more"),
    Case("table", "{p}/damaged", f"{GENERATE} oracle:0.5@{{p}}/damaged", "a copy back"),
    Case("budget", "'9'", f"{GENERATE} oracle:9@{{p}}/table", "1 to 6"),
    Case("policy oracle", "request 0 is not", f"{GENERATE} oracle:0.5@{{p}}/table", "predictor"),
    Case("predictor", "{p}/absent", f"{GENERATE} predictor:{{p}}/absent", "train-predictor"),
    Case(
        "policy histogram",
        "made for 6 layers",
        "generate --model {p}/other --prompt hello --policy histogram:equal@{p}/table",
        "4",
    ),
    Case("controller", "{p}/absent", f"{GENERATE} controller:{{p}}/absent", "no file"),
    Case("controller", "{p}/data.jsonl", f"{GENERATE} controller:{{p}}/data.jsonl", "read"),
]

TRAINING = [
    Case("input", "'luck'", f"{CONTROLLER} --input luck", "hidden, fixed"),
    Case("alpha", "-1.0", f"{CONTROLLER} --alpha -1", "from 0"),
    Case("tau", "0.0", f"{CONTROLLER} --tau 0", "above 0"),
    Case("tau", "nan", f"{CONTROLLER} --tau nan", "above 0"),
    Case("depth", "4", f"{CONTROLLER} --depth 4", "1, 2 or 3"),
    Case("width", "0", f"{CONTROLLER} --width 0", "1 or more"),
    Case("gate_rate", "nan", f"{CONTROLLER} --gate-rate nan", "more than 0"),
    Case("max_length", "4000", f"{CONTROLLER} --max-length 4000", "160 positions"),
    Case("preset", "'huge'", f"{FINETUNE} --preset huge", "paper, authors"),
    Case("route", "'stochastic:0.5'", f"{FINETUNE} --route stochastic:0.5", "one fixed route"),
    Case("uniform budget", "9", f"{FINETUNE} --route uniform:9", "1 to 6"),
    Case("layerdrop", "1.0", f"{FINETUNE} --layerdrop 1", "below 1"),
    Case("exit_layer", "9", f"{FINETUNE} --exit-layer 9", "0 to 4"),
    Case("exit_loss", "1.5", f"{FINETUNE} --exit-loss 1.5", "below 1"),
    Case("exit_loss", "-0.1", f"{FINETUNE} --exit-loss -0.1", "0 to below 1"),
    Case("micro_batch", "3", f"{FINETUNE} --micro-batch 3 --batch-size 4", "a divisor"),
    Case("epochs", "nan", f"{FINETUNE} --epochs nan", "more than 0"),
    Case("config", "'0x64'", "finetune --data {p}/data.jsonl --output {out} --config 0x64", "12x"),
]

FIGURES = [
    Case("policy", "'uniform:3'", f"{CALIBRATE} --policy uniform:3", "confidence"),
    Case("target", "nan", f"{CALIBRATE} --target nan", "above 0 to 1"),
    Case("grid", "1", f"{CALIBRATE} --grid 1", "2 or more"),
    Case("exit_layer", "5", f"{CALIBRATE} --exit-layer 5", "0 to 4"),
    Case("split", "'some'", f"{HIDDEN} --split some", "train, validation"),
    Case("draws", "0", f"{HIDDEN} --draws 0", "1 or more"),
    Case("dtype", "'int3'", f"{QUALITY} --dtype int3", "float32, bfloat16"),
    Case("backend", "'tpu'", f"{QUALITY} --backend tpu", "reference, cpu"),
    Case("max_new_tokens", "0", f"{QUALITY} --max-new-tokens 0", "1 or more"),
    Case("steps", "0", f"{REPRODUCE} --steps 0", "1 or more"),
    Case("alpha", "nan", f"{REPRODUCE} --alpha nan", "from 0"),
    Case("repeat", "-1", f"{REPRODUCE} --repeat -1", "0 or more"),
    Case("samples_limit", "0", f"{REPRODUCE} --samples-limit 0", "1 or more"),
    Case("states_limit", "0", f"{REPRODUCE} --states-limit 0", "1 or more"),
    Case("train_limit", "0", f"{REPRODUCE} --train-limit 0", "1 or more"),
    Case("max_new_tokens", "0", f"{REPRODUCE} --max-new-tokens 0", "1 or more"),
    Case("repeat", "0", f"{EXPLAIN} --repeat 0", "1 or more"),
    Case("batch_size", "0", f"{EXPLAIN} --batch-size 0", "1 or more"),
    Case("new_tokens", "1", f"{EXPLAIN} --new-tokens 1", "2 or more"),
    Case("prompt_tokens", "0", f"{EXPLAIN} --prompt-tokens 0", "1 or more"),
    Case("prompt of request 0", "500 tokens", f"{EXPLAIN} --prompt-tokens 500", "exceed"),
    Case("kv_fill", "'all'", f"{EXPLAIN} --kv-fill all", "project, copy"),
    Case("family", "'sorting'", f"{TASKS} --family sorting", "copy, reverse"),
    Case("difficulty", "5", f"{TASKS} --difficulty 5", "1, 2, 3, 4"),
    Case("count", "0", f"{TASKS} --count 0", "1 or more"),
    Case("output", "/proc/none", "tasks --output /proc/none/a.jsonl --count 2", "a place"),
    Case("data", "'x=1'", "eval --model {p}/model --data tasks:test?x=1 --output {out}", "family"),
]

CASES = [*TABLES, *PREDICTORS, *TRAINING, *FIGURES]
