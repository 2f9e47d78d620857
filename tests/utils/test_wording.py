"""Messages name settings as their reader does: in the config's, the trainer's or the command's words."""

import logging

import pytest

from hf_nullspace import NullspaceDataCollator, NullspaceTrainer, NullspaceTrainingArguments
from hf_nullspace.training.arguments import in_arguments
from hf_nullspace.utils.wording import as_flags, renamed, worded


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Raise `max_steps` (24), or `method='boundary'`.", "Raise `--max_steps` (24), or `--method boundary`."),
        ("Go on with `resume_from_checkpoint=True`.", "Go on with `--resume_from_checkpoint last`."),
        (
            "`method` of `Trainer`, `pip install x`, `model.method`",
            "`--method` of `Trainer`, `pip install x`, `model.method`",
        ),
    ],
)
def test_settings_become_flags(text, expected):
    assert as_flags(text, {"max_steps", "method", "resume_from_checkpoint"}) == expected


def test_settings_are_renamed_once():
    names = {"max_steps": "noise_max_steps", "noise_max_steps": "other"}
    assert (
        renamed("`max_steps` and `max_steps=3`, max_steps", names)
        == "`noise_max_steps` and `noise_max_steps=3`, max_steps"
    )


def test_the_innermost_words_come_first(caplog):
    package_logger = logging.getLogger("hf_nullspace.noise.synthesis")
    with (
        pytest.raises(ValueError, match="^Raise `--noise_max_steps`$"),
        worded(lambda text: as_flags(text, {"noise_max_steps", "max_steps"})),
    ):
        package_logger.warning("Lower `max_steps`")
        with worded(in_arguments):
            package_logger.warning("Raise `%s`", "max_steps")
            raise ValueError("Raise `max_steps`")
    package_logger.warning("Raise `max_steps`")
    assert caplog.messages == ["Lower `--max_steps`", "Raise `--noise_max_steps`", "Raise `max_steps`"]


def test_errors_with_several_arguments_stay_as_they_are():
    with pytest.raises(FileNotFoundError) as info, worded(str.upper):
        open("no/such/file")
    assert info.value.filename == "no/such/file"


def test_a_trainer_speaks_of_its_arguments(make_vit, examples, tmp_path, caplog):
    args = NullspaceTrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=8,
        epsilon=1e-9,
        noise_method="paper",
        noise_max_steps=1,
        noise_num_images=16,
        noise_num_certificate_images=16,
        noise_on_failure="skip",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    NullspaceTrainer(make_vit(4.0), args, NullspaceDataCollator(), examples).train()
    (message,) = [text for text in caplog.messages if text.startswith("Noise of round 0")]
    assert "as many `noise_num_certificate_images`, where that is set" in message
