"""Rows of the table: the command line, every command. {p}: the place, {out}: a folder to write."""

from __future__ import annotations

from bad_input.cases import Case

EVAL = "eval --model {p}/model --data {p}/data.jsonl --template plain --output {out}"
GENERATE = "generate --model {p}/model --prompt hello"


POLICIES = [
    Case("policy 'nope:3'", "unknown", f"{EVAL} --policy nope:3", "uniform:K"),
    Case("policy 'uniform:'", "malformed", f"{EVAL} --policy uniform:", "uniform:K"),
    Case("policy 'full:3'", "malformed", f"{EVAL} --policy full:3", "expected full"),
    Case("policy ''", "unknown", f"{EVAL} --policy ''", "uniform:K"),
    Case("uniform budget", "7", f"{EVAL} --policy uniform:7", "1 to 6"),
    Case("uniform-even budget", "4", f"{EVAL} --policy uniform-even:4", "a divisor"),
    Case("early_exit layer", "6", f"{EVAL} --policy early_exit:6", "0 to 5"),
    Case("random budget", "-1", f"{EVAL} --policy random:-1", "1 to 6"),
    Case("stochastic probability", "1.5", f"{EVAL} --policy stochastic:1.5", "0 to 1"),
    Case("confidence top_prob", "2", f"{EVAL} --policy confidence:top_prob=2", "0 to 1"),
    Case("confidence exits", "9", f"{EVAL} --policy confidence:margin=0.5,exits=9", "0 to 4"),
    Case("uniform budget", "99", f"{GENERATE} --policy uniform:99", "1 to 6"),
]

OPTIONS = [
    Case("kv_fill", "'guess'", f"{EVAL} --kv-fill guess", "project, copy"),
    Case("prefill", "'half'", f"{EVAL} --prefill half", "full, routed"),
    Case("prefill", "'stochastic:0.5'", f"{EVAL} --prefill routed --policy stochastic:0.5", "use"),
    Case("template", "'chat'", f"{EVAL} --template chat", "alpaca, plain"),
    Case("dtype", "'int3'", f"{EVAL} --dtype int3", "float32, bfloat16"),
    Case("dtype", "'int8'", f"{EVAL} --backend reference --dtype int8", "float32"),
    Case("backend", "'tpu'", f"{EVAL} --backend tpu", "reference, cpu"),
    Case("batch_size", "0", f"{EVAL} --batch-size 0", "1 or more"),
    Case("max_new_tokens", "0", f"{EVAL} --max-new-tokens 0", "1 or more"),
    Case("max_new_tokens", "4000", f"{EVAL} --max-new-tokens 4000", "160 positions"),
    Case("repeat", "0", f"{EVAL} --repeat 0", "1 or more"),
    Case("limit", "-2", f"{EVAL} --limit -2", "1 or more"),
    Case("seed", "-1", f"{EVAL} --seed -1", "0 to 2**64 - 1"),
    Case("seed", "18446744073709551616", f"{EVAL} --seed 18446744073709551616", "0 to 2**64"),
    Case("kv_fill", "'all'", f"{GENERATE} --kv-fill all", "project, copy"),
    Case("prefill", "'routed'", f"{GENERATE} --prefill routed --policy random-step:2", "use"),
    Case("template", "'chat'", f"{GENERATE} --template chat", "alpaca, plain"),
    Case("--input", "'there'", f"{GENERATE} --input there", "with --template"),
    Case("--op", "'softmax'", "bench ops --op softmax", "one of embed"),
    Case("--shape", "'7b'", "bench ops --shape 7b", "125m, 1.3b"),
    Case("--dtype", "'int8'", "bench ops --dtype int8", "float32, bfloat16"),
    Case("--rows", "513", "bench ops --rows 513", "1 to 512"),
    Case("--routes", "'some'", "bench ops --routes some", "all, none"),
    Case("--backend", "'tpu'", "bench ops --backend tpu", "cpu, triton"),
    Case("--repeats", "0", "bench ops --repeats 0", "1 or more"),
    Case("--minutes", "-1", "bench ops --minutes -1", "more than 0"),
    Case("prompt", "empty", "generate --model {p}/model --prompt ''"),
    Case("max_new_tokens", "-1", f"{GENERATE} --max-new-tokens -1", "1 to 160"),
    Case("max_new_tokens", "161", f"{GENERATE} --max-new-tokens 161", "1 to 160"),
    Case("dtype", "'float8'", f"{GENERATE} --dtype float8", "float32, bfloat16"),
    Case("temperature", "nan", f"{GENERATE} --temperature nan", "a finite number"),
    Case("temperature", "-1", f"{GENERATE} --temperature -1", "a finite number"),
    Case("temperature", "inf", f"{GENERATE} --temperature inf", "a finite number"),
    Case("top_p", "0", f"{GENERATE} --top-p 0", "above 0 and up to 1"),
    Case("top_p", "1.5", f"{GENERATE} --temperature 1 --top-p 1.5", "above 0 and up to 1"),
    Case("top_k", "-1", f"{GENERATE} --temperature 1 --top-k -1", "0 (off) or more"),
    Case("seed", "-1", f"{GENERATE} --seed -1", "0 to 2**64 - 1"),
    Case("seed", "-1", "doctor --model {p}/model --seed -1", "0 to 2**64 - 1"),
    Case("backend", "'tpu'", "doctor --backend tpu", "reference, cpu"),
]

# what the parser of options finds by itself
SPELLING = [
    Case("Invalid value for '--batch-size'", "'x'", f"{EVAL} --batch-size x", "valid integer"),
    Case("Invalid value for '--temperature'", "'hot'", f"{GENERATE} --temperature hot", "valid"),
    Case("Invalid value for '--seed'", "'1.5'", "doctor --seed 1.5", "integer"),
    Case("No such option", "--frobnicate", f"{EVAL} --frobnicate", "option"),
    Case("No such option", "--frobnicate", "info --frobnicate", "option"),
    Case("No such command", "'frobnicate'", "frobnicate", "command"),
    Case("Missing option", "--model", "generate --prompt hello", "--model"),
    Case("Option '--policy' requires", "argument", f"{EVAL} --policy", "requires"),
    Case("Got unexpected extra argument", "more", f"{GENERATE} more", "unexpected"),
]

PATHS = [
    Case("model", "{p}/absent", "generate --model {p}/absent --prompt hello", "a checkpoint"),
    Case("model", "{p}/absent", "doctor --model {p}/absent", "a checkpoint"),
    Case("model", "{p}/data.jsonl", "doctor --model {p}/data.jsonl", "a checkpoint directory"),
    Case("model", "''", "doctor --model ''", "a checkpoint directory"),
    Case("model", "''", "eval --model '' --output {out}", "a checkpoint directory"),
    Case("recipe", "{p}/absent.json", "pretrain --recipe {p}/absent.json --output {out}", "JSON"),
    Case("training", "{p}/model", "bundle --model {p}/model --output {out} --training {p}/model"),
    Case("data", "{p}/absent.jsonl", "eval --model {p}/model --data {p}/absent.jsonl", ".jsonl"),
    Case("data", "{p}/model", "eval --model {p}/model --data {p}/model", "a file"),
    Case("data", "empty name", "eval --model {p}/model --data ''", "a file"),
    Case("data", "'.txt'", "eval --model {p}/model --data {p}/data.txt", ".jsonl"),
    Case("data", "/dev/zero", "eval --model {p}/model --data /dev/zero", ".jsonl"),
    Case("output", "{p}/data.jsonl", f"{EVAL} --output {{p}}/data.jsonl", "a folder"),
    Case("output", "{p}/data.jsonl/x", f"{EVAL} --output {{p}}/data.jsonl/x", "a folder"),
    Case("output", "/proc/none", f"{EVAL} --output /proc/none", "a folder"),
    Case("output", "samples.jsonl", f"{EVAL} --output {{p}}/a_folder_instead", "a place"),
    Case("output", "samples.jsonl", f"{EVAL} --output {{p}}/used", "--resume"),
    Case("output", "other settings", f"{EVAL} --output {{p}}/used --resume --seed 3", "same ones"),
]

CASES = [*POLICIES, *OPTIONS, *SPELLING, *PATHS]
