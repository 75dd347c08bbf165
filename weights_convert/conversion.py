"""How a family's published files become one of ours. A family has one `Conversion`, its own or
derived from this."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from zerosmooth.checkpoint import looks_like

from .engine import ConversionError, Shapes, Table, convert
from .source import Source, open_source

if TYPE_CHECKING:
    from zerosmooth.config import ModelConfig


class Conversion:
    """table: (config, names of the source's tensors) -> where they go."""

    def __init__(self, table: Callable[[ModelConfig, Collection[str]], Table]) -> None:
        self.table = table

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The flags that this family's files need beside the general ones."""

    def open(self, path: Path, args: argparse.Namespace) -> Source:
        """The source, whatever files it lies in. ConversionError if something is missing."""
        return open_source(path, weights=args.weights)

    def variant(self, config: ModelConfig, source: Source, args: argparse.Namespace) -> ModelConfig:
        """The config of the source's variant, of the family's own. ConversionError if nothing tells
        it."""
        return config

    def check(self, source: Source, config: ModelConfig) -> None:
        """ConversionError if what is dropped, because it is computed, is not what the source
        has."""

    def tensors(self, name: str, source: Source, config: ModelConfig,
                expected: Shapes) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, read one at a time. ConversionError, at once, if the source is not of the
        family `name`."""
        table = self.table(config, source.shapes)
        try:
            tensors = convert(table, source.shapes, source.read, expected)
            self.check(source, config)
        except ConversionError as error:
            looks = looks_like(source.shapes)
            own = f"convert {name}" in looks
            other = "; it is incomplete, or changed" if own else f". It looks like {looks}"
            raise ConversionError(f"{source.name} is not {name}: {error}{other}") from None
        return tensors
