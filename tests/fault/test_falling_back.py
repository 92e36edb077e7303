"""The database is lost while the process works: every call goes on with the files, in bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.fix_faults import (
    CALLS,
    Told,
    bounded,
    check_files,
    check_left,
    fill,
    impatient,
)
from tests.fault.proxy import Proxy
from tests.fix_persistence import MakePersistence

Fault = Callable[[Proxy], None]
FAULTS: dict[str, Fault] = {"refused": Proxy.refuse, "stalled": Proxy.stall}
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.mark.parametrize("fault", FAULTS)
@every_call
def test_every_call_goes_on_with_the_files(
    opened: MakePersistence, base: Path, proxy: Proxy, told: Told, fault: str, name: str
) -> None:
    persistence = opened(base, url=proxy.url, settings=impatient())
    fill(persistence)
    FAULTS[fault](proxy)
    with bounded():
        assert CALLS[name].make(persistence) == CALLS[name].answer
    told.fallen_back(persistence)
    check_left(persistence, CALLS[name])
    check_files(persistence, CALLS[name])
