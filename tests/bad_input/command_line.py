"""Rows of the table: the command line, every command. {p}: the place, {out}: a folder to write."""

from __future__ import annotations

from bad_input.cases import Case

EVAL = "eval --model {p}/model --data {p}/data.jsonl --template plain --output {out}"
GENERATE = "generate --model {p}/model --prompt hello"


def case(argument: str, given: str, words: str, expected: str = "expected") -> Case:
    return Case(argument, given, words, expected)


POLICIES = [
    case("policy 'nope:3'", "unknown", f"{EVAL} --policy nope:3", "uniform:K"),
    case("policy 'uniform:'", "malformed", f"{EVAL} --policy uniform:", "uniform:K"),
    case("policy 'full:3'", "malformed", f"{EVAL} --policy full:3", "expected full"),
    case("policy ''", "unknown", f"{EVAL} --policy ''", "uniform:K"),
    case("uniform budget", "7", f"{EVAL} --policy uniform:7", "1 to 6"),
    case("uniform-even budget", "4", f"{EVAL} --policy uniform-even:4", "a divisor"),
    case("early_exit layer", "6", f"{EVAL} --policy early_exit:6", "0 to 5"),
    case("random budget", "-1", f"{EVAL} --policy random:-1", "1 to 6"),
    case("stochastic probability", "1.5", f"{EVAL} --policy stochastic:1.5", "0 to 1"),
    case("confidence top_prob", "2", f"{EVAL} --policy confidence:top_prob=2", "0 to 1"),
    case("confidence exits", "9", f"{EVAL} --policy confidence:margin=0.5,exits=9", "0 to 4"),
    case("uniform budget", "99", f"{GENERATE} --policy uniform:99", "1 to 6"),
]

OPTIONS = [
    case("kv_fill", "'guess'", f"{EVAL} --kv-fill guess", "project, copy"),
    case("prefill", "'half'", f"{EVAL} --prefill half", "full, routed"),
    case("prefill", "'stochastic:0.5'", f"{EVAL} --prefill routed --policy stochastic:0.5", "use"),
    case("template", "'chat'", f"{EVAL} --template chat", "alpaca, plain"),
    case("dtype", "'int3'", f"{EVAL} --dtype int3", "float32, bfloat16"),
    case("dtype", "'int8'", f"{EVAL} --backend reference --dtype int8", "float32"),
    case("backend", "'tpu'", f"{EVAL} --backend tpu", "reference, cpu"),
    case("batch_size", "0", f"{EVAL} --batch-size 0", "1 or more"),
    case("max_new_tokens", "0", f"{EVAL} --max-new-tokens 0", "1 or more"),
    case("max_new_tokens", "4000", f"{EVAL} --max-new-tokens 4000", "160 positions"),
    case("repeat", "0", f"{EVAL} --repeat 0", "1 or more"),
    case("limit", "-2", f"{EVAL} --limit -2", "1 or more"),
    case("seed", "-1", f"{EVAL} --seed -1", "0 to 2**64 - 1"),
    case("seed", "18446744073709551616", f"{EVAL} --seed 18446744073709551616", "0 to 2**64"),
    case("kv_fill", "'all'", f"{GENERATE} --kv-fill all", "project, copy"),
    case("prefill", "'routed'", f"{GENERATE} --prefill routed --policy random-step:2", "use"),
    case("template", "'chat'", f"{GENERATE} --template chat", "alpaca, plain"),
    case("--input", "'there'", f"{GENERATE} --input there", "with --template"),
    case("--op", "'softmax'", "bench ops --op softmax", "one of embed"),
    case("--shape", "'7b'", "bench ops --shape 7b", "125m, 1.3b"),
    case("--dtype", "'int8'", "bench ops --dtype int8", "float32, bfloat16"),
    case("--rows", "513", "bench ops --rows 513", "1 to 512"),
    case("--routes", "'some'", "bench ops --routes some", "all, none"),
    case("--backend", "'tpu'", "bench ops --backend tpu", "cpu, triton"),
    case("--repeats", "0", "bench ops --repeats 0", "1 or more"),
    case("--minutes", "-1", "bench ops --minutes -1", "more than 0"),
    case("prompt", "empty", "generate --model {p}/model --prompt ''"),
    case("max_new_tokens", "-1", f"{GENERATE} --max-new-tokens -1", "1 to 160"),
    case("max_new_tokens", "161", f"{GENERATE} --max-new-tokens 161", "1 to 160"),
    case("dtype", "'float8'", f"{GENERATE} --dtype float8", "float32, bfloat16"),
    case("temperature", "nan", f"{GENERATE} --temperature nan", "a finite number"),
    case("temperature", "-1", f"{GENERATE} --temperature -1", "a finite number"),
    case("temperature", "inf", f"{GENERATE} --temperature inf", "a finite number"),
    case("top_p", "0", f"{GENERATE} --top-p 0", "above 0 and up to 1"),
    case("top_p", "1.5", f"{GENERATE} --temperature 1 --top-p 1.5", "above 0 and up to 1"),
    case("top_k", "-1", f"{GENERATE} --temperature 1 --top-k -1", "0 (off) or more"),
    case("seed", "-1", f"{GENERATE} --seed -1", "0 to 2**64 - 1"),
    case("seed", "-1", "doctor --model {p}/model --seed -1", "0 to 2**64 - 1"),
    case("backend", "'tpu'", "doctor --backend tpu", "reference, cpu"),
]

# what the parser of options finds by itself
SPELLING = [
    case("Invalid value for '--batch-size'", "'x'", f"{EVAL} --batch-size x", "valid integer"),
    case("Invalid value for '--temperature'", "'hot'", f"{GENERATE} --temperature hot", "valid"),
    case("Invalid value for '--seed'", "'1.5'", "doctor --seed 1.5", "integer"),
    case("No such option", "--frobnicate", f"{EVAL} --frobnicate", "option"),
    case("No such option", "--frobnicate", "info --frobnicate", "option"),
    case("No such command", "'frobnicate'", "frobnicate", "command"),
    case("Missing option", "--model", "generate --prompt hello", "--model"),
    case("Option '--policy' requires", "argument", f"{EVAL} --policy", "requires"),
    case("Got unexpected extra argument", "more", f"{GENERATE} more", "unexpected"),
]

PATHS = [
    case("model", "{p}/absent", "generate --model {p}/absent --prompt hello", "a checkpoint"),
    case("model", "{p}/absent", "doctor --model {p}/absent", "a checkpoint"),
    case("model", "{p}/data.jsonl", "doctor --model {p}/data.jsonl", "a checkpoint directory"),
    case("model", "''", "doctor --model ''", "a checkpoint directory"),
    case("model", "''", "eval --model '' --output {out}", "a checkpoint directory"),
    case("recipe", "{p}/absent.json", "pretrain --recipe {p}/absent.json --output {out}", "JSON"),
    case("training", "{p}/model", "bundle --model {p}/model --output {out} --training {p}/model"),
    case("data", "{p}/absent.jsonl", "eval --model {p}/model --data {p}/absent.jsonl", ".jsonl"),
    case("data", "{p}/model", "eval --model {p}/model --data {p}/model", "a file"),
    case("data", "empty name", "eval --model {p}/model --data ''", "a file"),
    case("data", "'.txt'", "eval --model {p}/model --data {p}/data.txt", ".jsonl"),
    case("data", "/dev/zero", "eval --model {p}/model --data /dev/zero", ".jsonl"),
    case("output", "{p}/data.jsonl", f"{EVAL} --output {{p}}/data.jsonl", "a folder"),
    case("output", "{p}/data.jsonl/x", f"{EVAL} --output {{p}}/data.jsonl/x", "a folder"),
    case("output", "/proc/none", f"{EVAL} --output /proc/none", "a folder"),
    case("output", "samples.jsonl", f"{EVAL} --output {{p}}/a_folder_instead", "a place"),
    case("output", "samples.jsonl", f"{EVAL} --output {{p}}/used", "--resume"),
    case("output", "other settings", f"{EVAL} --output {{p}}/used --resume --seed 3", "same ones"),
]

CASES = [*POLICIES, *OPTIONS, *SPELLING, *PATHS]
