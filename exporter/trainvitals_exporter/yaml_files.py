"""YAML files that an operator writes, read strictly: what is not understood is an error, never ignored."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from trainvitals_exporter.messages import printable

_MAX_BYTES: Final = 1 << 20  # configuration is short; a larger file is another file, given by mistake


class Unusable(ValueError):
    """What an operator wrote cannot be used. The message is for people, one line, and says where and why."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def read_mapping(path: Path) -> dict[str, Any]:
    """The file's top-level mapping, by the rules of YAML 1.1; {} of an empty file.

    Raises Unusable when it cannot be read, is no YAML, holds a key
    twice, or is anything but a mapping whose keys are text.
    """
    import yaml  # not at the top: most exporters run without a file, and this costs memory

    class StrictLoader(yaml.SafeLoader):
        """The safe loader, without its habit of letting the last of several equal keys win, and without aliases of
        lists and mappings, of which a few lines can make more than a machine's memory holds.
        """

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            """Refuse such an alias."""
            event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs' gap
            node = super().compose_node(parent, index)
            if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
                problem = "an alias may only stand for a text or a number"
                mark: Any = event.start_mark
                raise yaml.constructor.ConstructorError(None, None, problem, mark)
            return node

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            """Make Python's objections, such as those against a date in February, those of YAML."""
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
                what = node.tag.rpartition(":")[2]
                raise yaml.constructor.ConstructorError(
                    None, None, f"this is no valid {what}", node.start_mark
                ) from None

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            """Refuse a key that is there twice."""
            names: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in names:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"{key.value} is there twice", node.start_mark
                        )
                    names.add(key.value)
            return super().construct_mapping(node, deep)

        def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
            """Refuse half a character, which an escape can make and nothing can encode."""
            text = super().construct_scalar(node)
            str(text).encode()  # its error is made one of YAML in construct_object
            return text

    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise Unusable(f"{path} is larger than a configuration can be")
        found = yaml.load(text, StrictLoader)  # noqa: S506  # a subclass of the safe loader
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise Unusable(f"{path} is not YAML that can be used: {_one_line(error)}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Unusable(f"{path} has to hold `name: value` pairs")
    return found


def _one_line(error: Exception) -> str:
    """What is wrong and where, without the excerpt of the file, which may be a secret."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem and mark:
        return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
    reason = getattr(error, "reason", None)  # of bytes that are no text
    return f"{problem or reason or type(error).__name__}"


def check_keys(section: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    """Raise Unusable for a key that is not known."""
    for key in section:
        if key not in known:
            raise Unusable(f"unknown key {where}{key}; there are: {', '.join(sorted(known))}")


def section_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section, {} where there is none. Raises Unusable for anything but a mapping whose keys are text."""
    section = content.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise Unusable(f"{name} has to hold `name: value` pairs")
    for key in section:
        if not isinstance(key, str):
            raise Unusable(f"{name}: put {key!r} into quotation marks, it is not read as text otherwise")
    return section
