# SPDX-License-Identifier: Apache-2.0
"""What is lost of each image that is served here, who has heard of it, and that it stays so.

Of an image file it is on the disk before it is so, in the poison file beside it: a page that has travelled as
POISON never comes as bytes again, whoever serves the image next. What a read finds lost is so at once, and on
the disk right after; while the disk does not take it, that is tried again. Live memory lives no longer than
its server, and neither does what is known of it.

The disk, and the data plane's lock of an image, take their time: they are waited for on other threads, and of
one image by one at a time.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from pageferry import poison_file
from pageferry.layout import Layout
from pageferry.poison_file import PoisonRecord
from pageferry.poison_log import PoisonLog, What
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageferry.units import PageRun, merge, minus
from pageserver.dataplane import ImageFacts
from pageserver.images import ImageFile
from pageserver.switchover import in_thread

RECORD_AGAIN_S: Final = 5.0


class Plane(Protocol):
    """What of the data plane is needed here."""

    def poison(self, name: str, run: PageRun) -> None: ...

    def poisoned(self, name: str) -> list[PageRun]: ...


@dataclass(slots=True)
class Lost:
    """Of one image. `known`: those that the log has as lost now."""

    page_count: int
    log: PoisonLog = field(default_factory=PoisonLog)
    known: list[PageRun] = field(default_factory=list)
    image: ImageFile | None = None  # None: live memory
    record: PoisonRecord | None = None  # of a file: what its poison file says
    layout: Layout | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    recording: asyncio.Task[None] | None = None  # of what was found

    def note(self, runs: Sequence[PageRun], what: What = What.POISONED) -> None:
        for run in runs:
            self.log.add(run, what)
        self.known = minus(self.known, runs) if what is What.CLEARED else merge((*self.known, *runs))

    def unrecorded(self) -> bool:
        return self.record is not None and bool(minus(self.known, self.record.runs))


class Poison:
    """`changed` is called with the name of an image whose log has grown."""

    def __init__(self, plane: Plane, changed: Callable[[str], None] = lambda image: None) -> None:
        self._plane = plane
        self._changed = changed
        self._lost: dict[str, Lost] = {}
        self._last: dict[str, tuple[int, int]] = {}  # of an image that is gone: entries, pages
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------- images come and go

    def add_file(self, image: ImageFile, record: PoisonRecord) -> None:
        lost = Lost(image.page_count, image=image, record=record)
        lost.note(record.runs)
        self._lost[image.name] = lost

    def add_live(self, name: str, page_count: int, layout: Layout | None) -> None:
        self._last.pop(name, None)
        self._lost[name] = Lost(page_count, layout=layout)

    def learn_layout(self, name: str, layout: Layout) -> None:
        """From an adapter; what the VMM or an operator has said counts more."""
        lost = self._lost.get(name)
        if lost is not None and lost.layout is None:
            lost.layout = layout

    def drop(self, name: str) -> None:
        """Its sessions have its last numbers still."""
        self._last[name] = self.seq(name), self.pages(name)
        lost = self._lost.pop(name, None)
        if lost is not None and lost.recording is not None:
            lost.recording.cancel()

    def of(self, name: str) -> Lost:
        """PageferryError: there is no such image."""
        try:
            return self._lost[name]
        except KeyError:
            raise not_served(name) from None

    def seq(self, name: str) -> int:
        """Of the newest entry; 0: there is none."""
        return self._lost[name].log.seq if name in self._lost else self._last.get(name, (0, 0))[0]

    def pages(self, name: str) -> int:
        """How many are lost."""
        if name not in self._lost:
            return self._last.get(name, (0, 0))[1]
        return sum(run.page_count for run in self._lost[name].known)

    # ------------------------------------------------------------------------------------------ what is lost

    async def poison(self, name: str, runs: Sequence[PageRun]) -> None:
        """For ever, also if nobody waits for it any more. PageferryError: nothing has changed; or, of a live
        image, some of it."""
        lost = self.of(name)
        for run in runs:
            if run.end_page > lost.page_count:
                raise PageferryError(
                    Reason.OUT_OF_IMAGE,
                    f"page {run.end_page - 1} is past the end of {name}, which has {lost.page_count} pages",
                    "name pages of the image",
                )
        await asyncio.shield(self._begin(self._poison(name, lost, runs)))

    async def _poison(self, name: str, lost: Lost, runs: Sequence[PageRun]) -> None:
        def poison() -> None:
            for run in news:
                self._plane.poison(name, run)

        async with lost.changing:
            if self.of(name) is not lost:
                raise not_served(name)
            news = minus(runs, lost.known)
            await self._record(lost, news)
            try:
                await in_thread(poison)
            finally:
                with suppress(PageferryError):  # what kept it from being poisoned is the one to tell
                    self.look(name)

    def found(self, name: str) -> None:
        """The data plane has found some of it lost."""
        with suppress(PageferryError):  # it is not served any more
            self.look(name)

    def look(self, name: str) -> Lost:
        """Takes over what the data plane knows: reads of its own, and what an earlier hop has brought."""
        lost = self.of(name)
        try:
            now = self._plane.poisoned(name)
        except PageferryError as error:  # the memory of a move that has ended
            raise not_served(name) from error
        news, over = minus(now, lost.known), minus(lost.known, now)
        if news or over:
            lost.note(over, What.CLEARED)
            lost.note(news)
            pages = sum(run.page_count for run in news)
            log.warning("poisoned", image=name, pages=pages, first_page=news[0].first_page if news else None)
            if lost.unrecorded() and (lost.recording is None or lost.recording.done()):
                lost.recording = self._begin(self._record_found(name, lost))
            self._changed(name)
        return lost

    async def _record(self, lost: Lost, news: Sequence[PageRun]) -> None:
        """PageferryError: it is not on the disk."""
        image, known = lost.image, lost.record
        if image is not None and known is not None and minus(news, known.runs):
            lost.record = await in_thread(lambda: stored(image, known, news))

    async def _record_found(self, name: str, lost: Lost) -> None:
        """What is so already, whether the disk takes it or not."""
        while lost.unrecorded():
            try:
                async with lost.changing:
                    await self._record(lost, lost.known)
            except PageferryError as error:
                log.error("poison_not_recorded", image=name, reason=error.reason.name, text=str(error))
                await asyncio.sleep(RECORD_AGAIN_S)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Nothing is under way any more when this returns."""
        for name in list(self._lost):
            self.drop(name)
        while self._tasks:
            await asyncio.wait(self._tasks)


def stored(image: ImageFile, known: PoisonRecord, news: Sequence[PageRun]) -> PoisonRecord:
    """What its poison file says once these are lost too. PageferryError: it is as it was."""
    # Another server of the same image may have written it meanwhile: what is lost there stays so.
    there = poison_file.load(image.poison_path, known.page_count) or known
    record = replace(known, runs=(*there.runs, *minus((*known.runs, *news), there.runs)))
    poison_file.store(image.poison_path, record)
    return record


def not_served(name: str) -> PageferryError:
    return PageferryError(Reason.NO_SUCH_IMAGE, f"no image {name!r:.80} is served here")


# ---------------------------------------------------------------------------------------------- at the start


def expected(image: ImageFile, facts: ImageFacts) -> PoisonRecord:
    """What is lost of an image that has been read, and the content id that it goes by. PageferryError: its
    poison file is of other content."""
    known = image.poison or PoisonRecord(image.page_count)
    unreadable = facts.unreadable
    record = replace(known, runs=(*known.runs, *minus(unreadable, known.runs)))
    if not known.content_id:
        left_out = tuple(merge((*known.left_out, *unreadable)))
        return replace(record, content_id=facts.content_id, left_out=left_out)
    # With pages that were readable once the content cannot be checked any more: it is as it was called.
    if not unreadable and facts.content_id != known.content_id:
        raise PageferryError(
            Reason.MISMATCH,
            f"the poison file {image.poison_path} is of the content {known.content_id:016x}, and "
            f"{image.path} has {facts.content_id:016x}: one of them was replaced",
            "put the image back that it belongs to; or take the poison file away, if no page is lost",
        )
    return record


def settle(image: ImageFile, facts: ImageFacts) -> PoisonRecord:
    """The same, recorded if anything is lost. PageferryError too: it has to be written, and cannot."""
    record = expected(image, facts)
    if facts.unreadable:
        pages = sum(run.page_count for run in facts.unreadable)
        log.warning("unreadable", image=image.name, path=str(image.path), pages=pages)
    if record.runs and record != image.poison:
        try:
            poison_file.store(image.poison_path, record)
        except PageferryError as error:
            if facts.unreadable:
                raise
            log.warning("poison_not_recorded", image=image.name, reason=error.reason.name, text=str(error))
    return record
