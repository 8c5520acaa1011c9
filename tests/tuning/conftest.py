from collections.abc import Iterator

import pytest

from tests import mlflow_stores


@pytest.fixture(scope="session", autouse=True)
def _stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from mlflow_stores.copied(tmp_path_factory.mktemp("store") / "mlflow.db")
