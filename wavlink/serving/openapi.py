"""Requests and responses in the OpenAPI document: FastAPI knows none of what threads parse and answer, and no key."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from .guard import OPEN

_REF = "#/components/schemas/{model}"
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "Sound files."}
_KEY = {"type": "http", "scheme": "bearer", "description": "The server's key."}
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


def describe(app: FastAPI, routes: Mapping[str, tuple[type[BaseModel], type[BaseModel]]], has_key: bool) -> None:
    """Add to the app's OpenAPI document the request and the response of each path that takes POST, and errors.

    Args:
        routes: by path its request and its response.
        has_key: whether clients have to give a key.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Error"] = _ERROR
        for path, (request, response) in routes.items():
            form = {**_added(request, schemas), "title": f"{request.__name__}Form"}
            form["properties"] = {"file": _FILES, **form["properties"]}
            operation = document["paths"][path]["post"]
            operation["requestBody"] = {
                "required": True,
                "content": {**_json(request.__name__), "multipart/form-data": {"schema": form}},
            }
            _added(response, schemas)
            operation["responses"] = {
                "200": {"description": response.__doc__, "content": _json(response.__name__)},
                "4XX": {"description": "The request is refused.", "content": _json("Error")},
                "5XX": {"description": "The server cannot answer now.", "content": _json("Error")},
            }
        if has_key:
            document["components"]["securitySchemes"] = {"key": _KEY}
            for path in document["paths"].keys() - set(OPEN):
                for operation in document["paths"][path].values():
                    operation["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _added(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    """Add a model and those that it refers to; return its schema."""
    schema = model.model_json_schema(ref_template=_REF)
    schemas |= schema.pop("$defs", {})
    schemas[model.__name__] = schema
    return schema


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}
