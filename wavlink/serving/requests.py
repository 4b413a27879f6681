"""The requests of the server's routes, and how JSON and forms become them."""

import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .audio_input import from_base64, from_data_url, is_data_url
from .errors import RequestError
from .limits import Limits

_MOST_VALUES, _BEFORE_VALUES = 100_000, (b",", b"[", b"{")  # of JSON, besides those of its items
_MOST_FIELDS = 16  # of an object in a request
_MOST_NAMED = 100  # characters of a name in an error
_MOST_LABELS, _MOST_PROMPTS, _MOST_HITS = 1000, 32, 1000
FILE = "file"  # the field of a form that holds sounds
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Body(BaseModel):
    """A request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    model: str | None = Field(None, description="The model's id, as /v1/models lists it; any other is refused.")


class AudioData(BaseModel):
    """A sound file."""

    model_config = ConfigDict(extra="forbid")
    data: str = Field(description="The file in base64.")
    format: str | None = Field(None, description="Not needed: the content says what it is.")


class AudioUrl(BaseModel):
    """A data URL."""

    model_config = ConfigDict(extra="forbid")
    url: str = Field(description="data:audio/wav;base64,...; no address is fetched.")


class Item(BaseModel):
    """A text or a sound, as OpenAI's chat completions take them."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "input_text", "input_audio", "audio_url"]
    text: Text | None = Field(None, description="Of the types text and input_text.")
    input_audio: AudioData | None = Field(None, description="Of the type input_audio.")
    audio_url: AudioUrl | None = Field(None, description="Of the type audio_url.")


_CONTENTS = ("text", "input_audio", "audio_url")  # of an item
Input = Text | Item
Inputs = Input | list[Input]


class EmbeddingRequest(Body):
    """Embed texts and sounds, as OpenAI's embeddings API embeds texts."""

    input: Inputs = Field([], description="Texts and sounds. A string is a text, or a sound as a data URL.")
    dimensions: int | None = Field(None, description="One of the model's nested dims.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")
    user: str | None = Field(None, description="Ignored.")


class ClassifyRequest(Body):
    """Name sounds."""

    input: Inputs = Field([], description="Sounds, as items or data URLs.")
    labels: list[Text] = Field(min_length=2, max_length=_MOST_LABELS)
    prompts: list[Text] | None = Field(None, max_length=_MOST_PROMPTS, description="Texts with {} for the label.")
    clean_up: Literal["spaces", "none"] = "spaces"
    dimensions: int | None = Field(None, description="One of the model's nested dims.")
    top_k: int | None = Field(None, ge=1)
    prior: float | None = Field(None, gt=0, lt=1)


class SearchRequest(Body):
    """Find sounds in the server's index."""

    text: Text | list[Text] = []
    sound: Inputs = []
    without: Text | list[Text] = []
    without_sound: Inputs = []
    weight: float = Field(0.5, ge=0)
    top_k: int = Field(10, ge=1, le=_MOST_HITS)
    windows: bool = False
    min_probability: Share | None = None
    prior: float | None = Field(None, gt=0, lt=1)


class LocateRequest(Body):
    """Find where in a recording something sounds."""

    input: Inputs = Field([], description="The recording, as an item or a data URL.")
    query: Text | list[Text] = Field([], description="Texts to look for.")
    window: float | None = Field(None, gt=0, description="Seconds embedded at once.")
    hop: float | None = Field(None, gt=0, description="Seconds from window to window.")
    top_k: int = Field(5, ge=1, le=_MOST_HITS)
    dimensions: int | None = Field(None, description="One of the model's nested dims.")
    min_score: float | None = Field(None, ge=-1, le=1)
    min_probability: Share | None = None
    prior: float | None = Field(None, gt=0, lt=1)


R = TypeVar("R", bound=Body)


def from_json(model: type[R], body: bytes, most: int = Limits.max_items) -> R:
    """Parse a request.

    Args:
        most: texts and sounds in a list.

    Raises:
        RequestError: it names the first field that is wrong, or the body is not JSON in UTF-8, as RFC 8259 has it.
    """
    if not body.strip():
        raise RequestError(400, "the body is empty: send JSON, or a form with a file")
    _refuse_many_values(body, _MOST_VALUES + _MOST_FIELDS * most)
    try:
        fields = json.loads(body.decode("utf-8-sig"))  # of bytes it takes UTF-16, in which values are not counted
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not valid JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError(400, f"the body must be a JSON object with the fields {', '.join(model.model_fields)}")
    return _validated(model, fields, most)


def from_form(model: type[R], fields: Mapping[str, list[str]], most: int = Limits.max_items) -> R:
    """Make a request out of the fields of a form, each with all its values."""
    if FILE in fields:
        raise RequestError(400, f"{FILE} holds no file: send one, such as curl -F {FILE}=@dog.wav", param=FILE)
    several = {name for name, field in model.model_fields.items() if "list[" in str(field.annotation)}
    values = {name: values if name in several else values[-1] for name, values in fields.items()}
    return _validated(model, values, most)


def check_upload(model: type[Body], name: str) -> None:
    """Raise a RequestError unless the file of a form has the name of a field that takes sounds."""
    _refuse_unknown([FILE, *model.model_fields], [name])
    if name != FILE and "Item" not in str(model.model_fields[name].annotation):
        raise RequestError(400, f"{name} holds a file, and takes text: send sounds as {FILE}", param=name)


def as_list(value: str | list[str]) -> list[str]:
    """Return one text or several as a list."""
    return value if isinstance(value, list) else [value]


def content_of(item: str | Item, name: str) -> bytes | None:
    """Return the file that an item holds, or None of a text.

    Args:
        name: of the field, in errors.
    """
    if isinstance(item, str):
        return from_data_url(item, name) if is_data_url(item) else None
    field = "text" if item.type == "input_text" else item.type
    if getattr(item, field) is None:
        raise RequestError(400, f"{name} is of type {item.type!r} and has no {field!r}", param=name)
    if other := next((key for key in _CONTENTS if key != field and getattr(item, key) is not None), None):
        message = f"{name} is of type {item.type!r} and has {other!r} as well: send two items"
        raise RequestError(400, message, param=f"{name}.{other}")
    if item.input_audio and field == "input_audio":
        return from_base64(item.input_audio.data, f"{name}.input_audio.data")
    return from_data_url(item.audio_url.url, f"{name}.audio_url.url") if field == "audio_url" else None


def sounds_of(value: Inputs, name: str) -> list[tuple[str, bytes]]:
    """Return the files of a field that takes sounds alone, each with the name that errors give it."""
    found = []
    for field, item in named(value, name):
        content = content_of(item, field)
        if content is None:
            content = from_data_url(text_of(item), field)  # the error of what is no sound
        found.append((field, content))
    return found


def named(value: Inputs, name: str) -> list[tuple[str, str | Item]]:
    """Return one or several items, each with the name that errors give it, such as `input[0]`."""
    items = value if isinstance(value, list) else [value]
    return [(f"{name}[{index}]" if isinstance(value, list) else name, item) for index, item in enumerate(items)]


def text_of(item: str | Item) -> str:
    """Return the text of an item that is one."""
    return item if isinstance(item, str) else item.text or ""


def _validated(model: type[R], fields: dict[str, Any], most: int) -> R:
    _refuse_unknown(model.model_fields, fields)
    for name, value in fields.items():
        _refuse_many(value, name, most)
    try:
        return model.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        problem = _clearest(error)
        where = ".".join(map(str, _fields_of(problem)))[:_MOST_NAMED]
        raise RequestError(400, f"{where or 'the request'}: {problem['msg']}", param=where or None) from error


def _refuse_unknown(known: Collection[str], fields: Iterable[str]) -> None:
    unknown = next((name for name in fields if name not in known), None)
    if unknown is not None:
        name = unknown[:_MOST_NAMED]
        near = difflib.get_close_matches(name.lower(), known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}"
        raise RequestError(400, f"there is no field {name!r}: {advice}", param=name)


def _refuse_many_values(body: bytes, most: int) -> None:
    """Refuse JSON of more values than a request has, before 3 bytes of the body become 60 of memory."""
    if sum(map(body.count, _BEFORE_VALUES)) <= most:
        return
    characters = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    inside = np.bitwise_xor.accumulate((characters == ord('"')).view(np.uint8)).view(bool)  # of a string
    if np.isin(characters[~inside], list(map(ord, _BEFORE_VALUES))).sum() > most:
        raise RequestError(400, f"the body holds more than {most} values, as no request does: send several")


def _refuse_many(value: Any, name: str, most: int, depth: int = 3) -> None:
    """Refuse lists and objects of more parts than a request can have.

    Pydantic would describe all that is wrong with each part, in minutes and gigabytes for a body of numbers, and no
    other thread runs meanwhile.

    Args:
        depth: of lists and objects in one another, as pydantic looks into them.
    """
    if not depth or not isinstance(value, list | dict):
        return
    is_list = isinstance(value, list)
    most_here, what = (most, "inputs") if is_list else (_MOST_FIELDS, "fields")
    if len(value) > most_here:
        message = f"{name} holds {len(value)} {what}, the most are {most_here} in a request: send several"
        raise RequestError(400, message, param=name)
    for key, part in enumerate(value) if is_list else value.items():
        _refuse_many(part, f"{name}[{key}]" if is_list else f"{name}.{key}"[:_MOST_NAMED], most, depth - 1)


def _clearest(error: ValidationError) -> Any:
    """Return the problem that lies deepest: of the kinds that a value may have, the one it has most of."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return max(problems, key=lambda problem: len(_fields_of(problem)))


def _fields_of(problem: Any) -> list[int | str]:
    """Return where a problem is: its location without the names of types in a union."""
    *parts, last = problem["loc"]
    is_named = problem["type"] == "extra_forbidden"  # then the last part is what a client wrote
    return [*filter(_is_field, parts), *([last] if is_named or _is_field(last) else [])]


def _is_field(part: int | str) -> bool:
    """Whether a part of an error's location is a field or an index, not the name of a type in a union."""
    return isinstance(part, int) or (part[:1].islower() and "[" not in part and "str" not in part)
