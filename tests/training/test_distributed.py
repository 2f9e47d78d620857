"""Which backends are refused, and that every configuration of the examples is one that Accelerate reads."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin

from hf_nullspace.training.distributed import check_backend


CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate_configs"
EXPECTED = {
    "single_gpu": ("NO", 1),
    "multi_gpu": ("MULTI_GPU", 8),
    "multi_node": ("MULTI_GPU", 16),
    "fsdp2": ("FSDP", 8),
    "deepspeed_zero2": ("DEEPSPEED", 8),
    "cpu_pair": ("MULTI_GPU", 2),
}


@dataclass
class ZeroPlugin:
    """What the check reads of Accelerate's plugin, which needs DeepSpeed to be built."""

    zero_stage: int


def accelerator_with(**plugins):
    return SimpleNamespace(state=SimpleNamespace(**plugins))


def test_all_configurations_are_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_configuration(name):
    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    assert (config.distributed_type.value, config.num_processes) == EXPECTED[name]
    command = re.search(r"accelerate launch (.*)", path.read_text()).group(1).split()
    assert f"examples/accelerate_configs/{name}.yaml" in command
    command[command.index("--config_file") + 1] = str(path)
    args = launch_command_parser().parse_args(command)
    assert (CONFIGS.parents[1] / args.training_script).is_file()


def test_fsdp_configuration_is_the_version_that_is_accepted():
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(fsdp_version=config["fsdp_version"])
    check_backend(accelerator_with(fsdp_plugin=plugin))


def test_fsdp1_is_refused():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    with pytest.raises(ValueError, match="needs FSDP2, but got `fsdp_version: 1`.*accelerate_configs"):
        check_backend(accelerator_with(fsdp_plugin=plugin))


def test_zero_stages():
    stage = load_config_from_file(str(CONFIGS / "deepspeed_zero2.yaml")).deepspeed_config["zero_stage"]
    check_backend(accelerator_with(deepspeed_plugin=ZeroPlugin(stage)))
    with pytest.raises(ValueError, match="`zero_stage: 2` or lower, but got 3.*accelerate_configs"):
        check_backend(accelerator_with(deepspeed_plugin=ZeroPlugin(3)))
