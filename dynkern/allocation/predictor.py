"""A predictor of routes: from what the prompt's own prefill says to a route, nothing else.

It predicts how much better or worse than its mean over routes a prompt comes out under each of
them, and takes the route with the most predicted quality once each layer costs `price`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynkern.files import check_readable

Floats = NDArray[np.float64]

JSON_NAME = "predictor.json"
TENSORS_NAME = "predictor.safetensors"
KIND = "dynkern-predictor"
VERSION = 1
_KEYS = {"kind", "version", "routes", "layers", "price", "prices", "about"}


@dataclass(frozen=True)
class Price:
    """What a layer must bring: `above` for a share of the prompts, `below`, which is dearer and
    gives fewer layers, for the others. Between two prices next to each other no single one comes to
    the mean layers that are wanted, least of all where prompts are predicted to be alike.
    """

    below: float
    above: float
    share: float


@dataclass(frozen=True)
class Predictor:
    """Linear layers with ReLU between them over standardised features.

    mean, scale: [F]. layers: (weight [out, in], bias [out]) each. costs: layers of each route, [R].
    keep: the routes. price: quality that a layer must bring, which sets the mean budget; prices:
    (mean layers, price) pairs, rising in layers, for other budgets. histogram: [R], how often each
    route was chosen on the train split. about: whatever else is worth keeping, JSON-like.
    """

    mean: Floats
    scale: Floats
    layers: list[tuple[Floats, Floats]]
    costs: Floats
    keep: tuple[tuple[bool, ...], ...]
    price: Price
    prices: list[tuple[float, float]]
    histogram: Floats
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """Layers of the model it was made for."""
        return len(self.keep[0])

    @property
    def state_size(self) -> int:
        """Numbers of the prompt's state that it reads; 0 where lengths are all."""
        return len(self.mean) - len(length_features([1])[0])

    def predict(self, lengths: Sequence[int], states: Floats | None) -> Floats:
        """Relative quality [N, R] for prompt lengths [N] and states [N, E]."""
        x = (features(lengths, states if self.state_size else None) - self.mean) / self.scale
        for place, (weight, bias) in enumerate(self.layers):
            x = (np.maximum(x, 0.0) if place else x) @ weight.T + bias
        return x

    def choose(
        self, predicted: Floats, digests: Sequence[str], price: Price | None = None
    ) -> NDArray[np.int64]:
        """Routes [N] for predicted [N, R], the cheapest of equally good ones; the prompts' digests
        say who belongs to the share.
        """
        return choose_mixed(predicted, self.costs, digests, price or self.price)

    def price_at(self, mean_layers: float) -> Price:
        """The price that gave a mean number of layers on the train split. ValueError below the
        cheapest route.
        """
        least, most = self.prices[0][0], self.prices[-1][0]
        if mean_layers < least - 1e-9:
            raise ValueError(
                f"budget: got {mean_layers:g} layers on average, expected {least:g} to "
                f"{self.num_layers}"
            )
        if mean_layers >= most:
            return Price(self.prices[-1][1], self.prices[-1][1], 0.0)
        at = max(i for i, (layers, _) in enumerate(self.prices) if layers <= mean_layers + 1e-9)
        (low, below), (high, above) = self.prices[at], self.prices[at + 1]
        return Price(below, above, max(0.0, (mean_layers - low) / (high - low)))

    def save(self, folder: Path) -> None:
        """Write predictor.json and predictor.safetensors into a folder; nothing is pickled."""
        from safetensors.numpy import save

        tensors = {"mean": self.mean, "scale": self.scale, "histogram": self.histogram}
        for place, (weight, bias) in enumerate(self.layers):
            tensors |= {f"layers.{place}.weight": weight, f"layers.{place}.bias": bias}
        content = save({k: np.ascontiguousarray(v) for k, v in tensors.items()})
        (folder / TENSORS_NAME).write_bytes(content)
        value = {
            "kind": KIND,
            "version": VERSION,
            "routes": ["".join("01"[bit] for bit in route) for route in self.keep],
            "layers": len(self.layers),
            "price": asdict(self.price),
            "prices": self.prices,
            "about": self.about,
        }
        # as it will be read
        value = json.loads(json.dumps(value))
        value["sha256"] = _digest(value, content)
        (folder / JSON_NAME).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load_predictor(path: str | Path) -> Predictor:
    """The predictor in a folder. FileNotFoundError or ValueError, one line, where there is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(path)
    folder = folder.parent if folder.name == JSON_NAME else folder
    for name in (JSON_NAME, TENSORS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"predictor: no file {folder / name}, expected a folder that `dynkern "
                "train-predictor` wrote"
            )
        check_readable(folder / name, "predictor")
    try:
        value = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
        if value["kind"] != KIND or value["version"] != VERSION:
            raise ValueError(f"kind {value['kind']!r}, version {value['version']!r}")
        content = (folder / TENSORS_NAME).read_bytes()
        # predictors from before there was a sum have none
        if "sha256" in value and value.pop("sha256") != _digest(value, content):
            raise ValueError("it differs from its sum")
        if more := value.keys() - _KEYS:
            raise ValueError(f"unknown entry {min(more)!r}")
        tensors = load(content)
        keep = tuple(tuple(bit == "1" for bit in route) for route in value["routes"])
        made = Predictor(
            mean=tensors["mean"],
            scale=tensors["scale"],
            layers=[
                (tensors[f"layers.{at}.weight"], tensors[f"layers.{at}.bias"])
                for at in range(value["layers"])
            ],
            costs=np.array([sum(route) for route in keep], dtype=np.float64),
            keep=keep,
            price=Price(**{key: float(number) for key, number in value["price"].items()}),
            prices=[(float(budget), float(price)) for budget, price in value["prices"]],
            histogram=tensors["histogram"],
            about=value["about"],
        )
        finite = all(np.isfinite(tensor).all() for tensor in tensors.values())
        if not finite or not made.prices or not (made.scale > 0).all():
            raise ValueError("it holds no finite numbers")
        made.predict([1], np.zeros((1, made.state_size)))
        depths = {len(route) for route in keep}
        if len(made.histogram) != len(keep) or made.layers[-1][0].shape[0] != len(keep):
            raise ValueError("its parts do not fit each other")
        if len(depths) != 1 or not all(map(any, keep)):
            raise ValueError("its routes are none of one model")
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
        SafetensorError,
        OSError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ValueError(
            f"predictor: {folder} is damaged or no predictor ({reason}); train it anew"
        ) from None
    return made


def _digest(value: dict[str, Any], content: bytes) -> str:
    """Of everything that is kept: the JSON's entries, the sum aside, and the tensors' file."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode() + content).hexdigest()


def length_features(lengths: Sequence[int]) -> Floats:
    """[N, 2]: the prompt's tokens, and their logarithm."""
    tokens = np.asarray(lengths, dtype=np.float64)
    return np.stack([tokens, np.log(tokens)], axis=1)


def features(lengths: Sequence[int], states: Floats | None) -> Floats:
    """[N, F] from prompt lengths [N] and, where there are any, states [N, E]."""
    known = length_features(lengths)
    if states is None:
        return known
    return np.concatenate([known, np.asarray(states, dtype=np.float64)], axis=1)


def choose(predicted: Floats, costs: Floats, price: float) -> NDArray[np.int64]:
    """argmax over routes of predicted [N, R] - price * costs [R]; the cheapest of equal ones."""
    order = np.argsort(costs, kind="stable")
    return order[np.argmax((predicted - price * costs)[:, order], axis=1)]


def choose_mixed(
    predicted: Floats, costs: Floats, digests: Sequence[str], price: Price
) -> NDArray[np.int64]:
    """`choose` at one of two prices for each prompt, by digits of its digest that split nothing."""
    draws = np.array([int(digest[24:32], 16) / 2**32 for digest in digests])
    below, above = (choose(predicted, costs, value) for value in (price.below, price.above))
    return np.where(draws < price.share, above, below)
