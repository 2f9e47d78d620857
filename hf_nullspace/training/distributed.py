"""Which ways of spreading a model over devices a nullspace training run can use."""

from __future__ import annotations

from accelerate import Accelerator


def check_backend(accelerator: Accelerator) -> None:
    """
    Refuses what the noise cannot work with, before anything is trained.

    DistributedDataParallel, FSDP2 and DeepSpeed up to ZeRO-2 leave every module callable: each process runs the synthesis
    on the modules themselves, and the noisy pass through the wrapped model.

    Raises:
        `ValueError`: Under FSDP1, whose flat parameters cannot be frozen apart from the wrapper, or ZeRO-3, which
            partitions weights outside of its engine's own forward and backward passes.
    """
    remedy = "See `examples/accelerate_configs` for configurations that work."
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise ValueError(f"Nullspace training needs FSDP2, but got `fsdp_version: {fsdp.fsdp_version}`. {remedy}")
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError(f"Nullspace training needs DeepSpeed's `zero_stage: 2` or lower, but got 3. {remedy}")
