"""Requests against pydantic models: query, headers and body, with problems that name the field.

``@accepts`` does so for a handler of Starlette, FastAPI or anything whose request has ``scope`` and
``body()``; ``read_query``, ``read_headers`` and ``read_body`` for anything else.
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

#: Parameters of one query string, and problems that are told at once.
MAX_PARAMETERS = 100
MAX_PROBLEMS = 20

_SEVERAL = (list, tuple, set, frozenset)
_M = TypeVar("_M", bound="BaseModel")
_R = TypeVar("_R")


def read_query(model: type[_M], query: bytes | str) -> _M:
    """The parameters of a query string. One that comes twice is refused unless it is a list.

    Raises InvalidInputError, and TooLargeError for more than ``MAX_PARAMETERS``.
    """
    text = query.decode("latin-1") if isinstance(query, bytes) else query
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict"
        )
    except UnicodeDecodeError as error:
        raise _wrong("query", "is not UTF-8", "percent-encode UTF-8") from error
    except ValueError as error:
        raise TooLargeError(f"the query has over {MAX_PARAMETERS} parameters") from error
    return model_of(model, pairs, "query")


def read_headers(model: type[_M], headers: Iterable[tuple[bytes, bytes]]) -> _M:
    """Those headers that ``model`` names; ``x_trace`` is the header ``x-trace``, others are left.

    Raises InvalidInputError; a header of the model that comes twice is refused unless it is a list.
    """
    names = {_header(name, each): each.alias or name for name, each in model.model_fields.items()}
    pairs = [
        (names[name.decode("latin-1").lower()], value.decode("latin-1"))
        for name, value in headers
        if name.decode("latin-1").lower() in names
    ]
    return model_of(model, pairs, "header")


def read_body(model: type[_M], body: bytes | str) -> _M:
    """A JSON body, strictly: a number is no text, and nothing unknown if the model forbids it.

    Raises InvalidInputError, and UnreadableError for what is no JSON within the limits.
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
    """A model of names and texts, such as parameters; see ``read_query``."""
    from pydantic import ValidationError

    lists = {
        each.alias or name
        for name, each in model.model_fields.items()
        if _takes_several(each.annotation)
    }
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in lists:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise _wrong(child(root, name[:80]), "comes more than once", "send it once")
        else:
            given[name] = value
    try:
        return model.model_validate(given, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidInputError(problems(error, root)) from error


def problems(error: ValidationError, root: str) -> list[Problem]:
    """Pydantic's findings as ours; what was sent is not repeated, it may be a secret."""
    found = []
    for each in error.errors(include_input=False, include_url=False, include_context=False)[
        :MAX_PROBLEMS
    ]:
        path = root
        for part in each["loc"]:
            path = f"{path}[{part}]" if isinstance(part, int) else child(path, str(part)[:80])
        unknown = each["type"] == "extra_forbidden"
        fix = "remove it" if unknown else "see the API's document"
        message = "is not a known field" if unknown else f"is not valid: {each['msg'][:200]}"
        found.append(Problem(path, message, fix))
    return found


def accepts(
    *,
    query: type[BaseModel] | None = None,
    headers: type[BaseModel] | None = None,
    body: type[BaseModel] | None = None,
) -> Callable[[Callable[..., Awaitable[_R]]], Callable[..., Awaitable[_R]]]:
    """Decorate ``async def handler(request, *, query, headers, body)`` to be given models.

    Only what is named here is passed. The handler is not called for what does not fit; the error
    is for ``requests.Problems`` or any other middleware that makes an answer of it.
    """

    def decorate(handler: Callable[..., Awaitable[_R]]) -> Callable[..., Awaitable[_R]]:
        @functools.wraps(handler)
        async def checked(request: Any, **more: Any) -> _R:
            if query is not None:
                more["query"] = read_query(query, request.scope.get("query_string", b""))
            if headers is not None:
                more["headers"] = read_headers(headers, request.scope["headers"])
            if body is not None:
                more["body"] = read_body(body, await request.body())
            return await handler(request, **more)

        return checked

    return decorate


def _header(name: str, field: FieldInfo) -> str:
    """The header of a field: by its alias where somebody wrote one, else by its name."""
    written = field.alias if field.alias_priority == 2 else None
    return (written or name).replace("_", "-").lower()


def _takes_several(annotation: Any) -> bool:
    kinds = [annotation, *get_args(annotation)]
    return any(get_origin(kind) in _SEVERAL or kind in _SEVERAL for kind in kinds)


def _wrong(field: str, problem: str, fix: str) -> InvalidInputError:
    return InvalidInputError([Problem(field, problem, fix)])
