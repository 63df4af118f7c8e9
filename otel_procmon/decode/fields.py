"""The fields of a parsed JSON object, each taken as the type that it should have.

The input is hostile: a field of another type is as good as absent. It is counted as ``ignored: <object>.<field>``; both
names are this program's own, so their number is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_procmon.rfc3339 import parse_rfc3339

if TYPE_CHECKING:
    from otel_procmon.ledger import Ledger

PLACE = "decode.tetragon"
"""Where in the ledger this is counted."""

UINT32_MAX = 2**32 - 1
"""As a user id: not set."""


def json_type(value: Any) -> str:
    """JSON's own word for the type of a parsed value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


class Fields:
    """One JSON object's fields, by type. A field of another type is as good as absent, but counted."""

    __slots__ = ("_ledger", "_values", "path")

    def __init__(self, values: dict[str, Any], path: str, ledger: Ledger) -> None:
        self._values = values
        self.path = path
        self._ledger = ledger

    def _ignore(self, name: str) -> None:
        self._ledger.count(PLACE, f"ignored: {self.path}.{name}")

    def has(self, name: str) -> bool:
        """Whether there is such a field at all, of whatever type; null is as good as none."""
        return self._values.get(name) is not None

    def text(self, name: str) -> str | None:
        """A string that is not empty."""
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value or None
        self._ignore(name)
        return None

    def number(self, name: str, maximum: int = UINT32_MAX) -> int | None:
        """An integer from 0 to `maximum`, in any of the spellings that protojson takes: 7, "7", 7.0."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, str) and 0 < len(value) <= 20 and value.isascii() and value.isdigit():
            value = int(value)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if whole and not isinstance(value, bool) and 0 <= value <= maximum:
            return int(value)
        self._ignore(name)
        return None

    def truth(self, name: str) -> bool | None:
        """A boolean."""
        value = self._values.get(name)
        if value is None or isinstance(value, bool):
            return value
        self._ignore(name)
        return None

    def user_id(self, name: str) -> int | None:
        """A user or group id; None where it is 4294967295, which says that it was not set."""
        value = self.number(name)
        return None if value == UINT32_MAX else value

    def time(self, name: str) -> int | None:
        """A time in ns since the epoch."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            try:
                return parse_rfc3339(value)
            except ValueError:
                pass
        self._ignore(name)
        return None

    def fields(self, name: str) -> Fields | None:
        """A nested object."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, dict):
            return Fields(value, name, self._ledger)
        self._ignore(name)
        return None

    def strings(self, name: str) -> dict[str, str]:
        """A map from string to string, without the entries that are something else."""
        value = self._values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._ignore(name)
            return {}
        strings = {key: item for key, item in value.items() if isinstance(item, str)}
        if len(strings) < len(value):
            self._ignore(name)
        return strings
