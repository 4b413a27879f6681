"""Requests as forms, with files: parsed in a request's own thread, since a form of 32 MB takes a while."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from fastapi import Request

from .requests import R, from_form

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_FIELD = 2**20  # bytes of a field that is no file


def parse_form(
    model: type[R], scope: MutableMapping[str, Any], body: bytes, most: int
) -> tuple[R, list[tuple[str, bytes]]]:
    """Return the request of a form, and its files, each with the name that errors give it.

    Args:
        scope: of ASGI, for the headers.
        most: texts and sounds in a field.

    Raises:
        RequestError: a field that is wrong.
        HTTPException: of starlette, no form.
    """
    fields: dict[str, list[str]] = {}
    uploads: list[tuple[str, bytes]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> None:
        async with Request(scope, receive).form(max_part_size=_FIELD) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields.setdefault(name, []).append(value)
                else:
                    uploads.append((f"{name}[{len(uploads)}]", await value.read()))

    asyncio.run(read())
    return from_form(model, fields, most), uploads
