"""Identical questions at once are answered once: one makes the answer, the others read along; knows no model and no gateway.

A gateway opens `Flights(SharedFlights(...))`, or `Flights(None)` without a Redis, and after a miss does for each request:

    async with flights.join(key) as seat:              # at most a lookup's time; a seat that is left is taken over
        taken = 0
        while True:
            if seat.maker is not None and not making:  # at first, or later when whoever made it is gone
                making = start_making(seat.maker, seat.flight.token_ids)   # put(deltas) ... finish(reason, prompt_tokens) | fail | leave
            batch = await seat.read(taken)             # deltas, each once and in order; then Finished or Failed
            taken += len(batch.deltas)

What makes it runs beside the reading, so that a slow client of the maker's holds nobody up, and puts its last deltas and the end without an
await between. It ends with its seat, and another seat goes on from `token_ids`; or it is detached, and ends when nobody reads any more.
"""

from prompt_cache.flights.flight import Batch, Failed, Finished, Flight, Vacant
from prompt_cache.flights.follow import Flights, Maker, Seat
from prompt_cache.flights.publisher import Lead
from prompt_cache.flights.scripts import FlightLimits
from prompt_cache.flights.shared import FlightStats, Follow, LeaderLost, SharedFlights

__all__ = [
    "Batch",
    "Failed",
    "Finished",
    "Flight",
    "FlightLimits",
    "FlightStats",
    "Flights",
    "Follow",
    "Lead",
    "LeaderLost",
    "Maker",
    "Seat",
    "SharedFlights",
    "Vacant",
]
