"""The class examples of the founding document, each body verbatim.

Around them stand the imports, ``DBOS(config=…)`` (the fixture) and ``DBOS.launch()``; here and there an assertion says
what the document says in prose. The decorators name the class ``DBOS`` itself, as users write it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from dbos import DBOS, DBOSConfiguredInstance, SetWorkflowID

pytestmark = pytest.mark.usefixtures("dbos")


def test_payment_workflows() -> None:
    @DBOS.dbos_class()
    class PaymentWorkflows:
        @staticmethod
        @DBOS.workflow()
        def process_payment(scheduled_at: datetime, ctx: Any) -> str:
            # Payment processing logic
            return "completed"

    DBOS.launch()

    now = datetime(2026, 2, 18, 12, 30)
    with SetWorkflowID("payment"):
        assert PaymentWorkflows.process_payment(now, {"env": "production"}) == "completed"
    status = DBOS.get_workflow_status("payment")
    assert status is not None
    assert status.status == "SUCCESS"
    assert status.class_name is None
    expected: Any = {"args": (now, {"env": "production"}), "kwargs": {}}
    assert status.input == expected


def test_url_fetcher() -> None:
    @DBOS.dbos_class()
    class URLFetcher(DBOSConfiguredInstance):
        def __init__(self, url: str):
            self.url = url
            super().__init__(config_name=url)

        @DBOS.workflow()
        def fetch_workflow(self) -> str:
            return self.fetch_url()

        @DBOS.step()
        def fetch_url(self) -> str:
            # Fetching logic
            return f"Content from {self.url}"

    fetcher = URLFetcher("https://example.com")
    DBOS.launch()

    with SetWorkflowID("fetch"):
        assert fetcher.fetch_workflow() == "Content from https://example.com"
    status = DBOS.get_workflow_status("fetch")
    assert status is not None
    assert status.class_name == URLFetcher.__qualname__
    assert status.config_name == "https://example.com"
    assert [step["output"] for step in DBOS.list_workflow_steps("fetch")] == ["Content from https://example.com"]


def test_data_workflows(capsys: pytest.CaptureFixture[str]) -> None:
    @DBOS.dbos_class()
    class DataWorkflows:
        workflow_count = 0
        transaction_count = 0

        @staticmethod
        @DBOS.workflow()
        def process_data(input_data: str) -> str:
            DataWorkflows.workflow_count += 1

            # Call transaction and step methods
            db_result = DataWorkflows.save_to_db(input_data)
            processed = DataWorkflows.transform_data(input_data)

            return f"{db_result}-{processed}"

        @staticmethod
        @DBOS.transaction()
        def save_to_db(data: str) -> str:
            DataWorkflows.transaction_count += 1
            rows = DBOS.sql_session.execute(sa.text("SELECT 1")).fetchall()
            return f"{data}-{rows[0][0]}"

        @staticmethod
        @DBOS.step()
        def transform_data(data: str) -> str:
            return data.upper()

    DBOS.launch()

    # Execute the workflow
    result = DataWorkflows.process_data("test")
    print(result)  # Output: "test-1-TEST"

    assert capsys.readouterr().out == "test-1-TEST\n"
    assert (DataWorkflows.workflow_count, DataWorkflows.transaction_count) == (1, 1)


def test_api_client() -> None:
    @DBOS.dbos_class()
    class APIClient(DBOSConfiguredInstance):
        def __init__(self, api_key: str, base_url: str):
            self.api_key = api_key
            self.base_url = base_url
            super().__init__(config_name=f"api-{base_url}")

        @DBOS.workflow()
        def fetch_data(self, endpoint: str) -> dict:  # type: ignore[type-arg]  # verbatim
            url = f"{self.base_url}/{endpoint}"
            return self.make_request(url)

        @DBOS.step()
        def make_request(self, url: str) -> dict:  # type: ignore[type-arg]  # verbatim
            # Simulated API request with authentication
            return {"url": url, "auth": self.api_key}

    # Create configured instances before DBOS.launch()
    prod_api = APIClient("prod-key", "https://api.prod.com")
    dev_api = APIClient("dev-key", "https://api.dev.com")

    DBOS.launch()

    # Use the workflow
    result = prod_api.fetch_data("users")

    assert result == {"url": "https://api.prod.com/users", "auth": "prod-key"}
    assert dev_api.fetch_data("users") == {"url": "https://api.dev.com/users", "auth": "dev-key"}
    assert {status.config_name for status in DBOS.list_workflows()} == {
        "api-https://api.prod.com",
        "api-https://api.dev.com",
    }


def test_a_static_method_is_called_without_its_class() -> None:
    """The document's signature of a scheduled workflow, as a static method that ``execute_workflow_by_id`` starts."""

    @DBOS.dbos_class()
    class MyScheduledClass:
        @staticmethod
        @DBOS.workflow()
        def scheduled_wf(scheduled_at: datetime, ctx: Any) -> None:
            print(f"Executing at {scheduled_at} with context: {ctx}")

    DBOS.launch()

    handle = DBOS.start_workflow(MyScheduledClass.scheduled_wf, datetime(2026, 1, 1), {"environment": "production"})

    assert handle.get_result() is None
    assert handle.get_status().name == MyScheduledClass.scheduled_wf.__qualname__
