"""Our reading of the compose file follows the rules of Compose."""

from __future__ import annotations

import pytest

from tests.deploy.composefile import MissingVariable, interpolate

ENVIRON = {"SET": "value", "EMPTY": "", "DOLLAR": "pa$$word"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no variable", "no variable"),
        ("$SET and ${SET}!", "value and value!"),
        ("${UNSET}|$UNSET", "|"),
        ("${SET:-default} ${SET-default}", "value value"),
        ("${UNSET:-default} ${UNSET-default}", "default default"),
        ("${EMPTY:-default} ${EMPTY-default}", "default "),
        ("${SET:+other} ${UNSET:+other} ${EMPTY+other}", "other  other"),
        ("${SET:?words} ${SET?words} ${EMPTY?words}", "value value "),
        ("${UNSET:-${SET}} ${UNSET:-${EMPTY:-${SET:?words}}}", "value value"),
        ("$$SET $${SET}", "$SET ${SET}"),
        # A value is taken as it is: a password may hold dollar signs.
        ("${DOLLAR} ${UNSET:-${DOLLAR}}", "pa$$word pa$$word"),
    ],
)
def test_a_variable_is_filled_in(text: str, expected: str) -> None:
    assert interpolate(text, ENVIRON) == expected


@pytest.mark.parametrize(
    "text", ["${UNSET?words}", "${EMPTY:?words}", "${A:-${B:?words}}"]
)
def test_a_required_variable_that_is_missing_is_named(text: str) -> None:
    with pytest.raises(MissingVariable, match=r"(UNSET|EMPTY|B): words"):
        interpolate(text, ENVIRON)


@pytest.mark.parametrize("text", ["${SET", "${}", "${SET:=x}", "100 $ a beat"])
def test_what_compose_refuses_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\$"):
        interpolate(text, ENVIRON)
