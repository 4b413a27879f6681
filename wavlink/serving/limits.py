"""What a server takes from its clients: sizes, lengths and times."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_bytes: of a request's body.
        max_seconds: of the sounds of a request, together.
        max_queue: requests that wait or are computed; others are answered with 429.
        max_wait: seconds from a request's arrival to its answer.
        max_connections: open connections; past them the one that has waited longest for its request is closed.
        max_items: texts and sounds of a request.
        max_characters: of a text, before its tokens are counted.
        max_results: labels of all sounds, or spans of all queries, in an answer; each takes 500 bytes meanwhile.
        max_windows: of a recording in which something is located.
        max_buffered: bytes of all bodies that are held at once.
        header_seconds: in which the head of a request must arrive, on a new connection and on one kept open.
        body_seconds: in which a body must arrive, besides the time it takes at `body_rate`.
        body_rate: bytes a second, the least at which a body may arrive.
    """

    max_bytes: int = 32 * 2**20
    max_seconds: float = 600
    max_queue: int = 256
    max_wait: float = 60
    max_connections: int = 1000
    max_items: int = 2048
    max_characters: int = 10_000
    max_results: int = 200_000
    max_windows: int = 2000
    max_buffered: int = 512 * 2**20
    header_seconds: float = 10
    body_seconds: float = 10
    body_rate: int = 32 * 2**10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
