"""Explains errors of the Hub, and what to do about them."""

from __future__ import annotations

from huggingface_hub.errors import OfflineModeIsEnabled


MEANINGS = {
    401: (
        "the Hub does not know the access token (401)",
        "Log in with `hf auth login`, or pass another with `--token`.",
    ),
    403: (
        "the Hub refuses access (403)",
        "The account needs the right to read this repository; a token may be limited to others.",
    ),
    404: ("the Hub has no such file (404)", "Name another revision with `--revision`."),
    408: ("the Hub took too long (408)", "Try again later."),
    429: ("the Hub was asked too often (429)", "Try again in some minutes, or log in for a higher limit."),
}


def hub_meaning(error: BaseException | None) -> tuple[str, str]:
    """What is wrong, according to the Hub's answer or the lack of one, and what to do."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and status >= 500:
            return f"the Hub itself fails ({status})", "Nothing is wrong here; try again later."
        if status is not None:
            return MEANINGS.get(status, (f"the Hub answered with status {status}", "Try again later."))
        if isinstance(error, OfflineModeIsEnabled):
            return "offline mode is on (HF_HUB_OFFLINE)", "Try again with a network."
        if "Timeout" in type(error).__name__:  # HTTP libraries have their own exception types
            return "the Hub did not answer in time", "Try again later."
        error = error.__cause__
    return "the Hub cannot be reached", "Try again with a network."
