"""Rows of the table: checkpoints that lack something, say something wrong, or are damaged."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bad_input.cases import Case, Place
from dynkern.llm import LLM

EMBEDDING = "model.decoder.embed_tokens.weight"
FC1 = "model.decoder.layers.3.fc1.weight"
Damage = Callable[[Path], Any]


def case(
    damage: Damage, given: str, expected: str = "expected", kind: type[Exception] = ValueError
) -> Case:
    """A copy of the good checkpoint is damaged, then loaded."""

    def call(place: Place, scratch: Path) -> None:
        copy = scratch / "model"
        shutil.copytree(place.model, copy)
        damage(copy)
        LLM(copy)

    return Case("model", given, call, expected, kind)


def config(**changes: Any) -> Damage:
    def damage(copy: Path) -> None:
        path = copy / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def text_of(name: str, content: bytes | None) -> Damage:
    """A file's new content; None: it goes."""

    def damage(copy: Path) -> None:
        (copy / name).unlink() if content is None else (copy / name).write_bytes(content)

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(copy: Path) -> None:
        held = load_file(copy / "model.safetensors")
        change(held)
        save_file(held, copy / "model.safetensors", metadata={"format": "pt"})

    return damage


def weights(change: Callable[[bytes], bytes]) -> Damage:
    def damage(copy: Path) -> None:
        path = copy / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def header(change: Callable[[dict], Any]) -> Damage:
    """safetensors: the length of the header in 8 bytes, the header in JSON, the data."""

    def rewritten(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + size])
        change(entries)
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return weights(rewritten)


def sharded(damage: Damage) -> Damage:
    """The weights in two shards with their index, then damaged."""

    def both(copy: Path) -> None:
        held = load_file(copy / "model.safetensors")
        (copy / "model.safetensors").unlink()
        names = sorted(held)
        weight_map = {}
        for shard, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
            save_file({name: held[name] for name in part}, copy / shard)
            weight_map |= dict.fromkeys(part, shard)
        index = {"metadata": {}, "weight_map": weight_map}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        damage(copy)

    return both


def in_bin(content: Any) -> Damage:
    def damage(copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        torch.save(content, copy / "pytorch_model.bin")

    return damage


class Code:
    """What would run if it were unpickled."""

    def __reduce__(self):
        return print, ("code of a checkpoint has run",)


def a_folder_instead(name: str) -> Damage:
    def damage(copy: Path) -> None:
        (copy / name).unlink()
        (copy / name).mkdir()

    return damage


def truncated_shard(copy: Path) -> None:
    shard = copy / "b.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])


def value(number: float) -> Damage:
    return tensors(lambda held: held[FC1].view(-1)[77:78].fill_(number))


CONFIG = [
    case(text_of("config.json", None), "config.json", kind=FileNotFoundError),
    case(a_folder_instead("config.json"), "config.json", kind=FileNotFoundError),
    case(text_of("config.json", b""), "not valid JSON"),
    case(text_of("config.json", b'{"model_type": "opt",'), "not valid JSON"),
    case(text_of("config.json", b"[" * 100_000), "not valid JSON"),
    case(text_of("config.json", b"\xff\xfe{}"), "not valid JSON"),
    case(text_of("config.json", b"[]"), "holds a list", "an object"),
    case(config(model_type="llama"), "'llama'", "'opt'"),
    case(config(model_type=None), "None", "'opt'"),
    case(config(num_hidden_layers=0), "num_hidden_layers = 0", "an integer > 0"),
    case(config(hidden_size="48"), "hidden_size = '48'", "an integer > 0"),
    case(config(vocab_size=None), "vocab_size = None", "an integer > 0"),
    case(config(num_attention_heads=5), "hidden_size 48", "a multiple"),
    case(config(activation_function="swish"), "'swish'", "relu or gelu"),
    case(config(activation_function=["relu"]), "['relu']", "relu or gelu"),
    case(config(word_embed_proj_dim=-4), "-4", "1 or more"),
    case(config(word_embed_proj_dim="48"), "'48'", "an integer"),
    case(config(enable_bias="false"), "'false'", "True or False"),
    case(config(do_layer_norm_before=2), "2", "True or False"),
    case(config(eos_token_id="</s>"), "'</s>'", "an integer"),
    case(config(bos_token_id=1.5), "1.5", "an integer"),
    case(config(bos_token_id=[2]), "[2]", "an integer"),
    case(config(word_embed_proj_dim=[]), "[]", "an integer"),
    case(config(dtype=["float32"]), "['float32']", "a name"),
]

SHAPES = [
    case(config(num_hidden_layers=7), "layers.6", "tensor"),
    # by terabytes more than there is room for
    case(config(num_hidden_layers=10**9), "layers.6", "tensor"),
    case(config(ffn_dim=10**12), "(92, 48)", "(1000000000000, 48)"),
    case(config(vocab_size=10**9), "(320, 48)", "(1000000000, 48)"),
    case(config(max_position_embeddings=161), "(162, 48)", "(163, 48)"),
    case(config(word_embed_proj_dim=24), "(320, 48)", "(320, 24)"),
    case(config(tie_word_embeddings=False), "lm_head.weight", "tensor"),
    case(tensors(lambda held: held.pop(FC1)), FC1, "tensor"),
    case(tensors(lambda held: held.pop(EMBEDDING)), "embed_tokens.weight", "OPT's"),
    case(
        tensors(lambda held: held.update({FC1: held[FC1].T.contiguous()})), "(48, 92)", "(92, 48)"
    ),
    case(tensors(lambda held: held.update({FC1: held[FC1].flatten()})), "(4416,)", "(92, 48)"),
    case(tensors(lambda held: held.update({FC1: held[FC1].to(torch.int8)})), "int8", "float"),
    case(tensors(lambda held: held.clear() or held.update(x=torch.zeros(2))), "embed_tokens"),
    case(value(float("nan")), "layers.3.fc1.weight", "finite weights"),
    case(value(float("-inf")), "layers.3.fc1.weight", "finite weights"),
]

FILES = [
    case(text_of("model.safetensors", None), "no weights", kind=FileNotFoundError),
    case(a_folder_instead("model.safetensors"), "no weights", kind=FileNotFoundError),
    case(weights(lambda data: b""), "model.safetensors cannot be read"),
    case(weights(lambda data: data[:100]), "model.safetensors cannot be read"),
    case(weights(lambda data: data[:-4000]), "model.safetensors cannot be read"),
    case(weights(lambda data: b"\xff" * 8 + data[8:]), "model.safetensors cannot be read"),
    case(weights(lambda data: data[:8] + b"x" + data[9:]), "model.safetensors cannot be read"),
    case(weights(lambda data: data + b"more"), "model.safetensors cannot be read"),
    case(header(lambda e: e[FC1].update(shape=[92, 49])), "model.safetensors cannot be read"),
    case(header(lambda e: e[FC1].update(dtype="F65")), "model.safetensors cannot be read"),
    case(header(lambda e: e[FC1]["data_offsets"].reverse()), "model.safetensors cannot be read"),
    case(sharded(lambda copy: (copy / "b.safetensors").unlink()), "shard", kind=FileNotFoundError),
    case(sharded(truncated_shard), "b.safetensors cannot be read"),
    case(
        sharded(lambda copy: shutil.copy(copy / "a.safetensors", copy / "b.safetensors")),
        "cannot be read",
    ),
    case(sharded(text_of("model.safetensors.index.json", b"{")), "not valid JSON"),
    case(sharded(text_of("model.safetensors.index.json", b"{}")), "no weight_map"),
    case(in_bin({EMBEDDING: Code()}), "pytorch_model.bin cannot be read"),
    case(in_bin([torch.zeros(2)]), "holds a list", "named tensors"),
    case(in_bin({EMBEDDING: 3}), "is a int", "a tensor"),
    case(
        lambda copy: (copy / "model.safetensors").rename(copy / "pytorch_model.bin"),
        "pytorch_model.bin cannot be read",
    ),
    case(
        lambda copy: (
            (copy / "model.safetensors").unlink(),
            (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Code())),
        ),
        "pytorch_model.bin cannot be read",
    ),
    case(text_of("tokenizer.json", b'{"version": "1.0"'), "the tokenizer of"),
]

CASES = [*CONFIG, *SHAPES, *FILES]
