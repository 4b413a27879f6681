"""The requests in the OpenAPI document: FastAPI knows none that are parsed in a thread."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

_REF = "#/components/schemas/{model}"
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "Sound files."}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe_requests(app: FastAPI, requests: Mapping[str, type[BaseModel]]) -> None:
    """Add the bodies of POST requests, by their paths, and the shape of errors to the app's OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Error"] = _ERROR
        for path, model in requests.items():
            schema = model.model_json_schema(ref_template=_REF)
            schemas |= schema.pop("$defs", {})
            schemas[model.__name__] = schema
            form = {**schema, "properties": {"file": _FILES, **schema["properties"]}}
            operation = document["paths"][path]["post"]
            operation["requestBody"] = {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}},
                    "multipart/form-data": {"schema": form},
                },
            }
            error = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
            operation["responses"]["4XX"] = {"description": "The request is refused.", "content": error}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
