"""Two processes that train as one, over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import dynkern


def run_in_two_processes(run: str, config: Any, folder: Path) -> None:
    """run: "module:function", called in both processes with `config`, a dataclass of that module
    which its repr makes anew. folder: for what they read. AssertionError unless both end well.
    """
    module, _, function = run.partition(":")
    (folder / "config_of_two.py").write_text(
        f"from pathlib import PosixPath\nfrom {module} import *\nconfig = {config!r}\n"
    )
    script = (
        "import torch.distributed as dist\n"
        "begin, seen = dist.init_process_group, []\n"
        "def watched(*args, **kwargs):\n"
        "    begin(*args, **kwargs)\n"
        "    seen.append((dist.get_backend(), dist.get_world_size()))\n"
        "dist.init_process_group = watched\n"
        "from config_of_two import config\n"
        f"from {module} import {function}\n"
        f"{function}(config)\n"
        "assert seen == [('gloo', 2)]\n"
        "if dist.is_initialized():\n"
        "    dist.destroy_process_group()\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = str(Path(dynkern.__file__).parents[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(folder), root]),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(
        text[-2000:] for text in said
    )
