"""A record of a measured run, as `benchmarks/records.py` reads it."""

RECORD = {
    "name": "made",
    "title": "Made by hand",
    "command": "python benchmarks/made.py",
    "commit": "abc1234",
    "time": "2026-01-02T03:04:05+0000",
    "seed": 0,
    "machine": {"platform": "Linux", "cpus": 2},
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "values": {"recall": {"columns": ["dims", "R@10"], "rows": [[48, {"value": 46.66, "digits": 1}], ["a|b", None]]}},
}
