"""Validation of requests with pydantic models: query, headers and body.

``@accepts`` decorates a handler of Starlette, FastAPI or any framework whose requests have
``scope`` and ``body()``. Elsewhere use ``read_query``, ``read_headers`` and ``read_body``.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

from engineroom.core.errors import InvalidInputError, Problem, TooLargeError
from engineroom.core.validation.documents import read_json
from engineroom.core.validation.paths import child

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

#: Most parameters of a query string, and most problems in one error.
MAX_PARAMETERS = 100
MAX_PROBLEMS = 20

_COLLECTIONS = (list, tuple, set, frozenset)
_M = TypeVar("_M", bound="BaseModel")
_R = TypeVar("_R")


def read_query(model: type[_M], query: bytes | str) -> _M:
    """Read the parameters of a query string; refuse a repeated one unless it is a list.

    Raises InvalidInputError, and TooLargeError for more than ``MAX_PARAMETERS``.
    """
    text = query.decode("latin-1") if isinstance(query, bytes) else query
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict"
        )
    except UnicodeDecodeError as error:
        raise _invalid("query", "is not UTF-8", "percent-encode UTF-8") from error
    except ValueError as error:
        raise TooLargeError(f"the query has over {MAX_PARAMETERS} parameters") from error
    return model_of(model, pairs, "query")


def read_headers(model: type[_M], headers: Iterable[tuple[bytes, bytes]]) -> _M:
    """Read the headers that ``model`` names; its field ``x_trace`` is the header ``x-trace``.

    Raises InvalidInputError, also for a repeated header of the model unless it is a list.
    """
    names = {_header(name, info): info.alias or name for name, info in model.model_fields.items()}
    pairs = [
        (names[name.decode("latin-1").lower()], value.decode("latin-1"))
        for name, value in headers
        if name.decode("latin-1").lower() in names
    ]
    return model_of(model, pairs, "header")


def read_body(model: type[_M], body: bytes | str) -> _M:
    """Read a JSON body in strict mode: values are not converted between types.

    Raises InvalidInputError, and UnreadableError for invalid or too large JSON.
    """
    from pydantic import ValidationError

    value = read_json(body)
    try:
        return model.model_validate_json(
            json.dumps(value), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise InvalidInputError(problems(error, "body")) from error


def model_of(model: type[_M], pairs: Sequence[tuple[str, str]], root: str) -> _M:
    """Read a model from pairs of names and strings, such as parameters; see ``read_query``."""
    from pydantic import ValidationError

    lists = {
        info.alias or name
        for name, info in model.model_fields.items()
        if _is_collection(info.annotation)
    }
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in lists:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise _invalid(child(root, name[:80]), "comes more than once", "send it once")
        else:
            values[name] = value
    try:
        return model.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidInputError(problems(error, root)) from error


def problems(error: ValidationError, root: str) -> list[Problem]:
    """Translate pydantic's errors; leave out the input, which may be a secret."""
    translated = []
    for detail in error.errors(include_input=False, include_url=False, include_context=False)[
        :MAX_PROBLEMS
    ]:
        path = root
        for part in detail["loc"]:
            path = f"{path}[{part}]" if isinstance(part, int) else child(path, str(part)[:80])
        unknown = detail["type"] == "extra_forbidden"
        fix = "remove it" if unknown else "see the API's document"
        message = "is not a known field" if unknown else f"is not valid: {detail['msg'][:200]}"
        translated.append(Problem(path, message, fix))
    return translated


def accepts(
    *,
    query: type[BaseModel] | None = None,
    headers: type[BaseModel] | None = None,
    body: type[BaseModel] | None = None,
) -> Callable[[Callable[..., Awaitable[_R]]], Callable[..., Awaitable[_R]]]:
    """Decorate ``async def handler(request, *, query, headers, body)`` to receive models.

    Only the models named here are passed. An invalid request raises without calling the handler;
    ``requests.Problems`` or another middleware turns the error into a response.
    """

    def decorate(handler: Callable[..., Awaitable[_R]]) -> Callable[..., Awaitable[_R]]:
        @functools.wraps(handler)
        async def validated(request: Any, **more: Any) -> _R:
            if query is not None:
                more["query"] = read_query(query, request.scope.get("query_string", b""))
            if headers is not None:
                more["headers"] = read_headers(headers, request.scope["headers"])
            if body is not None:
                more["body"] = read_body(body, await request.body())
            return await handler(request, **more)

        return validated

    return decorate


def _header(name: str, field: FieldInfo) -> str:
    """Return the header of a field: its explicit alias, or its name."""
    written = field.alias if field.alias_priority == 2 else None
    return (written or name).replace("_", "-").lower()


def _is_collection(annotation: Any) -> bool:
    kinds = [annotation, *get_args(annotation)]
    return any(get_origin(kind) in _COLLECTIONS or kind in _COLLECTIONS for kind in kinds)


def _invalid(field: str, problem: str, fix: str) -> InvalidInputError:
    return InvalidInputError([Problem(field, problem, fix)])
