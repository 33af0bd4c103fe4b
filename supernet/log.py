"""What a run says: console, log.txt, metrics.jsonl, metrics.csv, and wandb when asked."""

import csv
import errno
import io
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from supernet.construct import nearest
from supernet.errors import UserError
from supernet.runs import plain, write_atomic

METRICS = "metrics.jsonl"
TABLE = "metrics.csv"
TEXT = "log.txt"
WANDB_ID = "wandb_id.txt"
WANDB_KEYS = ("project", "entity", "name", "group", "tags", "mode")
WANDB_MODES = ("online", "offline", "disabled")
PLAIN_SECONDS = 10.0  # between two progress lines when the output is not a terminal
FIELD_SECONDS = 0.5  # between two looks at the fields of a bar: a tensor on a GPU has to be waited for

Scalar = float | int | str


class Progress(Protocol):
    """A running count that a loop advances."""

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count `n` more; `fields` (numbers, text or 0-d tensors) are shown behind the bar."""


class RunLog:
    """The one place where a run prints and records; `quiet` (ranks other than the first) does neither.

    Every record is one line of metrics.jsonl and one row of metrics.csv, written out at once, so that a
    killed run leaves whole files. `wandb` is the `logger` config: {kind: none} or {kind: wandb, project,
    mode, …}; its `config` entry, given by code, is shown there as the run's settings.
    Raises `UserError` for unknown logger settings and when wandb is asked for but does not work.
    """

    def __init__(self, folder: Path, quiet: bool = False, wandb: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.quiet = quiet
        self._columns: list[str] = []
        self._table: TextIO | None = None
        self._bars: Any = None
        self._wandb: Any = None
        note = ""
        if quiet:
            return
        from rich.console import Console

        folder.mkdir(parents=True, exist_ok=True)
        if wandb is not None and wandb.get("kind", "none") != "none":
            self._wandb, note = _start_wandb(folder, wandb)  # may refuse, so before any file is open
        self._console = Console(highlight=False, markup=False)
        self._console.on_broken_pipe = _raise_again  # type: ignore[method-assign]
        self._text = (folder / TEXT).open("a", encoding="utf-8")
        self._open_metrics(read_metrics(folder / METRICS))
        if self._wandb is not None:
            self.say(note)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Print `text`, and add it with the time to log.txt."""
        if not self.quiet:
            self._print(text, soft_wrap=True)
            self._write_text(text)

    def warn(self, text: str) -> None:
        """Say `text` as a warning."""
        if not self.quiet:
            self._print(f"warning: {text}", style="yellow", soft_wrap=True)
            self._write_text(f"warning: {text}")

    def record(self, kind: str, step: int, values: Mapping[str, Scalar]) -> None:
        """Write one record (`kind` is "train", "eval", …) of the optimizer step `step`.

        A value that is not finite becomes null. Raises `ValueError` for the names kind, step and time.
        """
        if self.quiet:
            return
        if taken := {"kind", "step", "time"} & values.keys():
            raise ValueError(f"values may not be named {sorted(taken)}: every record has these")
        row = {"kind": kind, "step": step, "time": round(time.time(), 3), **plain(values)}
        with _named(self.folder / METRICS):
            self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
            self._metrics.flush()
        if self._table is None or any(name not in self._columns for name in row):
            self._rebuild_table(read_metrics(self.folder / METRICS))
        else:
            csv.DictWriter(self._table, self._columns, lineterminator="\n").writerow(row)
            self._table.flush()
        if self._wandb is not None:
            shown = {f"{kind}/{name}": value for name, value in plain(values).items() if value is not None}
            self._wandb.log({"step": step, **shown})

    def truncate_after(self, step: int) -> None:
        """Drop records of later steps: a resumed run goes on from its checkpoint and writes them again."""
        if self.quiet:
            return
        self._metrics.close()
        self._open_metrics([row for row in read_metrics(self.folder / METRICS) if row["step"] <= step])

    @contextmanager
    def progress(self, total: int, label: str, done: int = 0) -> Iterator[Progress]:
        """Show how far a loop of `total` counts is: a bar on a terminal, now and then a line elsewhere.

        `done` counts were made before and do not enter the rate.
        """
        if self.quiet:
            yield _NoProgress()
        elif self._console.is_terminal:
            if self._bars is None or not self._bars.tasks:
                self._bars = _rich_bars(self._console)
                self._bars.start()
            bars = self._bars
            task = bars.add_task(label, total=total, completed=done, fields="")
            try:
                yield _Bar(bars, task)
            finally:
                bars.refresh()
                if len(bars.tasks) == 1:
                    bars.stop()  # leaves the finished bar on the screen
                bars.remove_task(task)
        else:
            lines = _Lines(total, label, done)
            try:
                yield lines
            finally:
                lines.show()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table, and add it as text to log.txt. Floats are shown with four significant digits."""
        if self.quiet:
            return
        cells = [[_show(value) for value in row] for row in rows]
        text = _text_table(columns, cells)
        if self._console.is_terminal:
            from rich.table import Table

            drawn = Table(*columns, title=title, title_justify="left")
            for row in cells:
                drawn.add_row(*row)
            self._print(drawn)
        else:
            self._print(f"{title}\n{text}", soft_wrap=True)
        self._write_text(f"{title}\n{text}")

    def close(self) -> None:
        """Close files and wandb. Calling it again does nothing.

        All was written when it was said or recorded: what a full disk refused then raises no second error here.
        """
        if self.quiet or self._text.closed:
            return
        if self._wandb is not None:
            self._wandb.finish()
        for file in (self._metrics, self._table, self._text):
            if file is not None:
                with suppress(OSError):
                    file.close()

    def _print(self, shown: Any, **how: Any) -> None:
        """On the screen, unless the terminal was closed: what is said then is in log.txt."""
        try:
            self._console.print(shown, **how)
        except OSError as error:
            if error.errno != errno.EIO:
                raise

    def _write_text(self, text: str) -> None:
        with _named(self.folder / TEXT):
            self._text.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
            self._text.flush()

    def _open_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Start from `rows`. Rewriting also drops a line that a killed run left unfinished."""
        path = self.folder / METRICS
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(path, lambda file: file.write(text.encode()))
        self._metrics = path.open("a", encoding="utf-8")
        self._rebuild_table(rows)

    def _rebuild_table(self, rows: list[dict[str, Any]]) -> None:
        """Write metrics.csv anew, with a column for every name in order of appearance."""
        path = self.folder / TABLE
        self._columns = list(dict.fromkeys(["kind", "step", "time", *(name for row in rows for name in row)]))
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        if self._table is not None:
            self._table.close()
        write_atomic(path, lambda file: file.write(text.getvalue().encode()))
        self._table = path.open("a", encoding="utf-8", newline="")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl, without lines that a crash left unfinished or unreadable."""
    return [row for row in read_rows(path) if isinstance(row.get("step"), int) and "kind" in row]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of a file that holds one in each line; what is none is left out."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        # A whole line ends with a newline, so what follows the last one is a fragment or nothing.
        for line in path.read_bytes().split(b"\n")[:-1]:
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
    return rows


class _NoProgress:
    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count nothing."""


class _Bar:
    def __init__(self, bars: Any, task: int) -> None:
        self.bars, self.task = bars, task
        self.shown = -FIELD_SECONDS

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Move the bar; look at `fields` only when there is something new for the eye."""
        now = time.monotonic()
        if fields and now - self.shown >= FIELD_SECONDS:
            self.shown = now
            self.bars.update(self.task, fields=_fields(fields))
        self.bars.advance(self.task, n)


class _Lines:
    def __init__(self, total: int, label: str, done: int) -> None:
        self.total, self.label, self.before = total, label, done
        self.done, self.fields = done, dict[str, Any]()
        self.started = self.shown = time.monotonic()

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count, and print a line when the last one is old."""
        self.done += n
        self.fields |= fields
        if time.monotonic() - self.shown >= PLAIN_SECONDS and self.done < self.total:
            self.show()

    def show(self) -> None:
        """Print `label done/total, rate, time left, fields`."""
        self.shown = time.monotonic()
        seconds = max(self.shown - self.started, 1e-9)
        rate = (self.done - self.before) / seconds
        if self.done < self.total and rate:
            clock = f"ETA {_clock((self.total - self.done) / rate)}"
        else:
            clock = f"in {_clock(seconds)}"
        parts = [f"{self.label} {self.done}/{self.total}", f"{_show(rate)}/s", clock, _fields(self.fields)]
        print(", ".join(part for part in parts if part), flush=True)


def _rich_bars(console: Any) -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        _speed_column(),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        progress.TextColumn("{task.fields[fields]}", markup=False),
        console=console,
    )


def _speed_column() -> Any:
    from rich import progress, text

    class Speed(progress.ProgressColumn):
        def render(self, task: progress.Task) -> text.Text:
            """Show counts per second."""
            speed = task.finished_speed or task.speed
            return text.Text(f"{_show(float(speed))}/s" if speed else "")

    return Speed()


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fields(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_show(plain(value))}" for name, value in fields.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A failure to write to an open file names none; now it does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _raise_again() -> None:
    """In the place of rich's own, which leaves with 1: whoever calls knows what a closed pipe means."""
    raise


def check_logger(settings: Mapping[str, Any]) -> None:
    """Refuse settings of the `logger` section that do not exist.

    Raises:
        UserError: naming the first one, not its value: that may be the key of an account.
    """
    if unknown := [name for name in settings if name not in ("kind", *WANDB_KEYS)]:
        close = nearest(unknown[0], WANDB_KEYS)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"logger.{unknown[0]}: unknown name; {hint}(valid: {', '.join(WANDB_KEYS)})")


def _start_wandb(folder: Path, settings: Mapping[str, Any]) -> tuple[Any, str]:
    """Start the wandb run of this folder, or continue it on resuming; return it and where to look at it.

    Never asks and never waits for a login.
    """
    given = {name: value for name, value in settings.items() if name != "kind" and value is not None}
    if settings.get("kind") != "wandb":
        raise UserError(f"logger.kind={settings.get('kind')}: expected none or wandb")
    check_logger({name: value for name, value in settings.items() if name != "config"})
    if given.get("mode", "online") not in WANDB_MODES:
        raise UserError(f"logger.mode={given['mode']}: expected one of {', '.join(WANDB_MODES)}")
    id_file = folder / WANDB_ID
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    try:
        import wandb

        given["mode"] = os.environ.get("WANDB_MODE") or given.get("mode") or _wandb_mode(wandb)
        # Without an explicit step wandb accepts records in any order, as a resumed run sends them.
        run = wandb.init(
            **{"name": folder.name, **given},
            id=id_file.read_text().strip(),
            resume="allow",
            dir=str(folder),
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )
        run.define_metric("*", step_metric="step")
        # Asking an offline run for its address prints a warning.
        address = run.url if given["mode"] == "online" else None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"logger=wandb does not work here ({reason}); try logger.mode=offline or logger=none"
        ) from error
    return run, f"wandb: {address or 'offline; to upload: wandb sync ' + str(Path(run.dir).parent)}"


def _wandb_mode(wandb: Any) -> str:
    """Return "online" when an account is set up on this machine; it is looked for, not contacted."""
    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except TypeError:  # a version that would ask
        return "offline"
