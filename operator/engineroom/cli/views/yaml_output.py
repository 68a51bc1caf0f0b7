"""YAML of JSON-like values, written event by event: no tree of nodes is built first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Columns after which the emitter breaks a line.
_WIDTH = 100
_STRING = "tag:yaml.org,2002:str"


def to_yaml(document: Any) -> str:
    """Return a value of maps, lists and scalars as YAML in block style; keys keep their order."""
    dumper = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper
    text: str = yaml.emit(_events(document), Dumper=dumper, allow_unicode=True, width=_WIDTH)
    return text


def _events(document: Any) -> Iterator[yaml.Event]:
    yield yaml.StreamStartEvent()
    yield yaml.DocumentStartEvent(explicit=False)
    yield from _Writer().value(document)
    yield yaml.DocumentEndEvent(explicit=False)
    yield yaml.StreamEndEvent()


class _Writer:
    """The events of values; text that reads as another type gets quotes."""

    def __init__(self) -> None:
        # Typed as Any: its stubs lack the types of arguments.
        self._resolver: Any = yaml.resolver.Resolver()
        self._representer = yaml.representer.SafeRepresenter()

    def value(self, value: Any) -> Iterator[yaml.Event]:
        """Yield the events of one value."""
        if isinstance(value, dict):
            yield yaml.MappingStartEvent(None, None, True, flow_style=False)
            for key, inner in value.items():
                yield self._scalar(key)
                yield from self.value(inner)
            yield yaml.MappingEndEvent()
        elif isinstance(value, list | tuple):
            yield yaml.SequenceStartEvent(None, None, True, flow_style=False)
            for inner in value:
                yield from self.value(inner)
            yield yaml.SequenceEndEvent()
        else:
            yield self._scalar(value)

    def _scalar(self, value: Any) -> yaml.ScalarEvent:
        if isinstance(value, str):
            tag = self._resolver.resolve(yaml.ScalarNode, value, (True, False))
            return yaml.ScalarEvent(None, None, (tag == _STRING, True), value)
        text: str = self._representer.represent_data(value).value
        return yaml.ScalarEvent(None, None, (True, False), text)
