"""Search a folder of sounds: by text, by a similar sound, and without what is not wanted.

    python examples/search_folder.py wavlink-tiny examples/sounds --text "a cow moos"
    python examples/search_folder.py runs/sounds/best FOLDER --like dog.wav --without "a person talks"

The first search embeds the folder into --index (48 numbers of two bytes for every window); later ones embed new files.
"""

import argparse
import sys

from wavlink import Index


def main(argv: list[str] | None = None) -> list:
    """Index the folder, print the results and return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a WavLink: bundled name, folder or Hub id")
    parser.add_argument("folder", help="with sounds, at any depth")
    parser.add_argument("--text", nargs="+", default=[], help="what to find, in words")
    parser.add_argument("--like", nargs="+", default=[], metavar="FILE", help="find sounds similar to FILE")
    parser.add_argument("--without", nargs="+", default=[], metavar="TEXT", help="what is not wanted")
    parser.add_argument("--index", default="sounds.index", help="folder of the index")
    parser.add_argument("--top_k", type=int, default=5)
    options = parser.parse_args(argv)

    index = Index.build(options.folder, options.index, options.model)
    print(f"{len(index)} windows, {len(index.skipped)} files skipped")
    hits = index.query(options.text, sound=options.like, without=options.without, top_k=options.top_k)
    for hit in hits:
        print(f"{hit.score:6.3f}  {hit.path}  {hit.start:.1f} to {hit.end:.1f} s")
    return hits


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold what the terminal cannot show
    main()
