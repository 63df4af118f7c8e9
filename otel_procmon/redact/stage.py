"""Takes secrets out of events, between decoding and lineage: nothing after that ever has them.

So a fork, which runs its parent's program, an ancestor, a record, a view and the events of Tetragon that go out field
for field all tell the same, and each image is looked at once, when its first event comes, and not once for each record.
What is left of a process says which rules found something (`Process.redacted`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from otel_procmon.events import Discovered, Exec, Exit
from otel_procmon.redact.find import Finder, in_arguments, in_joined, in_text, is_secret_value_of, replaced
from otel_procmon.redact.rules import MARK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_procmon.events import Event, Pod, Process
    from otel_procmon.ledger import Ledger
    from otel_procmon.redact.filters import RedactionFilter
    from otel_procmon.redact.find import Span

PLACE: Final = "redact"
"""Where in the ledger it is counted in how many processes each rule found something."""

_IDENTITIES: Final = frozenset({"exec_id", "execId", "parent_exec_id", "parentExecId"})
"""Of a Tetragon event. Everything hangs on them, and nobody can choose them."""
_ENVIRONMENT: Final = frozenset({"environment_variables", "environmentVariables"})


class Redaction:
    """Redacts events. Not thread-safe."""

    def __init__(self, ledger: Ledger, filters: Sequence[RedactionFilter] = ()) -> None:
        """`filters`: rules beside those of `redact.rules`."""
        self._ledger = ledger
        self._filters = tuple(filters)
        self._finder = Finder()

    def __call__(self, event: Event) -> Event:
        """`event` without its secrets; the same object if it has none."""
        if isinstance(event, Exec | Exit):
            process = event.process
            changes: dict[str, Any] = {}
            if process is not None and (changed := self.process(process)) is not process:
                changes["process"] = changed
            if event.parent is not None and (parent := self.process(event.parent)) is not event.parent:
                changes["parent"] = parent
            if event.raw is not None and (raw := self._object(event.raw)) is not event.raw:
                changes["raw"] = raw
            return replace(event, **changes) if changes else event
        if isinstance(event, Discovered):
            process = self.process(event.process)
            return event if process is event.process else replace(event, process=process)
        return event

    def process(self, process: Process) -> Process:
        """`process` without its secrets; the same object if it has none."""
        argv, arguments = process.argv, process.arguments
        changes: dict[str, Any] = {}
        rules: set[str] = set()
        if argv is not None:
            if self._filters or self._finder.is_suspect(argv):
                spans = in_arguments(argv)
                for filter_ in self._filters:
                    if filter_.concerns(process.binary):
                        spans += filter_.find_in_arguments(argv)
                if spans:
                    changes["argv"] = _replaced_arguments(argv, spans)
                    rules.update(span.rule for span in spans)
        elif arguments:
            text = self._joined(process.binary, arguments, rules)
            if text != arguments:
                changes["arguments"] = text
        paths = (process.binary, process.cwd or "", process.executable or "", process.interpreter or "")
        if self._finder.is_suspect(paths):
            for name, path in zip(("binary", "cwd", "executable", "interpreter"), paths, strict=True):
                if spans := in_text(path):
                    changes[name] = replaced(path, [(span.begin, span.end) for span in spans])
                    rules.update(span.rule for span in spans)
        if process.pod is not None and (pod := self._pod(process.pod)) is not process.pod:
            changes["pod"] = pod
        if not changes:
            return process
        for rule in rules:
            self._ledger.count(PLACE, f"replaced: {rule}")
        return replace(process, redacted=tuple(sorted(rules)), **changes)

    def _pod(self, pod: Pod) -> Pod:
        """A pod as an event tells it; its annotations may be whole manifests."""
        annotations = {key: self._text(value) for key, value in pod.annotations.items()}
        return pod if annotations == pod.annotations else replace(pod, annotations=annotations)

    def _joined(self, binary: str, arguments: str, rules: set[str]) -> str:
        """Tetragon's one string without its secrets."""
        if not (self._filters or self._finder.is_suspect((arguments, binary))):
            return arguments
        spans = [(span.begin, span.end) for span in in_joined(binary, arguments) if not rules.add(span.rule)]  # type: ignore[func-returns-value]
        for filter_ in self._filters:
            if filter_.concerns(binary) and (found := list(filter_.find(arguments))):
                spans += found
                rules.add(filter_.name)
        return replaced(arguments, spans)

    # Tetragon's event, which goes out as it came in

    def _object(self, value: dict[str, Any]) -> dict[str, Any]:
        changed = {}
        binary = value.get("binary")
        for key, item in value.items():
            if isinstance(item, str):
                if key in _IDENTITIES:
                    continue
                if key == "arguments":
                    new: Any = self._joined(binary if isinstance(binary, str) else "", item, set())
                else:
                    new = self._text(item)
                if new != item:
                    changed[key] = new
            elif key in _ENVIRONMENT and isinstance(item, list):
                if (new := [self._variable(entry) for entry in item]) != item:
                    changed[key] = new
            elif isinstance(item, dict | list) and (new := self._value(item)) is not item:
                changed[key] = new
        return {**value, **changed} if changed else value

    def _value(self, value: Any) -> Any:
        """Any JSON value, nested as deeply as the decoder lets pass; the same object if nothing in it is secret."""
        if isinstance(value, dict):
            return self._object(value)
        if isinstance(value, list):
            items = [self._value(item) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        if not self._finder.is_suspect((text,)):
            return text
        spans = in_text(text)
        return replaced(text, [(span.begin, span.end) for span in spans]) if spans else text

    def _variable(self, entry: Any) -> Any:
        """An entry of ``environment_variables``: an object with ``key`` and ``value``."""
        if not isinstance(entry, dict):
            return self._value(entry)
        name, value = entry.get("key"), entry.get("value")
        if isinstance(name, str) and isinstance(value, str):
            text = f"{name}={value}"
            if is_secret_value_of(name, value) or any(any(filter_.find(text)) for filter_ in self._filters):
                return {**entry, "value": MARK}
        return self._object(entry)


def unredacted(event: Event) -> Event:
    """For whoever has turned redaction off."""
    return event


def _replaced_arguments(argv: tuple[str, ...], spans: Sequence[Span]) -> tuple[str, ...]:
    by_argument: dict[int, list[tuple[int, int]]] = {}
    for span in spans:
        by_argument.setdefault(span.argument, []).append((span.begin, span.end))
    return tuple(
        replaced(argument, by_argument[index]) if index in by_argument else argument
        for index, argument in enumerate(argv)
    )
