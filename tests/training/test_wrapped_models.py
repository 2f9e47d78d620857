"""Models wrapped by PEFT or torch.compile: the noise gets in, and nothing is said of weights that do not run."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from whole_path import make_trainer

from hf_nullspace import NullspaceConfig, NullspaceNoise, PatchNullspace, inject_noise, synthesize_noise
from hf_nullspace.models.injection import NoiseInjector
from hf_nullspace.models.patch_projection import find_patch_projection


PROJECTION = "vit.embeddings.patch_embeddings.projection"
CONFIG = NullspaceConfig(max_steps=4, num_images=16, num_certificate_images=16)


@pytest.fixture
def model(make_vit):
    return make_vit(classifier_scale=20.0)


@pytest.fixture
def batches(make_batches):
    return make_batches(32, 8)


@pytest.fixture
def noise():
    return torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model, batches):
    return torch.cat([model(**batch).logits for batch in batches])


@torch.no_grad()
def noisy_logits_of(model, batches, noise):
    with inject_noise(model, noise):
        return logits_of(model, batches)


# ---- PEFT -------------------------------------------------------------------------------------------------------


def with_adapter(model, **options):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Random adapters instead of ones that start at zero, so that they change the logits.
        return peft.get_peft_model(
            copy.deepcopy(model), peft.LoraConfig(r=2, init_lora_weights=False, **options)
        ).eval()


def test_adapter_on_attention(model, batches, noise):
    adapted = with_adapter(model, target_modules=["q_proj", "v_proj"])
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert find_patch_projection(adapted).name == f"base_model.model.{PROJECTION}"
    expected = noisy_logits_of(merged, batches, noise)
    torch.testing.assert_close(noisy_logits_of(adapted, batches, noise), expected, rtol=0, atol=1e-4)
    assert (expected - noisy_logits_of(model, batches, noise)).abs().max() > 0.1
    assert PatchNullspace.from_model(adapted).dimension == 3 * 8 * 8 - 32
    found = synthesize_noise(adapted, batches, CONFIG, disable_tqdm=True)
    assert found.certificate.is_within_epsilon
    # The two round differently, which a search along insensitive directions enlarges.
    of_merged = synthesize_noise(merged, batches, CONFIG, disable_tqdm=True).tensor
    assert (found.tensor - of_merged).norm() <= 0.05 * of_merged.norm()


def test_adapter_is_trained_saved_and_loaded(model, batches, make_examples, tmp_path):
    peft = pytest.importorskip("peft")
    adapted = with_adapter(model, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    trainer = make_trainer(adapted, make_examples(16), str(tmp_path))
    trainer.train()
    trainer.save_model()
    before = dict(adapted.named_parameters())
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in before.items() if weight.requires_grad}
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in moved)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    noise = NullspaceNoise.from_pretrained(tmp_path)
    assert torch.equal(noise.tensor, trainer.noise.tensor)
    assert torch.equal(
        noisy_logits_of(loaded, batches, noise.tensor), noisy_logits_of(trainer.model.eval(), batches, noise.tensor)
    )


def test_adapted_projection_has_noise_but_no_matrix_until_it_is_merged(model, batches, noise):
    adapted = with_adapter(model, target_modules=["projection"])
    merged = copy.deepcopy(adapted).merge_and_unload()
    torch.testing.assert_close(
        noisy_logits_of(adapted, batches, noise), noisy_logits_of(merged, batches, noise), rtol=0, atol=1e-4
    )
    assert synthesize_noise(adapted, batches, CONFIG, disable_tqdm=True).certificate.is_within_epsilon
    with pytest.raises(ValueError, match="base layer of an adapter.*merge the adapter first"):
        PatchNullspace.from_model(adapted)
    assert PatchNullspace.from_model(merged).dimension == 3 * 8 * 8 - 32


def test_the_trained_copy_of_the_projection_is_taken(model, batches, noise):
    adapted = with_adapter(model, target_modules=["q_proj"], modules_to_save=["projection"])
    assert find_patch_projection(adapted).name == f"base_model.model.{PROJECTION}.modules_to_save.default"
    change = noisy_logits_of(adapted, batches, noise) - logits_of(adapted, batches)
    assert change.abs().max() > 0.1


# ---- torch.compile ----------------------------------------------------------------------------------------------


def compiled_whole(model, backend):
    return torch.compile(model, backend=backend)


def compiled_in_place(model, backend):
    model.compile(backend=backend)
    return model


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("compile_model", "backend", "was_called"),
    [
        (compiled_whole, "eager", False),
        (compiled_whole, "aot_eager", True),
        (compiled_in_place, "eager", True),
    ],
)
def test_noise_enters_a_compiled_model(make_vit, make_batches, noise, compile_model, backend, was_called):
    model, batches = make_vit(classifier_scale=20.0, num_hidden_layers=1), make_batches(8, 8)
    clean, expected = logits_of(model, batches), noisy_logits_of(model, batches, noise)
    NoiseInjector.attach(model).remove()
    compiled = compile_model(model, backend)
    if was_called:
        torch.testing.assert_close(logits_of(compiled, batches), clean, rtol=0, atol=1e-4)
    torch.testing.assert_close(noisy_logits_of(compiled, batches, noise), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits_of(compiled, batches), clean, rtol=0, atol=1e-4)
    twice = noisy_logits_of(compiled, batches, 2 * noise)
    assert (expected - clean).abs().max() > 0.1
    assert (twice - expected).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("compile_model", [compiled_whole, compiled_in_place])
def test_synthesis_runs_compiled_code_and_finds_the_noise_of_the_plain_model(make_vit, batches, compile_model):
    model = make_vit(classifier_scale=20.0, num_hidden_layers=1).train()
    expected = synthesize_noise(model, batches, CONFIG, disable_tqdm=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = compile_model(model, counter)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        found = synthesize_noise(compiled, batches, CONFIG, disable_tqdm=True)
        assert (found.tensor - expected.tensor).norm() <= 1e-4 * expected.tensor.norm()
        # The clean pass, the one on kept embeddings, and the noisy one with and without gradients; none a second time.
        assert counter.frame_count == 4
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 0
    assert found.certificate.is_within_epsilon
    assert all(module.training for module in compiled.modules())
    assert all(parameter.requires_grad for parameter in compiled.parameters())
