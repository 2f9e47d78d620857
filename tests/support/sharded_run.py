"""Synthesis and two training steps on a model that `fully_shard` shards over two processes, and on a whole one."""

import copy
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny_model import seeded_model_and_examples
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from hf_nullspace import NullspaceConfig, NullspaceDataCollator, synthesize_noise
from hf_nullspace.models.injection import NoiseInjector


def synthesize(model, examples, accelerator):
    config = NullspaceConfig(epsilon=1e-4, max_steps=8, num_images=32, num_certificate_images=16)
    loader = DataLoader(examples, batch_size=8, collate_fn=NullspaceDataCollator())
    return synthesize_noise(model, loader, config, accelerator=accelerator, disable_tqdm=True)


def train(model, optimizer, examples, noise):
    """Two steps on clean and noisy images, the same batch on every process; returns the losses."""
    injector, losses = NoiseInjector.attach(model), []
    for _ in range(2):
        batch = NullspaceDataCollator()(examples[:8])
        zero = torch.zeros(8, *noise.shape[1:]).requires_grad_()
        with injector.inject(zero):
            clean = model(**batch)["loss"]
            clean.backward()
        with injector.inject(noise + zero.grad):
            noisy = model(**batch)["loss"]
            noisy.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((clean + noisy).item())
    return losses


def whole_weights(model):
    return [
        (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach() for weight in model.parameters()
    ]


def distance(first, second):
    return max((left - right).abs().max().item() for left, right in zip(first, second, strict=True))


def main(folder: str) -> None:
    accelerator = Accelerator()
    assert accelerator.num_processes == 2, accelerator.state
    whole, examples = seeded_model_and_examples()
    sharded = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (2,))
    # As Accelerate does: the layers, the embeddings, and the rest.
    for module in (*sharded.vit.layers, sharded.get_input_embeddings(), sharded):
        fully_shard(module, mesh=mesh)
    num_shards = mesh.size() if all(isinstance(weight, DTensor) for weight in sharded.parameters()) else 0
    optimizers = {model: torch.optim.SGD(model.parameters(), lr=0.1) for model in (whole, sharded)}
    start = [weight.clone() for weight in whole_weights(whole)]

    expected, noise = synthesize(whole, examples, accelerator), synthesize(sharded, examples, accelerator)
    ranks = accelerator.gather(noise.tensor)
    try:
        synthesize_noise(sharded, accelerator.prepare(DataLoader(examples, batch_size=4)), accelerator=accelerator)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    results = {
        "shards": num_shards,
        "noise_difference": ((noise.tensor - expected.tensor).norm() / expected.tensor.norm()).item(),
        "norm": noise.certificate.norm,
        "ranks_agree": all(torch.equal(rank, ranks[0]) for rank in ranks),
        "prepared_loader": refusal,
        "losses": train(sharded, optimizers[sharded], examples, noise.tensor),
        "whole_losses": train(whole, optimizers[whole], examples, noise.tensor),
        "weight_difference": distance(whole_weights(sharded), whole_weights(whole)),
        "moved": distance(whole_weights(whole), start),
    }
    if accelerator.is_main_process:
        Path(folder, "sharded.json").write_text(json.dumps(results))
