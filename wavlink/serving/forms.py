"""Requests as forms, with files: parsed in a request's own thread, since a form of 32 MB takes a while."""

import asyncio
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request

from .errors import RequestError
from .requests import R, check_upload, from_form

MULTIPART, URLENCODED = FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_FIELD = 2**20  # bytes of a field that is no file
_FIELDS = 1000  # of a form


def parse_form(
    model: type[R], scope: MutableMapping[str, Any], body: bytes, most: int, kind: str = MULTIPART
) -> tuple[R, list[tuple[str, bytes]]]:
    """Return the request of a form, and its files, each with the name that errors give it, such as `file[0]`.

    Args:
        scope: of ASGI, for the headers.
        most: texts and sounds in a field.
        kind: of the form, one of `FORMS`.

    Raises:
        RequestError: a field that is wrong.
        HTTPException: of starlette, no form.
    """
    fields: dict[str, list[str]] = {}
    uploads: list[tuple[str, bytes]] = []
    if kind == URLENCODED:
        for name, value in _urlencoded(body):
            fields.setdefault(name, []).append(value)
        return from_form(model, fields, most), uploads

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> None:
        async with Request(scope, receive).form(max_part_size=_FIELD, max_fields=_FIELDS, max_files=_FIELDS) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields.setdefault(name, []).append(value)
                else:
                    check_upload(model, name)
                    uploads.append((f"{name}[{len(uploads)}]", await value.read()))

    asyncio.run(read())
    return from_form(model, fields, most), uploads


def _urlencoded(body: bytes) -> list[tuple[str, str]]:
    """Return names and values.

    starlette's parser reads bytes that are not percent-encoded as Latin-1, replaces those that are no UTF-8, and takes
    seconds for a body of separators.
    """
    if body.count(b"&") >= _FIELDS:
        raise RequestError(400, f"the form has more than {_FIELDS} fields: send several")
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise RequestError(400, f"the form is not in UTF-8: {error}") from error
