"""Shards cover every image of every column once, whatever their number."""

import pytest

from hf_nullspace.robustness.profiles import Column, Profile
from hf_nullspace.robustness.shards import choose_images, passes_per_image, plan_shards


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(5, 2, [2, 2, 1]), (33, 2, [4] * 8 + [1]), (400, 1, None)])
def test_shards_cover_every_image_once(count, batch_size, sizes):
    profile = Profile("two", (Column("clean"), Column("other", dataset="damagenet"), Column("few", max_images=3)))
    sources = {"clean": range(count), "few": range(count)}
    plan = plan_shards(profile, sources, batch_size)
    clean = [shard for shard in plan if shard.column.name == "clean"]
    assert [index for shard in clean for index in shard.indices] == list(range(count))
    assert [index for shard in plan if shard.column.name == "few" for index in shard.indices] == choose_images(
        count, 3, profile.seed
    )
    assert [shard.first for shard in plan] == [sum(len(other.indices) for other in plan[:k]) for k in range(len(plan))]
    assert len({shard.name for shard in plan}) == len(plan)
    assert max(len(shard.batches) for shard in plan) <= 16
    assert {shard.column.name for shard in plan} == {"clean", "few"}
    if sizes is not None:
        assert [len(shard.indices) for shard in clean] == sizes


def test_choice_of_images_is_nested_and_of_the_seed():
    ten, five = choose_images(100, 10, seed=1), choose_images(100, 5, seed=1)
    assert set(five) < set(ten) and ten == sorted(ten) and ten != choose_images(100, 10, seed=2)
    assert choose_images(4, 10, seed=1) == choose_images(4, None, seed=1) == [0, 1, 2, 3]


def test_remaining_time_counts_the_passes_of_attacks():
    pgd = Column("pgd", attack="pgd_linf", settings={"steps": 20})
    assert [passes_per_image(column) for column in (Column("clean"), Column("fgsm", attack="fgsm"), pgd)] == [1, 5, 62]
    assert passes_per_image(Column("cw", attack="cw_l2")) == 152
    assert passes_per_image(Column("aa", attack="autoattack")) > 10_000
