"""How a partition goes on whose last transaction failed, or was slow. Pure.

A batch that fails again while the database takes other records is halved until the
record that it fails for is alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from heartbeat_app.domain.batches import Batch

# A lone record is at fault when it failed so often in a row, each time between two
# probes that passed. Once would do, did nothing else ever fail just then; and does
# where another record was at fault by the same error.
PROOFS = 3

# As many records as there are.
ALL = 2**31


@dataclass(slots=True)
class Trouble:
    """Where the next transaction begins, and how much goes into it.

    Attributes:
        at: The offset that it begins at; what lies before is stored.
        records: How many records it has at most.
        until: Where the last one ended that failed again: for one of the records
            before, it may be.
        lacks_resources: So said the last failure: a probe has to be as large as what
            it stands for, since a full disk may have room for a small one.
        takes_others: A probe has passed since.
        failures: How often the record at `at` failed alone, each time after a probe
            that passed.
        error: Of what kind the last of them was.
        why: What was said then, for its dead letter.
        known: Of what kind it was for the last record at fault.
        keeps_nothing: Its dead letter failed, too, and is to be one without its bytes.
    """

    at: int
    records: int = ALL
    until: int = 0
    lacks_resources: bool = False
    takes_others: bool = False
    failures: int = 0
    error: str = ""
    why: str = ""
    known: str = ""
    keeps_nothing: bool = False

    @property
    def is_searched(self) -> bool:
        """Whether what comes next has failed more than once."""
        return self.at < self.until

    @property
    def is_found(self) -> bool:
        """Whether what comes next is a record at fault, if another probe passes."""
        return self.failures >= (1 if self.error == self.known else PROOFS)

    def rest_of(self, batch: Batch) -> Batch:
        """What of a batch is still to be stored, as far as is known."""
        if batch.asked > self.at:
            self.move(batch.asked)  # another worker stored what came before
        if batch.asked < self.at < batch.position:
            return batch.since(self.at)
        return batch

    def part_of(self, rest: Batch) -> Batch:
        """What of the rest goes into the next transaction, if nothing is searched."""
        if rest.asked < self.at:  # all of it is stored
            return rest
        return rest.first(self.records)

    def suspected_of(self, rest: Batch) -> Batch:
        """What of the rest holds the record that may be at fault."""
        suspected = rest.before(self.until)
        if not suspected.records:  # fallen out of the log meanwhile
            suspected = rest
        return suspected.first(self.records)

    def move(self, at: int) -> None:
        """What lies before that offset is stored."""
        if at > self.at:
            self.at = at
            self.failures = 0
            self.error = ""
            self.keeps_nothing = False
