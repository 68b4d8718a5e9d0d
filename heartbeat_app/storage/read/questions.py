"""What people ask the database, apart from the worker's own work.

The questions have connections and threads of their own: the lane and the watchdog share
asyncio's threads, and neither shall wait for a reader, however many there are, however
long they take, and whether or not the database answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from heartbeat_app.config import Settings
from heartbeat_app.exceptions import TooManyQuestionsError
from heartbeat_app.storage.db.engine import Uses, make_engine

# The server ends a statement after so long, unless said: before the watchdog breaks the
# connection off, since what nobody waits for shall not go on there.
ANSWER_SECONDS = 5.0
# So long a question waits for its turn; then it is told to come again.
WAIT_SECONDS = 5.0
# More than these are told so at once: each that waits costs a connection and memory.
MOST_WAITING = 50

# What takes longer was no connection that was cut before.
CUT_SECONDS = 1.0

T = TypeVar("T")


def read(
    answer: Callable[..., T],
    *arguments: object,
    unless: Callable[[], bool] = lambda: False,
) -> T:
    """What the function returns, which only reads.

    A connection may have been cut while nobody used it, which its next statement
    tells. The others of its pool are not used again after that, so a second try gets
    a new one.

    Arguments:
        unless: Whether there is no second try any more.
    """
    began = time.monotonic()
    try:
        return answer(*arguments)
    except DBAPIError as error:
        was_cut = error.connection_invalidated
        if unless() or not was_cut or time.monotonic() - began > CUT_SECONDS:
            raise
    return answer(*arguments)


class Questions:
    """Answers some at a time, in threads; for one event loop.

    Arguments:
        name: What the connections and threads are called.
        threads: How many questions are answered at once, a connection for each.
        statement_seconds: After so long the server ends a statement.

    Attributes:
        engine: For the functions that are called.
        uses: Its connections, for the watchdog to break off.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        threads: int,
        statement_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self.engine = make_engine(
            settings,
            application_name=f"heartbeat_app {name}",
            pool_size=threads,
            statement_timeout_ms=int(statement_seconds * 1000),
        )
        self.uses = Uses(self.engine)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._turns = asyncio.Semaphore(threads)
        self._places = asyncio.Semaphore(threads + MOST_WAITING)
        self._ended = False

    async def ask(self, answer: Callable[..., T], *arguments: object) -> T:
        """What the function returns, which is called in a thread, when it is its turn.

        Raises:
            TooManyQuestionsError: Too many wait, or it waited for 5 s, or no more
                are answered.
            Exception: What the function raises.
        """
        if self._places.locked():
            raise TooManyQuestionsError
        async with self._places:
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._turns.acquire()
            except TimeoutError:
                raise TooManyQuestionsError from None
            try:
                if self._ended:
                    raise TooManyQuestionsError
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads,
                    partial(read, answer, *arguments, unless=lambda: self._ended),
                )
            finally:
                self._turns.release()

    def end(self) -> None:
        """Answer no more, and break off what is being answered; may be called again.

        The web server waits for whoever is not answered, and Python for its threads.
        """
        self._ended = True
        self._threads.shutdown(wait=False)
        self.uses.break_off()
