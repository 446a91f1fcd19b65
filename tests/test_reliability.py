"""docs/reliability.md holds what the tests hold: each message, each file and target by its name."""

import re
from pathlib import Path

import pytest
import test_arguments
import test_bad_input_gpu

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "reliability.md").read_text()
BAD_INPUT = TEXT.split("## Bad input")[1].split("\n## ")[0]
# A row of a table: what comes, then the message or its first or last words.
MESSAGES = re.findall(r"^\| [^|]+ \| (?:… )?`([^`]+)`", BAD_INPUT, re.MULTILINE)


def expected_by_tests():
    cases = test_arguments.CALLS + test_arguments.RULES + test_bad_input_gpu.CASES
    return {message for *_, message in cases}


def source_of_tests():
    """The tests' text, with strings over several lines joined."""
    text = "".join(path.read_text() for path in sorted((ROOT / "tests").glob("test_*.py")))
    return re.sub(r"[\"']\n\s*[\"']", "", text).replace(r"\.", ".")


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_one_of_a_test(message):
    expected = expected_by_tests()
    found = any(message in one or one.startswith(message) for one in expected)
    assert found or message in source_of_tests()


def test_every_message_of_a_gpu_call_is_there():
    """Its first words at least; the rest is one of several forms."""
    for *_, message in test_bad_input_gpu.CASES:
        assert message.split(" must ")[0].split(", got")[0][:40] in BAD_INPUT


def test_names_are_there():
    assert len(MESSAGES) > 35
    for name in re.findall(r"`(\w+\.py)`", TEXT):
        assert any((ROOT / folder / name).exists() for folder in ("tests", "maskq_cupy")), name
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`make ([a-z-]+)`", TEXT):
        assert target in targets
