"""Values of any column as JSON values, which metadata is made of, and JSON as it comes in."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

__all__ = ["HALF_PAIR", "json_object", "json_value"]

HALF_PAIR = re.compile("[\ud800-\udfff]")  # what JSON can escape and UTF-8 cannot write

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def json_object(content: bytes) -> tuple[dict[str, Any] | None, str]:
    """The JSON object that a line of text is, or why it is none."""
    try:
        value = json.loads(content.decode(), parse_constant=_null)
        if _SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return None, f"broken UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        return None, "half of a surrogate pair"
    except (ValueError, RecursionError) as error:
        return None, f"broken JSON: {error}"
    return (value, "") if isinstance(value, dict) else (None, "not a JSON object")


def _null(constant: str) -> None:
    """NaN and Infinity, which Python would let pass for JSON."""


def json_value(value: Any) -> Any:
    """A value of any column as a JSON value.

    - dates and times: ISO 8601, with the UTC offset if there is one; durations: seconds
    - numbers that a float or an int64 cannot hold exactly (decimals, large integers): their digits
      as text; NaN and infinities: null
    - binary: base64; lists, structs and maps: lists and dicts, with keys as text
    - anything else: `str` of it
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else _number(Decimal(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(name): json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(one) for one in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, np.ndarray | np.generic):
        return json_value(value.tolist())
    return str(value)


def _number(value: Decimal) -> float | str | None:
    if not value.is_finite():
        return None
    nearest = float(value)
    exact = math.isfinite(nearest) and Decimal(repr(nearest)) == value
    return nearest if exact else str(value)


def _key(name: Any) -> str:
    plain = json_value(name)
    return plain if isinstance(plain, str) else json.dumps(plain)
