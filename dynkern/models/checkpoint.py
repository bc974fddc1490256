"""Checkpoints on disk: named tensors from safetensors or .bin files, sharded or not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from dynkern.arguments import shown
from dynkern.assets import DEFAULT_MODEL, bundle_path
from dynkern.files import check_readable
from dynkern.models.int8_file import INT8, INT8_FILE, SCALE, narrowed_names, widen

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", INT8_FILE)


def resolve_model(model: str | Path) -> Path:
    """Directory of a checkpoint: the bundled one's for "default", `model` itself if it is one, else
    a hub id, downloaded once.

    Raises FileNotFoundError, one line, where none of these.
    """
    if not isinstance(model, str | os.PathLike) or not str(model).strip("\0 "):
        raise ValueError(f"model: got {shown(model)}, expected a checkpoint directory or a hub id")
    # ahead of folders: what `dynkern eval` runs must not depend on where it is called
    if model == DEFAULT_MODEL:
        return bundle_path()
    path = Path(model)
    if path.is_dir():
        return path
    if path.is_file():
        raise FileNotFoundError(f"model: {model} is a file, expected a checkpoint directory")
    parts = str(model).split("/")
    if path.is_absolute() or str(model).startswith(".") or len(parts) > 2 or not all(parts):
        raise FileNotFoundError(f"model: {model} does not exist, expected a checkpoint directory")
    return _download(str(model))


def _download(model_id: str) -> Path:
    from huggingface_hub import snapshot_download

    texts = ["*.json", "*.txt", "*.model"]
    try:
        path = Path(snapshot_download(model_id, allow_patterns=[*texts, "*.safetensors"]))
        if not any(path.glob("*.safetensors")):
            path = Path(snapshot_download(model_id, allow_patterns=[*texts, "*.bin"]))
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"model: {model_id!r} is no directory here and could not be loaded from the hub "
            f"({reason})"
        ) from None
    return path


def check_texts(directory: Path) -> None:
    """Raise a one-line ValueError where a .json or .txt of a checkpoint may not be read."""
    for kind in ("*.json", "*.txt"):
        for file in sorted(directory.glob(kind)):
            check_readable(file, "model")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory; FileNotFoundError or ValueError, one line."""
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"model: {directory} has no config.json, expected a checkpoint directory"
        )
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"model: {path} cannot be read ({error.strerror}), expected JSON"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"model: {path} is not valid JSON ({_first_line(error)}), expected an object"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"model: {path} holds a {type(content).__name__}, expected an object")
    return content


class Checkpoint(Mapping[str, Tensor]):
    """Named tensors of a directory, read one at a time; the files stay mapped while it is open.

    Use as a context manager. Iterates over names; indexing reads one tensor. .bin files are read
    with weights_only, so no code in them runs. A matrix kept as int8 (`int8_file`) is one tensor
    under its own name, widened as it is read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file_of = self._locate()
        self._narrowed = narrowed_names(self._file_of)
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.clear()
        self._stack.close()

    def _locate(self) -> dict[str, Path]:
        for name in _WEIGHT_FILES:
            # a single file goes first, as in transformers: saving over a sharded checkpoint
            # removes the shards and leaves their index behind
            file = self.directory / name
            if file.is_file():
                check_readable(file, "model")
                return dict.fromkeys(self._names(file), file)
            index = self.directory / f"{name}.index.json"
            if index.is_file():
                weight_map = _read_json(index).get("weight_map")
                if not isinstance(weight_map, dict) or not weight_map:
                    raise ValueError(
                        f"model: {index} has no weight_map, expected a file for each tensor"
                    )
                files = {tensor: self.directory / str(f) for tensor, f in weight_map.items()}
                for file in sorted(set(files.values())):
                    if not file.is_file():
                        raise FileNotFoundError(
                            f"model: shard {file} of {index} does not exist, expected every shard"
                        )
                    check_readable(file, "model")
                return files
        raise FileNotFoundError(
            f"model: {self.directory} has no weights, expected {' or '.join(_WEIGHT_FILES[:2])}"
        )

    @property
    def narrowed(self) -> frozenset[str]:
        """Names of the tensors kept as int8."""
        return self._narrowed

    @staticmethod
    def _names(file: Path) -> list[str]:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            try:
                with safe_open(file, framework="pt") as tensors:
                    return list(tensors.keys())
            except Exception as error:
                raise _unreadable(file, error) from None
        return list(_load_bin(file))

    def _reader(self, file: Path) -> Any:
        if file not in self._open:
            if file.suffix == ".safetensors":
                from safetensors import safe_open

                try:
                    reader = self._stack.enter_context(safe_open(file, framework="pt"))
                except Exception as error:
                    raise _unreadable(file, error) from None
                self._open[file] = reader.get_tensor
            else:
                self._open[file] = _load_bin(file).__getitem__
        return self._open[file]

    def __getitem__(self, name: str) -> Tensor:
        if name in self._narrowed:
            return widen(name, self._read(name + INT8), self._read(name + SCALE))
        return self._read(name)

    def _read(self, name: str) -> Tensor:
        file = self._file_of[name]
        try:
            tensor = self._reader(file)(name)
        except ValueError:
            raise
        except Exception as error:
            raise _unreadable(f"tensor {name} of {file}", error) from None
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"model: {name} of {file} is a {kind}, expected a tensor")
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its file's header where there is one."""
        name += INT8 if name in self._narrowed else ""
        reader = self._reader(self._file_of[name])
        header = getattr(getattr(reader, "__self__", None), "get_slice", None)
        if header is None:
            return tuple(self._read(name).shape)
        try:
            return tuple(header(name).get_shape())
        except Exception as error:
            raise _unreadable(f"tensor {name} of {self._file_of[name]}", error) from None

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor
        return name in self._narrowed or name in self._file_of

    def __iter__(self) -> Iterator[str]:
        parts = {name + part for name in self._narrowed for part in (INT8, SCALE)}
        yield from (name for name in self._file_of if name not in parts)
        yield from sorted(self._narrowed)

    def __len__(self) -> int:
        return len(self._file_of) - len(self._narrowed)


def _unreadable(what: Path | str, error: Exception) -> ValueError:
    return ValueError(
        f"model: {what} cannot be read ({_first_line(error)}), expected named tensors"
    )


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    # torch explains its refusals to unpickle at length, and in colour
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return text if len(text) <= 200 else text[:197] + "..."


def _load_bin(file: Path) -> dict[str, Tensor]:
    try:
        # files from before torch 1.6 are no zip archives and cannot be mapped
        mapped = is_zipfile(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise _unreadable(file, error) from None
    if not isinstance(tensors, dict):
        raise ValueError(f"model: {file} holds a {type(tensors).__name__}, expected named tensors")
    return tensors
