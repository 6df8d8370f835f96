import os
import time
from collections import Counter

import xla


# Before jax is imported: eight devices on one CPU, for the sharding tests.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags()}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's threads, one a device if not told: a device that waits in two collectives at
# once takes two of them, and when all wait, none is left to meet them (XLA ends the
# process after 40 s).
os.environ.setdefault("NPROC", "32")

import jax
import pytest


@pytest.fixture
def strict():
    """Strict promotion of dtypes and ranks, around our own functions only."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def untyped(monkeypatch):
    """Without the test run's type checker, which would answer before our own checks."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


# When .ci/run has no time left, in seconds since 1970: slow tests that would begin
# later are skipped.
_END = float(os.environ.get("JAXPRUNE_TESTS_END", "inf"))
_NO_TIME = "no time left: JAXPRUNE_TESTS_END has passed"


def pytest_collection_modifyitems(items):
    """Begins with another test each time, so that each has its turn."""
    if items and _END < float("inf"):
        first = int(_END) % len(items)
        items[:] = items[first:] + items[:first]


def pytest_runtest_setup(item):
    if "slow" in item.keywords and time.time() > _END:
        pytest.skip(_NO_TIME)


def _skipped(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []


def _lost_data(config):
    """Data tests that were skipped although their folder is named, and not for time."""
    reports = _skipped(config) if os.environ.get("JAXPRUNE_DATA") else []
    # The report of a module skipped as a whole has no keywords.
    return [
        report.nodeid
        for report in reports
        if "data" in getattr(report, "keywords", ())
        and _NO_TIME not in str(report.longrepr)
    ]


def pytest_sessionfinish(session):
    if _lost_data(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    reasons = Counter(str(report.longrepr[2]) for report in _skipped(config))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(
            f"skipped {count}: {reason.removeprefix('Skipped: ')}"
        )
    for test in _lost_data(config):
        terminalreporter.write_line(
            f"FAILED: {test} was skipped, but JAXPRUNE_DATA is set", red=True
        )
