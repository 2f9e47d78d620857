"""Pages name the command that made them, without its tokens."""

from hf_nullspace.utils.current_command import current_command, made_by


def test_tokens_of_the_command_are_hidden():
    with made_by(["hf-nullspace", "evaluate", "a b", "--token", "hf_secret", "--hub_token=hf_other"]):
        assert current_command() == "hf-nullspace evaluate 'a b' --token ... --hub_token=..."
    assert current_command() is None
