"""Starts a script in one process or two, as users do, on the CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin_launch(script: Path, arguments: list[str], processes: int) -> subprocess.Popen:
    """Begins `accelerate launch` on the CPU."""
    # `--cpu --num_processes 2` would start one process; `--multi_gpu` with this environment starts two on gloo.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(free_port()), str(script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(script: Path, arguments: list[str], processes: int) -> str:
    """Runs `accelerate launch` to its end and returns what the script printed."""
    with begin_launch(script, arguments, processes) as launcher:
        output, errors = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, errors[-3000:]
    return output
