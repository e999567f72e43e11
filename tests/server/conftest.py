import pytest

from tests.server.fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()
