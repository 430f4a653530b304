"""Who of unequal workers takes what waits: the decision, from rates that are measured while they run.

A pool may have a GPU that takes 5 ms for a batch beside a CPU that takes 100. Were whoever is idle to take the next picture,
one in a few would take twenty times as long as it had to, even while the GPU is nearly idle. So a worker takes only what it
would finish before the other groups came to it, and leaves what is before that to them: at low load the fast ones do
everything; the slow ones join once so much waits that even its end is reached sooner so (the "slow server problem"; Larsen and
Agrawala, "Control of a heterogeneous two-server exponential queueing system", 1983, show a threshold to be best).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

_UNMEASURED = 1  # of a group's first batches: what is made once makes them slow
_EXPLORED = 3  # batches that a group takes before its rate is believed
_WEIGHT = 1 / 16  # of the newest batch in the averages
_OUTLIER = 4  # times the average: a batch that took longer was held up by something else
_HALVED = 256  # batches of others, after which a rate that was not measured meanwhile is believed by half
_MOST_HALVINGS = 10
_LEAST = 1e-6  # seconds: nothing takes no time


class Share(NamedTuple):
    """Up to `rows` of what waits, past the first `skip` rows."""

    skip: int
    rows: int


class Pace:
    """The seconds of a group's batches by their rows: a line through what was measured, the newest counting most."""

    def __init__(self) -> None:
        self.runs = 0
        self._rows = self._seconds = 0.0  # averages
        self._spread = self._slope = 0.0  # variance of the rows, and their covariance with the seconds

    def measured(self, rows: int, seconds: float, doubt: float = 0.0) -> None:
        """`doubt`: the share of what is known that is out of date."""
        self.runs += 1
        if self.runs <= _UNMEASURED:
            return
        if self.runs > _EXPLORED:
            seconds = min(seconds, _OUTLIER * self.seconds(rows))
        weight = max(1 / (self.runs - _UNMEASURED), _WEIGHT, doubt)
        more_rows, more_seconds = rows - self._rows, seconds - self._seconds
        self._rows += weight * more_rows
        self._seconds += weight * more_seconds
        self._spread = (1 - weight) * (self._spread + weight * more_rows**2)
        self._slope = (1 - weight) * (self._slope + weight * more_rows * more_seconds)

    @property
    def known(self) -> bool:
        return self.runs >= _EXPLORED

    def seconds(self, rows: int) -> float:
        """What a batch of so many rows takes: at most in proportion to them, and no less than a smaller one."""
        proportion = self._seconds / self._rows
        each = min(max(self._slope / self._spread, 0.0), proportion) if self._spread > 1e-6 else proportion
        return max(_LEAST, self._seconds + each * (rows - self._rows))


class Seat:
    """One worker, and the batches it has."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.under_way: deque[tuple[float, int]] = deque()  # when it was taken, rows
        self.since = 0.0  # when it last finished a batch


class Team:
    """The workers of one group, which are alike."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.pace = Pace()
        self.seats: list[Seat] = []
        self.measured_at = 0  # of all batches


class Feeding:
    """`max_batches`: of each group. Times are seconds on one clock. Not thread-safe."""

    def __init__(self, max_batches: Sequence[int]) -> None:
        self.teams = tuple(map(Team, max_batches))
        self._finished = 0  # batches of all

    def sit(self, seat: Seat) -> None:
        """Its worker is ready for its first batch."""
        seat.team.seats.append(seat)

    def leave(self, seat: Seat) -> None:
        """Its worker died, hangs or ends: nothing is left to it any more."""
        if seat in seat.team.seats:
            seat.team.seats.remove(seat)

    def took(self, seat: Seat, rows: int, now: float) -> None:
        seat.under_way.append((now, rows))

    def returned(self, seat: Seat, under_way: int, now: float) -> None:
        """All its batches but the last `under_way` are done."""
        while len(seat.under_way) > under_way:
            taken, rows = seat.under_way.popleft()
            team = seat.team
            team.pace.measured(rows, now - max(taken, seat.since), 1 - self._belief(team))
            self._finished += 1
            team.measured_at, seat.since = self._finished, now

    def share(self, team: Team, waiting: int, stood: float, now: float) -> Share | None:
        """What an idle worker of `team` takes of `waiting` rows, of which the first has `stood` for so many seconds.

        None: all would be done sooner elsewhere, so far as that is known, and it has not stood for longer than the worker
        would take. Then what is known is wrong, or the others are not there: a job never waits for them in vain.
        """
        rows = min(waiting, team.max_batch)
        if not team.pace.known:
            return Share(0, rows)
        while True:
            own = self.seconds(team, rows)
            skip = self._done_elsewhere(team, waiting, own, now)
            if skip + rows <= waiting:
                return Share(skip, rows)
            if rows == 1:
                return Share(0, 1) if stood >= own else None
            rows //= 2

    def seconds(self, team: Team, rows: int) -> float:
        """What a batch takes; less than was measured where that is long ago, so that it is tried again."""
        return team.pace.seconds(rows) * self._belief(team)

    def _belief(self, team: Team) -> float:
        """How much the rate of a group says still: 1, and half after each 256 batches of the others."""
        age = self._finished - team.measured_at
        return float(0.5 ** min(age / _HALVED, _MOST_HALVINGS))

    def _done_elsewhere(self, team: Team, waiting: int, within: float, now: float) -> int:
        """How many of `waiting` rows the other groups finish in less than `within` seconds."""
        done = 0
        for other in self.teams:
            if other is team or not other.pace.known:
                continue
            batch = min(waiting, other.max_batch)
            seconds = self.seconds(other, batch)
            for seat in other.seats:
                batches = math.ceil((within - self._busy(seat, now)) / seconds) - 1
                done += batch * max(0, batches)
        return done

    def _busy(self, seat: Seat, now: float) -> float:
        """For how long a worker has still to do. One that is late is expected to be late for as long again: so one that
        hangs soon counts for nothing."""
        if not seat.under_way:
            return 0.0
        since = max(seat.under_way[0][0], seat.since)
        return abs(sum(self.seconds(seat.team, rows) for _, rows in seat.under_way) - (now - since))
