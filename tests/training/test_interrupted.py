"""Training that SIGKILL ends at a random step and that --resume goes on with; and its processes."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dynkern
from support.checkpoint import save_checkpoint, save_records

ROOT = str(Path(dynkern.__file__).parents[1])
STEPS = 6
# one process imports everything and forks a child for each run: whole, to be killed, resumed
SCRIPT = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from rich.console import Console
from dynkern.training import loop
from dynkern.training.controllers import ControllerConfig, run_controllers
from dynkern.training.finetune import FinetuneConfig, run_finetune

place, steps = Path(sys.argv[1]), [int(step) for step in sys.argv[2:]]
common = dict(data=str(place / "data.jsonl"), model=str(place / "model"), template="plain",
              max_length=64, seed=3, output=place)
settings = {"max_steps": 6, "eval_every": 2, "batch_size": 8, "micro_batch": 4}
jobs = {
    "finetune": (run_finetune, FinetuneConfig(
        **common, preset="small", layerdrop=0.2, settings={**settings, "patience": 0})),
    "controller": (run_controllers, ControllerConfig(
        **common, budgets=(3.0,), settings={**settings, "gate_rate": 0.05})),
}


def child(run, config, die_at=None):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    step = loop._Trainer.training_step

    def training_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        # after its first micro-batch; the last step of an epoch may have no other
        if self.state.global_step == die_at and self._clock[1] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    loop._Trainer.training_step = training_step
    run(config, Console(quiet=True))
    os._exit(0)


for (name, (run, config)), step in zip(jobs.items(), steps, strict=True):
    stopped = replace(config, output=place / name / "stopped")
    assert child(run, replace(config, output=place / name / "whole")) == 0
    assert os.WTERMSIG(child(run, stopped, step)) == signal.SIGKILL
    assert child(run, replace(stopped, resume=True)) == 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("interrupted")
    save_records(directory / "data.jsonl", 40)
    save_checkpoint(directory / "model", num_layers=4, max_position_embeddings=96)
    return directory


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_by_sigkill_and_resumed_is_uninterrupted(place):
    steps = [random.randrange(STEPS) for _ in range(2)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place), *map(str, steps)],
        env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, (steps, done.stderr[-2000:])
    for file in ("finetune/{}/model/model.safetensors", "controller/{}/controller.safetensors"):
        whole, stopped = (load_file(place / file.format(kind)) for kind in ("whole", "stopped"))
        assert whole.keys() == stopped.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, stopped[name]), (steps, name)
    for kind in ("finetune", "controller"):
        whole, stopped = (place / kind / run / "curves.csv" for run in ("whole", "stopped"))
        assert whole.read_text() == stopped.read_text(), steps
    reports = [
        json.loads((place / "controller" / run / "controller.json").read_text())
        for run in ("whole", "stopped")
    ]
    assert reports[0] == reports[1]
    assert reports[0]["final_alpha"] != 1.0


TWO = """
import json, os, sys
from pathlib import Path
from rich.console import Console
from dynkern.training import budget
from dynkern.training.controllers import ControllerConfig, run_controllers

place = Path(sys.argv[1])
alphas = []
update = budget.Multiplier.update


def noted(self, share):
    update(self, share)
    alphas.append((share, self.alpha))


budget.Multiplier.update = noted
run_controllers(ControllerConfig(
    model=str(place / "model"), data=str(place / "data.jsonl"), output=place / "two",
    budgets=(3.0,), template="plain", max_length=64,
    settings={"max_steps": 3, "eval_every": 3, "batch_size": 8, "gate_rate": 0.05},
), Console(quiet=True))
(place / f"alphas-{os.environ['RANK']}.json").write_text(json.dumps(alphas))
import torch.distributed as dist
assert dist.get_backend() == "gloo" and dist.get_world_size() == 2
dist.destroy_process_group()
"""


def test_two_processes_agree_on_alpha(place):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(place)],
            env={
                **os.environ,
                "PYTHONPATH": ROOT,
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][-2000:]
    one, other = (json.loads((place / f"alphas-{rank}.json").read_text()) for rank in "01")
    assert one == other and len(one) == 3
    assert len({share for share, _ in one}) > 1
    report = json.loads((place / "two" / "controller.json").read_text())
    assert report["mean_layers"] == pytest.approx(3.0, abs=0.5)
