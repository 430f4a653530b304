"""The evaluation itself: every picture of a data set through one model, or two, several at a time, and judged as they come.

samples -> Subject.predict, so many in flight -> Judge (figures) and Comparer (two models) -> Report, Comparison
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from visionpool.errors import InvalidImage, InvalidSetting, TooLarge, UnsupportedMedia
from visionpool.results import Result

from visionpool_server.evaluation.agreement import Comparer
from visionpool_server.evaluation.classes import ClassMap, match_classes
from visionpool_server.evaluation.judges import Judge, Nothing
from visionpool_server.evaluation.judges.classification import ClassificationJudge
from visionpool_server.evaluation.judges.detection import DetectionJudge
from visionpool_server.evaluation.judges.segmentation import SegmentationJudge
from visionpool_server.evaluation.judges.text import TextJudge
from visionpool_server.evaluation.report import Comparison, PictureDifference, Report
from visionpool_server.evaluation.subjects import Subject
from visionpool_server.evaluation.truth import TASKS, Dataset, Sample
from visionpool_server.families import NO_OPTIONS, Options

Progress = Callable[[int], None]  # how many pictures are done

_EVALUATION = Options(score_threshold=0.001, max_detections=300)  # as the field measures mAP: nothing is held back
_CLASSIFICATION = Options(score_threshold=0.0, top_k=20)
_MASK_VALUES = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """`options`: what the caller wants of the model instead of what is usual for its task. `ignored`: the value of pixels in
    masks that count nowhere. `compared`: two models are compared on objects of at least this score."""

    options: Options = NO_OPTIONS
    by_index: bool = False
    ignored: int = 255
    ignore_case: bool = False
    ignore_spaces: bool = False
    compared: float = 0.25


USUAL = Settings()


def evaluate(
    subject: Subject, dataset: Dataset, settings: Settings = USUAL, progress: Progress = lambda _: None
) -> Report:
    """Raises InvalidSetting where the data set does not fit the model, or nothing is known of its pictures; SetupError,
    ServiceError as the model does. Must not be called from within an event loop."""
    if dataset.kind == "pictures":
        raise InvalidSetting(
            f"{dataset.path} has pictures and nothing that says what they show",
            hint="give labels; or compare with --against",
        )
    return _run((subject,), dataset, settings, progress)[0][0]


def compare(
    first: Subject,
    second: Subject,
    dataset: Dataset,
    settings: Settings = USUAL,
    progress: Progress = lambda _: None,
) -> Comparison:
    """Both models on the same pictures, which need no labels; see `evaluate` for what it raises."""
    if first.task != second.task:
        raise InvalidSetting(f"{first.name} is a model for {first.task}, {second.name} for {second.task}")
    (one, other), pictures = _run((first, second), dataset, settings, progress)
    return Comparison(one, other, tuple(sorted(pictures, key=lambda entry: entry.agreement)))


def options_for(subject: Subject, settings: Settings) -> Options:
    """What is asked for each picture: the usual of the task, as far as the model knows it, under what the caller says."""
    usual = {"detection": _EVALUATION, "classification": _CLASSIFICATION}.get(subject.task, NO_OPTIONS)
    offered = {**usual.given(), "compact": True}
    known = {f.name for f in fields(Options)} & subject.accepts
    return settings.options.over(Options(**{name: value for name, value in offered.items() if name in known}))


def _run(
    subjects: tuple[Subject, ...], dataset: Dataset, settings: Settings, progress: Progress
) -> tuple[list[Report], list[PictureDifference]]:
    judged = [_judge(subject, dataset, settings) for subject in subjects]
    comparer = Comparer(subjects[0].labels, subjects[-1].labels, settings.compared)
    options = [options_for(subject, settings) for subject in subjects]
    pictures: list[PictureDifference] = []
    failed: dict[str, str] = {}
    done = 0

    def settle(sample: Sample, answers: Sequence[Result] | Exception) -> None:
        nonlocal done
        if isinstance(answers, Exception):
            failed[sample.name] = str(answers)
        else:
            for (judge, _), answer in zip(judged, answers, strict=True):
                judge.add(sample, answer)
            if len(answers) > 1:
                pictures.append(comparer.compare(sample.name, *answers))
        done += 1
        progress(done)

    async def ask(sample: Sample) -> Sequence[Result] | Exception:
        return await _answers(subjects, options, sample)

    started = time.monotonic()
    asyncio.run(_in_flight(dataset.samples, ask, settle, max(subject.in_flight for subject in subjects)))
    seconds = time.monotonic() - started
    if len(failed) == len(dataset.samples):
        raise InvalidSetting(
            f"none of the {len(failed)} pictures could be read: {next(iter(failed.values()), 'there is none')}"
        )
    reports = [
        _report(subject, dataset, judging, asked, failed=failed, seconds=seconds)
        for subject, judging, asked in zip(subjects, judged, options, strict=True)
    ]
    return reports, pictures


async def _in_flight(
    samples: Sequence[Sample],
    ask: Callable[[Sample], Awaitable[Sequence[Result] | Exception]],
    settle: Callable[[Sample, Sequence[Result] | Exception], None],
    limit: int,
) -> None:
    """Asks of `limit` pictures at a time, and settles them in their order, so that no answers pile up."""
    waiting: deque[tuple[Sample, asyncio.Future[Sequence[Result] | Exception]]] = deque()
    try:
        for sample in samples:
            if len(waiting) >= limit:
                oldest, answers = waiting.popleft()
                settle(oldest, await answers)
            waiting.append((sample, asyncio.ensure_future(ask(sample))))
        while waiting:
            oldest, answers = waiting.popleft()
            settle(oldest, await answers)
    finally:
        for _, answers in waiting:
            answers.cancel()
        await asyncio.gather(*(answers for _, answers in waiting), return_exceptions=True)


async def _answers(
    subjects: Sequence[Subject], options: Sequence[Options], sample: Sample
) -> Sequence[Result] | Exception:
    """The answer of each subject; what is wrong with the picture, where something is: the others go on without it."""
    try:
        picture = _read(sample.path)
        asked = [subject.predict(picture, wanted) for subject, wanted in zip(subjects, options, strict=True)]
        return await asyncio.gather(*asked)
    except (InvalidImage, TooLarge, UnsupportedMedia, OSError) as error:
        return error


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _judge(subject: Subject, dataset: Dataset, settings: Settings) -> tuple[Judge, ClassMap | None]:
    """Raises InvalidSetting where the model does something else than the data set asks for."""
    if dataset.kind == "pictures":
        return Nothing(), None
    task = TASKS[dataset.kind]
    if subject.task != task:
        raise InvalidSetting(
            f"{subject.name} is a model for {subject.task}, and {dataset.path} (read as {dataset.format}) is for {task}",
            hint="--format says how else to read the data set",
        )
    if dataset.kind == "text":
        return TextJudge(ignore_case=settings.ignore_case, ignore_spaces=settings.ignore_spaces), None
    ids = dataset.class_ids or range(subject.class_count or len(subject.labels) or _MASK_VALUES)
    classes = match_classes(dataset.names, ids, subject.labels, subject.class_count, by_index=settings.by_index)
    if dataset.kind == "boxes":
        return DetectionJudge(classes), classes
    if dataset.kind == "masks":
        return SegmentationJudge(classes, settings.ignored), classes
    return ClassificationJudge(classes, subject.class_count), classes


def _report(
    subject: Subject,
    dataset: Dataset,
    judged: tuple[Judge, ClassMap | None],
    options: Options,
    *,
    failed: dict[str, str],
    seconds: float,
) -> Report:
    judge, classes = judged
    scores = judge.scores()
    notes = [*dataset.notes, *(classes.notes if classes else ()), *scores.notes]
    if failed:
        name, reason = next(iter(failed.items()))
        notes.append(f"{len(failed)} pictures could not be read, and count nowhere; the first is {name}: {reason}")
    return Report(
        model=subject.name,
        where=subject.where,
        task=subject.task,
        dataset=str(dataset.path),
        format=dataset.format,
        pictures=len(dataset.samples) - len(failed),
        metrics=scores.metrics,
        classes=scores.classes,
        notes=tuple(notes),
        failed=failed,
        seconds=seconds,
        matched_by=classes.by if classes else "",
        mistakes=scores.mistakes,
        options=options.given(),
        chart=scores.chart,
    )
