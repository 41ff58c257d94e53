"""Parameters of classes with web methods: a request names them in its query, as in Modal's cloud
(https://modal.com/docs/guide/parametrized-functions).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modal_proto import api_pb2 as api


class BadParameter(Exception):
    """A parameter is missing or not what its type says; the message is a sentence."""


def serialized_parameters(schema: Iterable[api.ClassParameterSpec], query: Mapping[str, str]) -> bytes:
    """What binds a class to the parameters in `query`, as the SDK serializes it; empty for a class without
    parameters.

    Raises:
        BadParameter: the answer to the request is its sentence.
    """
    values = []
    for spec in schema:
        kind = spec.full_type.base_type or spec.type
        field = _FIELDS.get(kind)
        if field is None:
            raise BadParameter(f"the parameter {spec.name} has a type that a query can't give")
        value = api.ClassParameterValue(name=spec.name, type=kind)
        if spec.name in query:
            setattr(value, f"{field}_value", _parsed(spec.name, kind, query[spec.name]))
        elif spec.has_default:
            setattr(value, f"{field}_value", getattr(spec, f"{field}_default"))
        else:
            raise BadParameter(f"the query parameter {spec.name} is missing")
        values.append(value)
    return api.ClassParameterSet(parameters=values).SerializeToString(deterministic=True)


_FIELDS: dict[int, str] = {
    api.PARAM_TYPE_STRING: "string",
    api.PARAM_TYPE_INT: "int",
    api.PARAM_TYPE_BYTES: "bytes",
    api.PARAM_TYPE_BOOL: "bool",
}


def _parsed(name: str, kind: int, text: str) -> Any:
    if kind == api.PARAM_TYPE_STRING:
        return text
    if kind == api.PARAM_TYPE_BYTES:
        return text.encode()
    if kind == api.PARAM_TYPE_BOOL:
        if text.lower() not in ("true", "false"):
            raise BadParameter(f"the query parameter {name} must be true or false")
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        raise BadParameter(f"the query parameter {name} must be a whole number") from None
