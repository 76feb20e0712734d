"""What README says is what the code says."""

from __future__ import annotations

from tests.settings_table import README, in_readme, settings_table


def test_the_table_of_settings_is_that_of_the_classes() -> None:
    """`python -m tests.settings_table --write` puts it right."""
    assert in_readme(README.read_text()) == settings_table()
