"""Checkpoints on disk: every way in which weights are stored, and every way in which they break."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynkern.llm import LLM
from dynkern.models.checkpoint import Checkpoint, read_config, resolve_model
from support.errors import one_line_error
from support.opt import save_opt, tiny_opt

PROMPTS = [[2, 40, 41, 42], [2, 7]]


def named_tensors(module) -> dict[str, torch.Tensor]:
    """What transformers saves: parameters under their names, a tied head once."""
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def safetensors(directory: Path, module) -> None:
    module.save_pretrained(directory)


def sharded_safetensors(directory: Path, module) -> None:
    module.save_pretrained(directory, max_shard_size="60KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2


def pytorch_bin(directory: Path, module) -> None:
    module.config.save_pretrained(directory)
    torch.save(named_tensors(module), directory / "pytorch_model.bin")


def old_pytorch_bin(directory: Path, module) -> None:
    module.config.save_pretrained(directory)
    file = directory / "pytorch_model.bin"
    torch.save(named_tensors(module), file, _use_new_zipfile_serialization=False)


def sharded_bin(directory: Path, module) -> None:
    module.config.save_pretrained(directory)
    weight_map = {}
    for i, (name, tensor) in enumerate(named_tensors(module).items()):
        file = f"pytorch_model-0000{i % 3 + 1}-of-00003.bin"
        weight_map[name] = file
        held = torch.load(directory / file) if (directory / file).exists() else {}
        torch.save({**held, name: tensor}, directory / file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


FORMATS: list[Callable] = [
    safetensors,
    sharded_safetensors,
    pytorch_bin,
    old_pytorch_bin,
    sharded_bin,
]


@pytest.fixture(scope="module")
def module():
    return tiny_opt(seed=4)


@pytest.mark.parametrize("save", FORMATS, ids=lambda f: f.__name__)
def test_every_format_holds_the_same_tensors(tmp_path, module, save):
    save(tmp_path, module)
    expected = named_tensors(module)
    with Checkpoint(tmp_path) as tensors:
        assert set(tensors) == set(expected) and len(tensors) == len(expected)
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert "lm_head.bias" not in tensors
        with pytest.raises(KeyError):
            tensors["lm_head.bias"]
    llm = LLM(tmp_path, backend="reference")
    assert torch.equal(
        llm.engine.weights.token_embedding, expected["model.decoder.embed_tokens.weight"]
    )
    want = module.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=5)[0, 4:].tolist()
    assert llm.generate(PROMPTS, max_new_tokens=5)[0].token_ids == want


def test_asking_for_a_name_reads_nothing(tmp_path, module, monkeypatch):
    module.save_pretrained(tmp_path)
    with Checkpoint(tmp_path) as tensors:
        monkeypatch.setattr(tensors, "_reader", lambda file: pytest.fail(f"read {file}"))
        assert "model.decoder.embed_tokens.weight" in tensors
        assert "nothing" not in tensors


def test_a_sharded_checkpoint_saved_over_by_a_single_file(tmp_path, module):
    # save_pretrained removes the old shards and leaves their index behind
    other = save_opt(tmp_path, seed=9)
    other.save_pretrained(tmp_path, max_shard_size="60KB")
    module.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    with Checkpoint(tmp_path) as tensors:
        name = "model.decoder.layers.3.fc1.weight"
        assert torch.equal(tensors[name], named_tensors(module)[name])


def test_safetensors_win_over_bin(tmp_path, module):
    pytorch_bin(tmp_path, tiny_opt(seed=8))
    module.save_pretrained(tmp_path)
    with Checkpoint(tmp_path) as tensors:
        name = "model.decoder.layers.0.fc1.weight"
        assert torch.equal(tensors[name], named_tensors(module)[name])


# -- broken ------------------------------------------------------------------------------------


def test_a_pickle_with_code_does_not_run(tmp_path, module):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it ran",)

    module.config.save_pretrained(tmp_path)
    tensors = {**named_tensors(module), "model.decoder.embed_tokens.weight": Code()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with one_line_error(ValueError, "^model: .*pytorch_model.bin cannot be read"):
        LLM(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Code(), protocol=2))
    with one_line_error(ValueError, "^model: .*pytorch_model.bin cannot be read"):
        LLM(tmp_path)
    assert not (tmp_path / "it ran").exists()


GARBAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "three bytes": lambda data: data[:3],
    "half a header": lambda data: data[:100],
    "truncated data": lambda data: data[:-4000],
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "header of zeros": lambda data: data[:8] + bytes(len(data) - 8),
    "text": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
}


@pytest.mark.parametrize("damage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("save", [safetensors, sharded_safetensors, pytorch_bin, sharded_bin])
def test_damaged_weights(tmp_path, module, save, damage):
    save(tmp_path, module)
    files = [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")]
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    with one_line_error(ValueError, r"^model: .*\.(safetensors|bin) cannot be read"):
        LLM(tmp_path)


@pytest.mark.parametrize("save", [sharded_safetensors, sharded_bin])
def test_a_missing_shard(tmp_path, module, save):
    save(tmp_path, module)
    shard = sorted(tmp_path.glob("*-00002-of-*"))[0]
    shard.unlink()
    with one_line_error(FileNotFoundError, f"^model: shard .*{shard.name} of .*does not exist, "):
        LLM(tmp_path)


@pytest.mark.parametrize("save", [sharded_safetensors, sharded_bin])
def test_an_index_that_names_what_its_shard_lacks(tmp_path, module, save):
    save(tmp_path, module)
    path = next(tmp_path.glob("*.index.json"))
    index = json.loads(path.read_text())
    names = index["weight_map"]
    name = "model.decoder.layers.0.fc1.weight"
    names[name] = next(f for f in sorted(names.values()) if f != names[name])
    path.write_text(json.dumps(index))
    with one_line_error(ValueError, f"^model: tensor {name} of .* cannot be read"):
        LLM(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\x00"]
)
def test_a_broken_index(tmp_path, module, text):
    module.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with one_line_error(ValueError, "^model: .*model.safetensors.index.json"):
        LLM(tmp_path)


def test_a_bin_file_that_holds_something_else(tmp_path, module):
    module.config.save_pretrained(tmp_path)
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with one_line_error(ValueError, "holds a list, expected named tensors$"):
        LLM(tmp_path)
    torch.save({"model.decoder.embed_tokens.weight": 3}, tmp_path / "pytorch_model.bin")
    with one_line_error(ValueError, "^model: .*embed_tokens.weight.* is a int, expected a tensor$"):
        LLM(tmp_path)


def test_no_weights(tmp_path, module):
    module.config.save_pretrained(tmp_path)
    with one_line_error(FileNotFoundError, "has no weights, expected model.safetensors or"):
        LLM(tmp_path)


# -- config.json and the model argument --------------------------------------------------------


def test_no_config(tmp_path, module):
    module.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with one_line_error(FileNotFoundError, "^model: .* has no config.json, expected"):
        LLM(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null", b"\xff\xfe{}", b'{"a": 1,\n\n}'])
def test_a_broken_config(tmp_path, data):
    (tmp_path / "config.json").write_bytes(data)
    with one_line_error(ValueError, "^model: .*config.json (is not valid JSON|holds a)"):
        read_config(tmp_path)


def test_a_file_is_no_model(tmp_path, module):
    module.save_pretrained(tmp_path)
    with one_line_error(FileNotFoundError, "is a file, expected a checkpoint directory$"):
        LLM(tmp_path / "model.safetensors")


@pytest.mark.parametrize("given", ["/no/such/model", "./none", "a/b/c", "none/", "/"])
def test_a_path_that_does_not_exist(given, monkeypatch):
    monkeypatch.setattr("dynkern.models.checkpoint._download", lambda i: pytest.fail("asked"))
    with one_line_error(FileNotFoundError, "^model: "):
        LLM(given)


@pytest.fixture
def offline_hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and no network (what HF_HUB_OFFLINE=1 sets at import)."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.parametrize(
    "model_id", ["facebook/opt-125m", "opt", "not a/valid id", "~/x", "a..b/c"]
)
def test_a_hub_id_without_network(offline_hub, model_id):
    with one_line_error(FileNotFoundError, f"^model: '{model_id}' is no directory here and could"):
        LLM(model_id)


@pytest.mark.parametrize("save", [safetensors, sharded_bin])
def test_a_hub_id_from_the_cache(offline_hub, module, save):
    repository = offline_hub / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save(snapshot, module)
    assert resolve_model("someone/tiny") == snapshot
    want = module.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=3)[0, 4:].tolist()
    assert LLM("someone/tiny").generate(PROMPTS, max_new_tokens=3)[0].token_ids == want


def test_a_directory_wins_over_a_hub_id(tmp_path, monkeypatch, module):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dynkern.models.checkpoint._download", lambda i: pytest.fail("asked"))
    module.save_pretrained("someone/tiny")
    assert resolve_model("someone/tiny") == Path("someone/tiny")
    assert set(load_file("someone/tiny/model.safetensors")) == set(named_tensors(module))
    save_file({"x": torch.zeros(1)}, "someone/tiny/model.safetensors")
    with one_line_error(ValueError, "has no decoder.embed_tokens.weight"):
        LLM("someone/tiny")
