"""The batch lane: hands whole Kafka fetches to an agent, resumes from stored offsets.

Stock Faust moves records one at a time, and acknowledges a record whose agent failed.
For the topics that opt in, the lane hands whole fetches to the agent, a `Chunk` for
each partition, resumes from a `Ledger` that is kept in the same transaction as the
data, and takes Kafka's committed offsets for no more than a hint. Other topics of the
same app do what Faust documents; docs/explanation/architecture.md has the differences.
Nothing in here knows what the records are.

    lane = Lane(topics={"orders"}, ledger=my_ledger, topic_ids=my_lookup)
    app = LaneApp("shop", lane=lane, broker=…)
    orders = app.topic("orders", schema=LaneSchema(encode=my_encode))

    @app.agent(orders)
    async def store(stream):
        await consume(stream, lane, my_store)  # is given chunks of several partitions

It hooks into private parts of faust-streaming, so that version is pinned; the tests
in tests/integration/test_lane*.py fail when one of them moves.
"""

from heartbeat_app.lane.agent import Rewind, consume
from heartbeat_app.lane.app import LaneApp
from heartbeat_app.lane.chunk import Chunk
from heartbeat_app.lane.lane import Lane, Ledger
from heartbeat_app.lane.schema import LaneSchema

__all__ = ["Chunk", "Lane", "LaneApp", "LaneSchema", "Ledger", "Rewind", "consume"]
