"""What every experiment works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .corpus import Corpus, Slice
from .networks import Networks
from .settings import Config

if TYPE_CHECKING:
    from mricodec.models.study.perceptual import Lpips


@dataclass(frozen=True)
class Study:
    """The corpus, the networks trained on it, and how much is measured."""

    corpus: Corpus
    networks: Networks
    config: Config
    # Receives a line for each result.
    report: Callable[[str], None] = lambda line: None
    # Distances with published weights, where they are available.
    lpips: Lpips | None = None

    @property
    def measured(self) -> list[Slice]:
        """The test slices whose reconstructions are measured."""
        return self.corpus.slices["test"][:: self.config.test_every]
