"""Rows that take milliseconds, as somebody else's package would hold them: found as `toy_rows:NAME`."""

from collections.abc import Callable

import torch

from vitdense.benchmarking import AbsentError, Conditions, Goal, Job, Outcome, Pair, Peer, Row

MIB = 2**20
Build = Callable[[Conditions], Job]


class Toil(Job):
    """So many products of matrices, in 4 MiB and so many more, giving a number."""

    def __init__(self, *, work: int, mebibytes: int = 0, gives: float = 1.0) -> None:
        self.work, self.bytes, self.gives = work, (4 + mebibytes) * MIB, gives
        self.matrix = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) / 16

    def step(self) -> None:
        held = torch.ones(self.bytes, dtype=torch.uint8)
        product = self.matrix
        for _ in range(self.work):
            product = product @ self.matrix
        assert held.numel() == self.bytes
        assert product.isfinite().all()

    def outcome(self) -> Outcome:
        return {"number": torch.tensor([self.gives, 2.0])}


def toil(work: int, *, mebibytes: int = 0, gives: float = 1.0, compiled: float | None = None) -> Build:
    """`compiled` is what the compiled form gives, where it is another number."""

    def build(conditions: Conditions) -> Job:
        given = gives if compiled is None or not conditions.compiled else compiled
        return Toil(work=work, mebibytes=mebibytes, gives=given)

    return build


def peer(name: str, build: Build, *, needs: str = "torch") -> Peer:
    return Peer(name, needs, build, lambda conditions: Pair(toil(1)(conditions), build(conditions)))


def nothing_like_it(conditions: Conditions) -> Job:
    raise AbsentError("there is no backbone 'toy' yet")


DOUBLE = peer("double", toil(40))
GREEDY = peer("greedy", toil(40, mebibytes=64))
MISSING = peer("missing", toil(20), needs="no_such_library")

EASY = Row("easy", "half the work", toil(20), (DOUBLE, GREEDY, MISSING), {"cpu": Goal(0.6, 0.5)}, ("a note",))
WRONG = Row("wrong", "another number", toil(20), (DOUBLE, peer("wrong", toil(40, gives=1.1))))
HOMELESS = Row("homeless", "ours is not there", nothing_like_it, (peer("double", nothing_like_it),))
COMPILED = Row("compiled", "ours breaks when it is compiled", toil(20, compiled=1.1), (DOUBLE,))
PEER_COMPILED = Row("peer_compiled", "theirs does", toil(20), (peer("double", toil(40, compiled=1.1)),))
