"""Something bounded, such as answers under way or bytes of bodies, shared by tenants so that none of them can take it all."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from triserve.rpc.errors import Overloaded

# Of the whole, this part is left to others by a tenant that holds much.
_RESERVED_PART = 8


class Shares:
    """Counts what each tenant holds.

    A tenant may take whatever is free but for a reserve. In the reserve it may take only as long as it then holds no more than what is
    left free, so that each newcomer finds half of what those before it left; and up to `least` of what is free it may always hold.

    Args:
        limit: most of it, all tenants together.
        noun: what it is, for errors.
        least: what every tenant may hold as long as that much is free.
        shared: whether there is more than one tenant; otherwise there is nobody to leave a reserve to.
    """

    def __init__(self, limit: int, *, noun: str, least: int = 1, shared: bool) -> None:
        self.limit = limit
        self.used = 0
        self._noun = noun
        self._least = least
        self._held: Counter[str] = Counter()
        self.set_shared(shared)

    def set_shared(self, shared: bool) -> None:
        """Whether there is more than one tenant, from now on. What is held is held on."""
        self._reserve = max(self._least, self.limit // _RESERVED_PART) if shared else 0

    def hold(self, tenant: str) -> Holding:
        """A holding of nothing yet; use it as a context manager."""
        return Holding(self, tenant)

    def take(self, tenant: str, count: int) -> None:
        """Takes some for a tenant.

        Raises:
            Overloaded: there is not so much, or others would find nothing left.
        """
        free = self.limit - self.used - count
        own = self._held[tenant] + count
        if free < 0:
            raise Overloaded(f"{self.used} {self._noun} are under way, the limit is {self.limit}; try again")
        if not (free >= self._reserve or own <= max(free, self._least)):
            raise Overloaded(
                f"{own - count} {self._noun} are under way for this tenant and {self.used} for all, the limit for all is {self.limit}"
                " and a part of it is left to other tenants; try again"
            )
        self.used += count
        self._held[tenant] = own

    def give_back(self, tenant: str, count: int) -> None:
        """Gives back what was taken."""
        self.used -= count
        self._held[tenant] -= count
        assert self.used >= 0 and self._held[tenant] >= 0, "what was taken is given back once"
        if not self._held[tenant]:
            del self._held[tenant]


class Holding:
    """What one request holds of something shared. Made by `Shares.hold`."""

    def __init__(self, shares: Shares, tenant: str) -> None:
        self._shares = shares
        self._tenant = tenant
        self._count = 0

    def add(self, count: int) -> None:
        """Takes more.

        Raises:
            Overloaded: as `Shares.take`; what was held before is held on.
        """
        self._shares.take(self._tenant, count)
        self._count += count

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._shares.give_back(self._tenant, self._count)
        self._count = 0
