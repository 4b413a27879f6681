"""The answers of the server's routes, as the OpenAPI document describes them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_SCORE = "The cosine of the sound and the text."
_PROBABILITY = "That they match; null where the model has no calibration."
_CALIBRATION = 'What probabilities are from: "model", "index", or null without any.'


class Part(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")


class Answer(Part):
    """What every answer has."""

    object: Literal["list"]
    model: str = Field(description="The model's id.")


class Embedding(Part):
    """The vector of an input, of length 1."""

    object: Literal["embedding"]
    index: int = Field(description="Row of the input.")
    embedding: list[float] | str = Field(description="Numbers, or little-endian float32 in base64.")


class Usage(Part):
    """What was embedded."""

    prompt_tokens: int
    total_tokens: int
    audio_seconds: float


class EmbeddingAnswer(Answer):
    """Vectors in the order of the inputs, uploaded files last."""

    data: list[Embedding]
    usage: Usage


class Label(Part):
    """A label of a sound."""

    label: str
    score: float = Field(description="Its share; the shares of all labels add up to 1.")
    cosine: float = Field(description=_SCORE)
    probability: float | None = Field(description=_PROBABILITY)


class NamedSound(Part):
    """The labels of a sound, best first."""

    index: int = Field(description="Row of the sound.")
    labels: list[Label]


class Calibrated(Part):
    """Where probabilities are from."""

    calibration: str | None = Field(description=_CALIBRATION)
    prior: float | None = Field(None, description="Share of matching pairs that the probabilities assume.")


class ClassifyAnswer(Answer, Calibrated):
    """Labels of each sound."""

    data: list[NamedSound]
    prompts: list[str] = Field(description="Texts that the labels were put into.")


class SearchHit(Part):
    """A window of a sound of the index."""

    path: str = Field(description="Relative to the index's root.")
    score: float = Field(description="The cosine with the query.")
    start: float = Field(description="In seconds.")
    end: float = Field(description="In seconds.")
    probability: float | None = Field(None, description="That it matches a query of one text.")
    calibration: str | None = Field(None, description=_CALIBRATION)
    missing: bool = Field(False, description="The file has gone.")
    changed: bool = Field(False, description="The file is not the one that was embedded.")
    metadata: dict[str, str | bool | int | float] = Field({}, description="Columns of the index about the sound.")


class SearchAnswer(Answer):
    """Sounds of the index, best first."""

    data: list[SearchHit]
    note: str | None = Field(None, description="Where nothing matches.")


class LocatedSpan(Part):
    """A part of the recording."""

    start: float = Field(description="In seconds.")
    end: float = Field(description="In seconds.")
    score: float = Field(description=_SCORE)
    probability: float | None = Field(None, description="That it matches, where that is known.")


class LocatedQuery(Calibrated):
    """Where a text matches."""

    query: str
    spans: list[LocatedSpan] = Field(description="Best first.")
    closest: LocatedSpan = Field(description="The window with the highest cosine, a match or not.")
    note: str | None = Field(None, description="Where nothing matches.")


class LocateAnswer(Answer):
    """Parts of the recording for each text."""

    data: list[LocatedQuery]
    duration: float = Field(description="Of the recording, in seconds.")
    window: float = Field(description="In seconds.")
    hop: float = Field(description="In seconds.")
    min_score: float = Field(description="Cosine from which windows match.")
