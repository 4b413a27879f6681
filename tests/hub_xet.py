"""The Xet storage of the loopback Hub: what hf_xet asks of a content-addressed store to upload and to download.

A file is cut into chunks, chunks lie in xorbs, and a shard says which chunks of which xorbs a file is made of. The
formats are those of xet-core's specification. Hashes of chunks, xorbs and files are taken as the client gives them;
the content that they lead to is compared with the file's SHA-256, and then lies where large files of the Hub lie.
Chunks that other clients have uploaded are not looked up: each file's chunks are uploaded once more.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow

from .hub_repositories import Refused

XET_TOKEN = "xet_loopback"
_CALL = re.compile(r"/xet/v(?P<version>\d)/(?P<call>[a-z-]+)(?:/default)?(?:/(?P<hash>[0-9a-f]{64}))?")
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30  # flags of a shard's file
_RECORD = 48  # bytes
_END = b"\xff" * 32


class XetHandler:
    """Requests of a client for tokens and for the storage; mixed into the Hub's handler."""

    def xet_token(self, kind: str, repo_id: str, revision: str, _) -> None:
        if "write" in self.url.path:
            self.writable(repo_id, "create_pr" in self.query)
        answer = {"casUrl": f"{self.hub.other_origin}/xet", "accessToken": XET_TOKEN, "exp": 1 << 32}
        names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
        self.send(200, answer, dict(zip(names, answer.values(), strict=True)))

    def xet_headers(self, kind: str, repo_id: str, commit: str, sha256: str) -> dict[str, str]:
        """Of a file that came by Xet: where a client finds it there."""
        path = self.hub.root / "xet" / f"{sha256}.hash"
        if not path.exists():
            return {}
        route = f"{self.hub.endpoint}/api/{kind}/{repo_id}/xet-read-token/{commit}"
        return {"X-Xet-Hash": path.read_text(), "X-Xet-Refresh-Route": route, "Link": f'<{route}>; rel="xet-auth"'}

    def xet(self) -> None:
        """The storage: another origin, which must not learn the Hub's token."""
        (self.hub.root / "xet").mkdir(exist_ok=True)
        self.body = b"".join(self.pieces())
        asked = _CALL.fullmatch(self.url.path)
        if asked and asked["call"] == "data":  # its address is all that it needs
            return self.send_file(self.hub.root / "xet" / f"{asked['hash']}.xorb", {})
        if self.headers.get("Authorization") != f"Bearer {XET_TOKEN}":
            raise Refused("", status=401, message="not a token of this storage")
        calls = {"xorbs": self.put_xorb, "shards": self.put_shard, "reconstructions": self.reconstruct}
        if not asked or asked["version"] != "1" or asked["call"] not in calls:
            raise Refused("EntryNotFound")  # chunks of others, and what later clients try first
        calls[asked["call"]](asked["hash"])

    def put_xorb(self, name: str) -> None:
        for _ in _chunks(self.body):  # they can be unpacked
            pass
        path = self.hub.root / "xet" / f"{name}.xorb"
        new = not path.exists()
        path.write_bytes(self.body)
        self.send(200, {"was_inserted": new})

    def put_shard(self, _) -> None:
        folder = self.hub.root / "xet"
        for name, sha256, terms in _files(self.body):
            content = b"".join(_unpacked(folder, *term) for term in terms)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise Refused("", status=400, message="the content is not what its sha256 says")
            (self.hub.root / "lfs" / sha256).write_bytes(content)
            (folder / f"{name}.json").write_text(json.dumps(terms))
            (folder / f"{sha256}.hash").write_text(name)
        self.send(200, {"result": 1})

    def reconstruct(self, name: str) -> None:
        """Say where the chunks of a file lie, or those of a range of it."""
        folder = self.hub.root / "xet"
        if not (folder / f"{name}.json").exists():
            raise Refused("EntryNotFound")
        first, last = self._range()
        terms, fetch, place, offset = [], {}, 0, 0
        for xorb, start, stop in json.loads((folder / f"{name}.json").read_text()):
            chunks = [*_chunks((folder / f"{xorb}.xorb").read_bytes())]
            kept = []
            for number in range(start, stop):
                size = len(chunks[number][2])
                if place <= last and place + size > first:
                    offset = max(0, first - place) if not (terms or kept) else offset
                    kept.append(number)
                place += size
            if kept:
                span = {"start": kept[0], "end": kept[-1] + 1}
                length = sum(len(chunks[number][2]) for number in kept)
                terms.append({"hash": xorb, "unpacked_length": length, "range": span})
                url = f"{self.hub.other_origin}/xet/v1/data/{xorb}"
                place_there = {"start": chunks[kept[0]][0], "end": chunks[kept[-1]][1] - 1}
                fetch.setdefault(xorb, []).append({"range": span, "url": url, "url_range": place_there})
        if not terms and place:
            raise Refused("", status=416, message="the range is not of this file")
        self.send(200, {"offset_into_first_range": offset, "terms": terms, "fetch_info": fetch})

    def _range(self) -> tuple[int, int]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        return (int(asked[1]), int(asked[2] or 1 << 60)) if asked else (0, 1 << 60)


def _chunks(xorb: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Where each chunk lies in a xorb, and its content."""
    start = 0
    while start < len(xorb) and xorb[start : start + 7] != b"XETBLOB":  # which a footer begins with
        packed, size = (int.from_bytes(xorb[start + at : start + at + 3], "little") for at in (1, 5))
        stop = start + 8 + packed
        content = xorb[start + 8 : stop]
        if scheme := xorb[start + 4]:
            content = bytes(pyarrow.Codec("lz4").decompress(content, size))
            content = _ungrouped(content) if scheme == 2 else content
        if len(content) != size or xorb[start] or scheme > 2:
            raise Refused("", status=400, message="a chunk that is none")
        yield start, stop, content
        start = stop


def _ungrouped(content: bytes) -> bytes:
    """Undo the grouping of every fourth byte, which helps LZ4 with numbers of four bytes."""
    values = np.frombuffer(content, np.uint8)
    ordered = np.empty_like(values)
    start = 0
    for number in range(4):
        count = len(ordered[number::4])
        ordered[number::4] = values[start : start + count]
        start += count
    return ordered.tobytes()


def _files(shard: bytes) -> Iterator[tuple[str, str, list[tuple[str, int, int]]]]:
    """The hash of each file of a shard, its SHA-256, and the xorb and range of chunks of each of its parts."""
    at = _RECORD  # after the header
    while (record := shard[at : at + _RECORD])[:32] != _END:
        flags, count = struct.unpack_from("<II", record, 32)
        at += _RECORD
        entries = [shard[at + n * _RECORD :][:_RECORD] for n in range(count)]
        terms = [(_hex(entry[:32]), *struct.unpack_from("<II", entry, 40)) for entry in entries]
        at += _RECORD * count * (2 if flags & _VERIFIED else 1)
        if not flags & _WITH_SHA256:
            raise Refused("", status=400, message="a file without its sha256")
        yield _hex(record[:32]), _hex(shard[at : at + 32]), terms
        at += _RECORD


def _hex(digest: bytes) -> str:
    """A hash as it is written: four numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _unpacked(folder: Path, xorb: str, start: int, stop: int) -> bytes:
    chunks = [content for _, _, content in _chunks((folder / f"{xorb}.xorb").read_bytes())]
    if stop > len(chunks):
        raise Refused("", status=400, message="chunks that are not there")
    return b"".join(chunks[start:stop])
