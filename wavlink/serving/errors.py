"""Errors of a request, in the shape of OpenAI's API."""

import json
from typing import Any

from wavlink.sanitize import clean

_MOST = 2000  # characters of a message


class RequestError(ValueError):
    """An error that a client is answered with.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        param: the field of the request that is wrong.
        code: a short name for programs.
        retry_after: seconds until the same request may succeed.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


def as_request_error(error: Exception) -> RequestError:
    """Return what a client is answered with: a ValueError's message, but nothing of an error of the server itself."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ValueError):
        return RequestError(400, str(error))
    return RequestError(500, "the server failed at this request; its log says why", code="internal_error")


def content_of(error: RequestError) -> bytes:
    """Return the JSON of an error: `{"error": {"message", "type", "param", "code"}}`."""
    return as_json(
        {
            "error": {
                "message": clean(error, _MOST),
                "type": _type_of(error.status),
                "param": error.param,
                "code": error.code,
            }
        }
    )


def headers_of(error: RequestError) -> dict[str, str]:
    """Return the headers of an error's response."""
    headers = {"content-type": "application/json"}
    if error.retry_after:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def as_json(value: Any) -> bytes:
    """Return a document as JSON, which has no NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    if status == 401:
        return "authentication_error"
    return "server_error" if status >= 500 else "invalid_request_error"
