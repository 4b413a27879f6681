"""A bar's clock."""

import io

from tqdm import tqdm

from modeling_wavlink.progress import Bar

DAY = 86400.0


def test_a_bar_goes_on_where_the_clock_is_put_back(monkeypatch):
    clock = [1e9]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])

    def shown(kind: type) -> bool:
        told = io.StringIO()
        bar = kind(total=3, file=told, mininterval=0, miniters=1)
        bar.update()
        clock[0] -= DAY
        bar.update()
        return "2/3" in told.getvalue()

    assert shown(Bar) and not shown(tqdm)
