"""`NullspaceConfig`: its JSON round trip, and that every value outside its range is refused by name."""

import copy
import json
import math
import pickle

import pytest

from hf_nullspace import NullspaceConfig


POSITIVE_NUMBERS = ("epsilon", "noise_limit")
COUNTS = ("max_steps", "num_images", "num_certificate_images")
INVALID = [
    *[(name, value) for name in POSITIVE_NUMBERS for value in (0, -0.5, math.nan, math.inf, "1", True, None)],
    *[("learning_rate", value) for value in (0, -0.5, math.nan, math.inf, "1", True)],
    *[("method", value) for value in ("released", "Paper", None)],
    *[("max_token_ratio", value) for value in (0.99, -4, math.nan, math.inf, "4", True)],
    *[("norm_weight", value) for value in (-0.1, math.nan, math.inf, "0", False, None)],
    *[(name, value) for name in COUNTS for value in (0, -3, 1.5, "2", True)],
    *[(name, None) for name in COUNTS[1:-1]],
    *[("confidence", value) for value in (0.49, 1.0, math.nan, "0.9", None)],
    *[("on_failure", value) for value in ("retry", "Shrink", None)],
    *[("seed", value) for value in (1.0, "42", True, None)],
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "method": "paper",
            "epsilon": 0.01,
            "noise_limit": 1,
            "learning_rate": 0.03,
            "max_token_ratio": None,
            "max_steps": 5,
            "norm_weight": 0.4,
            "num_images": 16,
            "num_certificate_images": 8,
            "confidence": 0.5,
            "on_failure": "error",
            "seed": -7,
        },
    ],
    ids=["defaults", "all fields"],
)
def test_json_round_trip(changes):
    config = NullspaceConfig(**changes)
    values = json.loads(json.dumps(config.to_dict()))
    assert values == config.to_dict()
    assert {name: values[name] for name in changes} == changes
    assert NullspaceConfig.from_dict(values) == config


@pytest.mark.parametrize("method, learning_rate", [("boundary", 0.3), ("sample", None), ("paper", 0.1)])
def test_defaults(method, learning_rate):
    config = NullspaceConfig(method=method)
    assert (config.epsilon, config.noise_limit, config.learning_rate) == (0.03, 3.0, learning_rate)
    assert (config.norm_weight, config.on_failure, config.seed) == (0.0, "shrink", 42)
    assert NullspaceConfig(method=method, learning_rate=0.7).learning_rate == 0.7


def test_a_bank_is_refused_with_what_was_measured():
    message = r"`bank_size` was removed: .*3.78 points.*`method='sample'`"
    for make in (lambda: NullspaceConfig(bank_size=3), lambda: NullspaceConfig.from_dict({"bank_size": 3})):
        with pytest.raises(ValueError, match=message):
            make()
    assert NullspaceConfig.from_dict({"bank_size": 1, "seed": 3}) == NullspaceConfig(
        seed=3
    )  # as earlier versions wrote it


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_config_can_be_copied(copied):
    config = NullspaceConfig(method="paper", epsilon=0.2)
    assert copied(config) == config


@pytest.mark.parametrize("name, value", INVALID, ids=lambda value: repr(value))
def test_invalid_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError) as error:
        NullspaceConfig(**{name: value})
    assert f"`{name}`" in str(error.value)
    assert repr(value) in str(error.value)


def test_every_field_has_an_invalid_case():
    assert {name for name, _ in INVALID} == set(NullspaceConfig().to_dict())


def test_unknown_key_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\['epsilom', 'steps'\].*epsilon"):
        NullspaceConfig.from_dict({"steps": 3, "epsilom": 0.1, "seed": 1})


def test_config_is_frozen():
    with pytest.raises(AttributeError, match="epsilon"):
        NullspaceConfig().epsilon = 1.0


@pytest.mark.parametrize(
    "epsilon, largest, expected",
    [(0.03, 2.0, 512), (0.01, 2.0, 1536), (0.1, 2.0, 160), (0.03, 10.0, 2048), (1.9, 2.0, 32)],
)
def test_certificate_images_follow_epsilon(epsilon, largest, expected):
    config = NullspaceConfig(epsilon=epsilon)
    assert config.num_certificate_images is None
    assert config.wanted_certificate_images(largest) == expected
    assert NullspaceConfig(epsilon=epsilon, num_certificate_images=7).wanted_certificate_images(largest) == 7


def test_fewest_certificate_images_follow_confidence():
    assert NullspaceConfig().fewest_certificate_images() == 199
    assert NullspaceConfig(confidence=0.99).fewest_certificate_images() == 305
