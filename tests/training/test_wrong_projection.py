"""A wrong `patch_projection` is refused by the trainer's constructor, with what would do, and leaves no hook behind."""

import re

import pytest
import torch
from torch import nn
from trainer_runs import arguments, build

from hf_nullspace.models.injection import NoiseInjector


PROJECTION = "vit.embeddings.patch_embeddings.projection"
WOULD_DO = f"Of this model '{PROJECTION}'.* would do"
WRONG = {
    "vit.nothing": "there is no such module",
    "vit.layernorm": "it is a LayerNorm",
    "classifier": re.escape("it gives (3, 5) for 3 images instead of embeddings of the patches of each"),
    "vit.layers.1.mlp.fc1": "what it reads are no pixels, but features of them",
    "vit.layers.0.attention.q_proj": "what it reads are no pixels, but features of them",
    "spare": "the forward pass runs it no times instead of once",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_projection_is_refused_by_the_constructor(make_vit, make_examples, tmp_path, name):
    model = make_vit()
    model.spare = nn.Conv2d(3, 32, 8, 8)
    with pytest.raises(ValueError, match=f"{re.escape(repr(name))}.*{WRONG[name]}.*{WOULD_DO}"):
        build(model, make_examples(16), arguments(tmp_path, patch_projection=name))
    assert not [part for part in model.modules() if part._forward_hooks or part._forward_pre_hooks]
    trainer = build(model, make_examples(16), arguments(tmp_path, patch_projection=PROJECTION))
    assert trainer.injector.projection.name == PROJECTION


class PatchesAreCut(nn.Module):
    """Cuts pictures into patches itself and embeds them by a linear layer, with a convolution that nobody runs."""

    def __init__(self, runs=1):
        super().__init__()
        self.aside = nn.Conv2d(3, 8, 3)
        self.embed, self.norm, self.head, self.runs = nn.Linear(192, 16), nn.LayerNorm(16), nn.Linear(16, 5), runs

    def forward(self, pixel_values, labels=None):
        patches = nn.functional.unfold(pixel_values, 8, stride=8).transpose(1, 2)
        for _ in range(self.runs):
            tokens = self.embed(2 * patches - 1)
        logits = self.head(self.norm(tokens).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def test_a_linear_layer_may_be_named_and_one_that_does_not_run_is_refused(make_examples, tmp_path):
    model = PatchesAreCut()
    with pytest.raises(
        ValueError, match="The module 'aside' of PatchesAreCut is no patch projection.*runs it no times"
    ):
        build(model, make_examples(16), arguments(tmp_path))
    trainer = build(model, make_examples(16), arguments(tmp_path, patch_projection="embed"))
    assert trainer.injector.projection.name == "embed"
    with pytest.raises(ValueError, match="`patch_projection='embed'`.*runs it 2 times"):
        build(PatchesAreCut(runs=2), make_examples(16), arguments(tmp_path, patch_projection="embed"))


def test_a_refusal_for_another_reason_leaves_no_hook_and_keeps_an_earlier_one(make_vit, make_examples, tmp_path):
    model = make_vit()
    with pytest.raises(ValueError, match="one synthesis batch needs"):
        build(model, make_examples(4), arguments(tmp_path, noise_batch_size=16))
    assert not [part for part in model.modules() if part._forward_hooks or part._forward_pre_hooks]
    injector = NoiseInjector.attach(model)
    with pytest.raises(ValueError, match="one synthesis batch needs"):
        build(model, make_examples(4), arguments(tmp_path, noise_batch_size=16))
    assert NoiseInjector.attach(model) is injector
    with torch.no_grad(), injector.inject(torch.ones(1, 4, 32)):
        assert model(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 5)
