"""Compare sounds with texts by a server of `wavlink serve`, with OpenAI's own client (pip install openai).

```
wavlink serve runs/quickstart/best --port 8000
python examples/openai_client.py my_sounds/test/rain_0.flac --text "a church bell rings" "rain falls"
```
"""

import argparse
import base64
import os
from pathlib import Path

import numpy as np
from openai import OpenAI


def embed(client: OpenAI, items: list, dimensions: int | None) -> np.ndarray:
    """Return the vectors `[items, dimensions]` of texts and sounds."""
    more = {} if dimensions is None else {"dimensions": dimensions}
    (model,) = client.models.list().data
    answer = client.embeddings.create(model=model.id, input=items, **more)
    return np.array([row.embedding for row in answer.data])


def sound(path: Path) -> str:
    """Return a sound file as a data URL."""
    return f"data:audio/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def main() -> None:
    """Print the cosine of each text with each sound, best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", nargs="+", type=Path, help="sound files")
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--url", default=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"))
    parser.add_argument("--dimensions", type=int, help="one of the model's nested dims (default: all)")
    options = parser.parse_args()
    key = os.environ.get("WAVLINK_API_KEY", "none")
    client = OpenAI(base_url=options.url, api_key=key)
    vectors = embed(client, [*options.text, *map(sound, options.sounds)], options.dimensions)
    texts, sounds = np.split(vectors, [len(options.text)])
    for path, cosines in zip(options.sounds, sounds @ texts.T, strict=True):
        print(path)
        for number in np.argsort(-cosines):
            print(f"  {cosines[number]:6.3f}  {options.text[number]}")


if __name__ == "__main__":
    main()
