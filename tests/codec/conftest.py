"""The stand-in for every lossy model."""

from __future__ import annotations

import pytest
from fake_model import FakeModel

from mricodec import codec
from mricodec.codec import loading


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """A model that stands in for every model of models/zoo.py."""
    fake = FakeModel()

    def open_model(name: str | bytes, device: str) -> FakeModel:
        if name not in ("default", "fake", fake.model_id):
            raise codec.UnknownModel(f"unknown model {name!r}")
        return fake

    monkeypatch.setattr(loading, "open_model", open_model)
    return fake
