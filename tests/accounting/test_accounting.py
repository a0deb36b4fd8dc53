from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.accounting.crossings import border_sums
from consortium.accounting.leases import join, lease_row, two_books
from consortium.accounting.periods import bounds, period_of
from consortium.accounting.usage import Metered, bill, consumed, delivered, reference_hours
from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.records import UsageRow
from consortium.errors import UsageError


def row(start: int = 0, end: int = 1000, **changes: object) -> UsageRow:
    base = UsageRow(
        leg="leg-a", epoch="1.1", job="job-a", account="fr", site="fr-1", flavor="h100-sxm", gpus=2,
        start_ms=start, end_ms=end,
    )  # fmt: skip
    return replace(base, **changes)


def metered(*rows: UsageRow) -> list[Metered]:
    return [Metered(record=f"fr-1:{i}", row=item) for i, item in enumerate(rows)]


class TestPeriods:
    def test_months_are_half_open_in_utc(self) -> None:
        start, end = bounds("2026-02")
        assert (period_of(start), period_of(end - 1), period_of(end)) == ("2026-02", "2026-02", "2026-03")
        assert bounds("2025-12")[1] == bounds("2026-01")[0]

    @pytest.mark.parametrize("unix_ms", [-1, bounds("9998-12")[1], 10**20, 10**400])
    def test_a_moment_outside_of_all_periods_is_named(self, unix_ms: int) -> None:
        with pytest.raises(UsageError, match="no time of the years 1970 to 9998"):
            period_of(unix_ms)

    @pytest.mark.parametrize("text", ["2026-13", "2026-1", "26-01", "2026", "", "2026-01-01", "0000-01", "9999-12"])
    def test_what_is_no_period_is_named(self, text: str) -> None:
        with pytest.raises(UsageError, match="YYYY-MM"):
            bounds(text)


class TestBilling:
    def test_rows_that_touch_do_not_overlap(self) -> None:
        billing = bill(metered(row(0, 10), row(10, 20), row(5, 6, leg="leg-b")))
        assert len(billing.billed) == 3
        assert not billing.repeated

    def test_a_stretch_metered_again_is_billed_once_and_said(self) -> None:
        billing = bill(metered(row(0, 10), row(0, 10), row(9, 12, epoch="2.1"), row(12, 14)))
        assert [item.record for item in billing.billed] == ["fr-1:0", "fr-1:3"]
        assert [(item.record, item.against, item.gpu_ms) for item in billing.repeated] == [
            ("fr-1:1", "fr-1:0", 20), ("fr-1:2", "fr-1:0", 6),
        ]  # fmt: skip

    def test_what_another_site_says_of_a_leg_takes_nothing_from_its_own(self) -> None:
        forged = row(0, 100, site="de-1", gpus=1)
        billing = bill([Metered(record="de-1:0", row=forged), *metered(row(0, 10), row(10, 20))])
        assert [item.record for item in billing.billed] == ["de-1:0", "fr-1:0", "fr-1:1"]
        assert not billing.repeated

    def test_what_leaves_its_month_is_not_billed_and_said(self) -> None:
        start, end = bounds("2026-03")
        billing = bill(metered(row(start, start + 300 * 86_400_000), row(end - 10, end), row(start, start)))
        assert [item.record for item in billing.billed] == ["fr-1:1"]
        assert [(item.record, item.against) for item in billing.repeated] == [("fr-1:0", "")]

    @given(
        st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20), st.sampled_from(["leg-a", "leg-b"])), max_size=30)
    )
    def test_no_gpu_millisecond_of_a_leg_is_billed_twice(self, items: list[tuple[int, int, str]]) -> None:
        rows = [row(start, start + length, leg=leg) for start, length, leg in items]
        billing = bill(metered(*rows))
        seen: set[tuple[str, int]] = set()
        for item in billing.billed:
            covered = {(item.row.leg, ms) for ms in range(item.row.start_ms, item.row.end_ms)}
            assert not covered & seen
            seen |= covered
        total = sum(item.row.gpu_ms for item in billing.billed) + sum(item.gpu_ms for item in billing.repeated)
        assert total == sum(item.gpu_ms for item in rows)

    def test_delivered_goes_by_site_and_consumed_by_account(self) -> None:
        rows = [row(), row(account="de/x", leg="b"), row(site="de-1", leg="c"), row(site="de-1", account="de", leg="d")]
        assert sum(item.gpu_ms for item in delivered(rows, "fr")) == 4000
        assert [item.leg for item in consumed(rows, "fr")] == ["leg-a", "c"]

    def test_reference_hours_are_exact_and_unknown_where_a_factor_is(self) -> None:
        factors = {"fr-1": "1.0", "de-1": "0.312"}
        assert reference_hours({"fr-1": 3_600_000, "de-1": 7_200_000}, factors) == "1.6240"
        assert reference_hours({"fr-1": 1, "uy-1": 1}, factors) is None


LEASE = {
    "leg": "leg-a", "epoch": "1.1", "job": "job-a", "account": "fr", "site": "fr-1", "flavor": "h100-sxm", "gpus": 2,
    "offered_ms": 1, "held_ms": 2, "start_ms": 100, "running_ms": 500, "final_ms": 60_000, "state": "succeeded",
}  # fmt: skip


class TestTwoBooks:
    @pytest.mark.parametrize(
        ("changes", "interval"),
        [
            ({}, (500, 60_000)),
            ({"running_ms": 0}, (100, 60_000)),
            ({"running_ms": None, "state": "stopped"}, None),
            ({"final_ms": 0}, None),
            ({"running_ms": 0, "start_ms": None, "state": "refused"}, None),
        ],
    )
    def test_a_lease_runs_from_running_to_final(self, changes, interval) -> None:
        made = lease_row(LEASE | changes)
        assert (made and (made.start_ms, made.end_ms)) == interval

    def test_one_late_receipt_of_many_leaves_the_books_in_agreement_and_a_tenth_does_not(self) -> None:
        for late, agree in ((1, True), (4, False)):
            site = [row(0, 60_000, leg=f"leg-{at}") for at in range(40)]
            server = [row(9_000 if at < late else 0, 60_000, leg=f"leg-{at}") for at in range(40)]
            (book,) = two_books(site, server).values()
            assert book.agree is agree

    def test_books_that_differ_by_a_poll_agree_and_by_more_do_not(self) -> None:
        site = [row(0, 30_000), row(30_000, 60_000)]
        close, far = [row(900, 61_500)], [row(0, 90_000)]
        (book,) = two_books(site, close).values()
        assert (book.site_gpu_ms, book.server_gpu_ms, book.difference_gpu_ms) == (120_000, 121_200, -1_200)
        assert book.agree
        (book,) = two_books(site, far).values()
        assert not book.agree

    def test_the_tolerance_is_the_servers_not_what_the_site_says_it_leased(self) -> None:
        (book,) = two_books([row(0, 4000, gpus=1_000_000)], [row(0, 4000, gpus=8)]).values()
        assert not book.agree
        beside = [row(0, 1, gpus=10**6, leg="b"), row(1, 3_600_000, leg="b")]
        (book,) = two_books([*beside], [row(0, 1000, leg="b")]).values()
        assert not book.agree

    def test_too_much_in_one_lease_and_too_little_in_another_do_not_cancel_out(self) -> None:
        site = [row(0, 90_000), row(0, 30_000, leg="b")]
        (book,) = two_books(site, [row(0, 60_000), row(0, 60_000, leg="b")]).values()
        assert (book.difference_gpu_ms, book.agree) == (0, False)

    def test_leases_that_the_site_never_metered_count_in_the_sum(self) -> None:
        (book,) = two_books([row(0, 60_000)], [row(0, 60_000), row(0, 2_000, leg="b")]).values()
        assert (book.difference_gpu_ms, book.agree) == (-4_000, True)
        (book,) = two_books([row(0, 60_000)], [row(0, 60_000), row(0, 60_000, leg="b")]).values()
        assert not book.agree

    @pytest.mark.parametrize("other", [{"site": "de-1"}, {"account": "de"}, {"job": "job-b"}, {"flavor": "a100-80g"}])
    def test_a_receipt_is_of_the_row_only_where_both_say_the_same_of_it(self, other: dict[str, str]) -> None:
        books = two_books([row(**other)], [row()]).values()
        assert sum(book.leases_unknown for book in books) == 1
        assert not any(book.agree for book in books)

    def test_no_receipt_is_unknown_not_zero(self) -> None:
        (book,) = two_books([row(), row(leg="leg-b")], []).values()
        assert (book.server_gpu_ms, book.difference_gpu_ms, book.leases_unknown, book.agree) == (None, None, 2, False)
        (book,) = two_books([row(), row(leg="leg-b")], [row()]).values()
        assert (book.server_gpu_ms, book.difference_gpu_ms, book.leases_unknown, book.agree) == (2000, None, 1, False)

    def test_a_sum_is_known_only_where_every_part_is(self) -> None:
        known = two_books([row()], [row()])
        unknown = two_books([row(account="de", leg="b")], [])
        assert join(known.values()).agree
        total = join([*known.values(), *unknown.values()])
        assert (total.site_gpu_ms, total.server_gpu_ms, total.difference_gpu_ms, total.agree) == (
            4000,
            2000,
            None,
            False,
        )
        assert join([]).server_gpu_ms is None


def crossing(side: CrossingSide = CrossingSide.RELEASE, **changes: object) -> Crossing:
    base = Crossing(
        sender="fr-1", recipient="de-1", side=side, artifact_class=ArtifactClass.STATISTIC, size_bytes=100, count=1,
        digest="sha256:a", job="job-a", at_ms=0,
    )  # fmt: skip
    return replace(base, **changes)


class TestCrossings:
    def test_the_same_on_both_sides_agrees(self) -> None:
        (item,) = border_sums([crossing(), crossing(CrossingSide.RECEIPT, at_ms=9)])
        assert (item.released_bytes, item.received_bytes, item.matched_count, item.agree) == (100, 100, 1, True)

    @pytest.mark.parametrize("change", [{"digest": "sha256:b"}, {"size_bytes": 101}, {"job": "job-b"}])
    def test_anything_else_does_not(self, change: dict[str, object]) -> None:
        (item,) = border_sums([crossing(), crossing(CrossingSide.RECEIPT, **change)])
        assert not item.agree

    def test_one_side_alone_leaves_the_other_unknown(self) -> None:
        batch = crossing(recipient="consortium", artifact_class=ArtifactClass.CONTROL, digest="", count=7)
        (item,) = border_sums([batch])
        assert (item.released_count, item.received_count, item.received_bytes, item.agree) == (7, None, None, False)
        assert (item.count, item.size_bytes) == (7, 100)
