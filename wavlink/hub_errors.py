"""Errors of the Hub's client as one line that holds no secret. It imports nothing heavy."""

import sys
from urllib.parse import urlsplit


def reason(error: Exception) -> str:
    """Describe an error in one line, without the token and without the query of an address, which may be signed."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        url = urlsplit(str(error.response.url))
        message = error.server_message or error.response.reason_phrase
        text = f"HTTP {error.response.status_code} from {url.scheme}://{url.netloc}{url.path}: {message}"
    elif isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        text = f"{error} {reason(error.__cause__)}"  # the client names the file, its cause what was wrong
    else:
        text = f"{type(error).__name__}: {error}"
    return without_token(" ".join(text.split()))


def without_token(text: str) -> str:
    """Mask the Hub's token, which an error of its client may hold."""
    hub = sys.modules.get("huggingface_hub")
    token = hub.get_token() if hub else None
    return text.replace(token, "***") if token else text
