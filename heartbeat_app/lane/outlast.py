"""Waits out brokers that are away while a worker starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import InvalidReplicationFactorError, KafkaError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

log = logging.getLogger(__name__)

# So long a broker may take to answer a client that starts. One that hangs would
# otherwise be waited for as long as a request may take, and others would answer.
START_SECONDS = 5.0


async def outlast_start(
    what: str, client: AIOKafkaClient, start: Callable[[], Awaitable[None]]
) -> None:
    """Start what has this client, as soon as one of the brokers answers."""
    later = client._request_timeout_ms
    client._request_timeout_ms = int(START_SECONDS * 1000)
    await outlast(f"start the {what}", start)
    client._request_timeout_ms = later


async def outlast(what: str, call: Callable[[], Awaitable[None]]) -> None:
    """Call again and again while brokers are away; each failure is a line of the log.

    Brokers that died some seconds ago are still named by the others, and are chosen.

    Arguments:
        what: What cannot be done meanwhile, as in "Cannot … yet".

    Raises:
        KafkaError: Asking again does not help.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "Cannot %s yet (is one of KAFKA_BOOTSTRAP_SERVERS away?), trying again: "
            "%s: %s",
            what,
            type(error).__name__,
            error,
        )

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(_passes),
        wait=wait_random_exponential(multiplier=0.2, max=2.0),
        before_sleep=tell,
        sleep=asyncio.sleep,
        reraise=True,
    ):
        with attempt:
            await call()


def _passes(error: BaseException) -> bool:
    if isinstance(error, KafkaError):
        # Too few brokers live for so many copies.
        return error.retriable or isinstance(error, InvalidReplicationFactorError)
    # Faust's own words where the controller has just become another.
    return isinstance(error, Exception) and "ontroller" in str(error)
