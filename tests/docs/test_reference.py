"""The references are what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from configs import reference, schema

ROOT = Path(__file__).parents[2]


def test_the_page_of_every_field_is_made_from_the_typed_configs() -> None:
    """`make reference` writes it anew."""
    assert (ROOT / "docs/reference/config.md").read_text() == reference.page()


def test_every_field_of_the_default_job_is_on_the_page() -> None:
    page = reference.page()
    for name in ("learner.rl.kl", "learner.rl.stop", "model.llm.lora", "model.backbone.lora"):
        assert f"## `{name}`\n" in page
    for field in ("samples_per_study", "component_weights", "max_staleness", "micro_batch_tokens", "dry_run"):
        assert f"`{field}`" in page


def test_a_field_without_words_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "configs/schema.py").read_text()
    first = "class RLConfig:\n    # "
    start = source.index(first) + len(first) - len("    # ")
    bare = source[:start] + source[source.index("\n", start) + 1 :]
    monkeypatch.setattr(reference.inspect, "getsource", lambda module: bare if module is schema else "")
    with pytest.raises(ValueError, match=r"configs/schema\.py:\d+: a field without a comment"):
        reference.page()


def test_the_page_of_every_command_is_what_its_help_says() -> None:
    """`make reference` writes it anew."""
    spec = importlib.util.spec_from_file_location("commands", ROOT / "docs/commands.py")
    assert spec is not None
    assert spec.loader is not None
    commands = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(commands)
    assert (ROOT / "docs/reference/commands.md").read_text() == commands.page()
