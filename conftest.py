"""Pytest set-up for the whole checkout."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Point nbval at its replacements by an absolute path, so that pytest may start anywhere."""
    if hasattr(config.option, "nbval_sanitize_with") and not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(config.rootpath / "tests" / "nbval_sanitize.cfg")
