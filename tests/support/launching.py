"""Runs in one process or two on the CPU: with `accelerate launch`, as users do, or forked, which starts faster."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path


CPU_PAIR = Path(__file__).parents[2] / "examples" / "accelerate_configs" / "cpu_pair.yaml"

# Forks a server that has imported everything, so that a run starts in a moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_nullspace", "transformers.models.vit.modeling_vit"])


def start(target: Callable, world: int, *arguments) -> list[BaseProcess]:
    """Starts `target(*arguments)` in `world` processes that find each other on gloo."""
    port = free_port()
    processes = [
        CONTEXT.Process(target=_be_rank, args=(target, rank, world, port, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def _be_rank(target: Callable, rank: int, world: int, port: int, arguments: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        rendezvous = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in {**rendezvous, "MASTER_PORT": port}.items()})
    target(*arguments)


def finish(processes: list[BaseProcess]) -> None:
    """Waits for processes that must end well."""
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin_launch(script: Path, arguments: list[str], processes: int) -> subprocess.Popen:
    """Begins `accelerate launch` on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    # `--cpu --num_processes 2` would start one process; this environment with `--multi_gpu` starts two on gloo.
    if processes > 1:
        command += ["--config_file", str(CPU_PAIR), "--multi_gpu"]
    else:
        command += ["--cpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(free_port()), str(script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(script: Path, arguments: list[str], processes: int) -> str:
    """Runs `accelerate launch` to its end and returns what the script printed."""
    with begin_launch(script, arguments, processes) as launcher:
        output, errors = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, errors[-3000:]
    return output
