"""The rows of the tables in docs/registries.md: what each registry is checked for, and the faults it has to endure."""

import re
from pathlib import Path

# By registry: the checks against its real server. A test names one as ``@pytest.mark.check("eureka", "POST 204")``.
CHECKS = {
    "eureka": (
        "heartbeat before register 404",
        "POST 204",
        "the 400 list",
        "newer dirty → 404, older → 200",
        "older POST keeps the old document",
        "the whole override table",
        "lease x2 expiry",
        "instance visible by id at once, in the full list within the cache interval",
        "server restart → 404 → one POST",
        "two peers: failover, override replicated, DELETE replicated",
        "nothing re-registers within two intervals after leave",
        "wrong prefix and 401 reported as configuration errors",
    ),
    "consul": (
        "pass before register",
        "strict decoding",
        "critical after TTL",
        "reaped → register again",
        "wiped agent → register again",
        "restart with data keeps passing",
        "maintenance survives heartbeats, lost by replace-existing-checks",
        "ACL texts",
    ),
    "etcd": (
        "dead lease answers 200 without TTL",
        "put on dead lease 404",
        "minimum TTL",
        "restart renews the lease",
        "token expiry 401 → one re-authentication",
        "take-over of a predecessor's key",
    ),
    "zookeeper": (
        "payload read by real Curator",
        "NodeExists with own and foreign owner",
        "session re-attach",
        "expiry → new session → node again",
        "missing container parent",
    ),
    "nacos": (
        "20404 and 21003 inside HTTP 200",
        "grouped names in beats",
        "15 s / 30 s",
        "token refresh",
        "persistent instance refuses beats",
    ),
}

INGRESS = "an ingress answers 404, 403 and HTML for 20 s"
# For every registry, in the order of the table. tests/registries/test_faults.py has a function for each.
FAULTS = (
    "killed and restarted empty",
    "restarted with data",
    "paused past the lease",
    "slow by 5 s",
    "network cut and healed",
    "leader or peer change",
    "token revoked",
    "clock jumped back an hour",
    INGRESS,
    "200 instances at once after an outage",
)

ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "checks": CHECKS,
    "faults": dict.fromkeys(CHECKS, FAULTS),
}


def row(table: str, registry: str, words: str) -> str:
    """Return the row of a table for the words of a test. Raises ``ValueError`` if the table has no such row.

    Arrows may be written as ``->``, times as ``x``, and letters in either case.
    """
    rows = {_plain(known): known for known in ROWS[table].get(registry, ())}
    if not rows:
        raise ValueError(f'"{registry}" is no registry of tests/registries/checks.py')
    if _plain(words) not in rows:
        known = "\n  ".join(rows.values())
        raise ValueError(f'"{words}" is not in the {table} of {registry}, which are\n  {known}')
    return rows[_plain(words)]


def is_built(registry: str) -> bool:
    """True if the tests have servers of this registry: tests/NAME/world.py."""
    return (Path(__file__).parents[1] / registry / "world.py").is_file()


def _plain(words: str) -> str:
    return re.sub(
        r"\s+", " ", words.replace("→", "->").replace("\N{MULTIPLICATION SIGN}", "x").casefold()
    ).strip(" .")
