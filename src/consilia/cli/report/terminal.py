"""The report's summary on a terminal as tables, elsewhere as plain lines that a log or a script can keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text as Styled

from consilia.cli.output import printable
from consilia.cli.report import words
from consilia.cli.report.consultation import ConsultationReport
from consilia.cli.report.consultation_words import plain_lines
from consilia.cli.report.report import Report, Round
from consilia.cli.report.results import Score

BAR_WIDTH = 12


def print_summary(report: Report, console: Console) -> None:
    """Print what the run showed: tables where `console` is a terminal, otherwise one line a fact."""
    if not console.is_terminal:
        for line in summary_lines(report):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        return
    verdict = words.verdict(report.results)
    console.print()
    console.print(Styled(verdict.headline.en, style="bold"))
    console.print(Styled(verdict.detail.en, style="dim"))
    console.print()
    console.print(_scores(report))
    console.print(_rounds(report))
    console.print(_hospitals(report))
    for line in (_time_line(report), _bytes_line(report), _chain_line(report), *_audit_lines(report)):
        console.print(Styled(line))
    if report.consultation is not None:
        print_consultation(report.consultation, console)


def print_consultation(shown: ConsultationReport, console: Console) -> None:
    """Print one second opinion: the outcome first, in red where there is no diagnosis."""
    headline, detail, *facts = plain_lines(shown)
    error = shown.outcome in ("failed", "stopped", "spoilt")
    console.print()
    console.print(Styled(printable(f"second opinion: {headline}"), style="bold red" if error else "bold"))
    console.print(Styled(printable(detail), style="dim"), soft_wrap=True)
    for line in facts:
        console.print(Styled(printable(line)), soft_wrap=True)


def summary_lines(report: Report) -> Iterator[str]:
    """The same summary as plain lines, without colour or columns."""
    verdict = words.verdict(report.results)
    yield verdict.headline.en
    yield verdict.detail.en
    for name, score, _ in _models(report):
        yield (
            f"{name}: map50 {score.map50:.3f} ({words.interval_text(score.map50_interval)}), "
            f"map {score.map:.3f} ({words.interval_text(score.map_interval)}), "
            f"cpm {score.cpm:.3f} ({words.interval_text(score.cpm_interval)})"
        )
    for played in report.rounds:
        yield f"round {played.round_index}: {_fates(played)}, {words.seconds_text(played.seconds)}"
    for reward in report.rewards:
        claimed = "claimed" if reward.claimed else "not claimed"
        yield (
            f"{reward.hospital}: {reward.num_examples} examples, share {reward.share_wei} wei {claimed}, "
            f"blocks {_blocks(report, reward.hospital)}, for blocks {reward.block_reward_wei} wei"
        )
    for site in report.data:
        yield f"{site.hospital}: {site.studies_used} studies used, {site.studies_skipped} skipped"
    yield from (_time_line(report), _bytes_line(report), _chain_line(report), *_audit_lines(report))
    if report.consultation is not None:
        yield from (f"second opinion: {line}" for line in plain_lines(report.consultation))


def _models(report: Report) -> Iterator[tuple[str, Score, str]]:
    yield words.FEDERATED.en, report.results.federated, "cyan"
    yield words.POOLED.en, report.results.pooled, "blue"
    for score in report.results.local_only:
        yield words.alone(score.hospital).en, score, "yellow"


def _scores(report: Report) -> Table:
    held_out = report.held_out
    table = Table(
        title=f"On {held_out.patients} held-out patients, {held_out.lesions} lesions",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model")
    table.add_column("mAP@.5", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("", width=BAR_WIDTH)
    table.add_column("mAP@[.5:.95]", justify="right")
    table.add_column("CPM", justify="right")
    table.add_column("steps", justify="right")
    for name, score, colour in _models(report):
        drawn = Styled("█" * round(score.map50 * BAR_WIDTH), style=colour)
        table.add_row(
            Styled(name),
            f"{score.map50:.3f}",
            words.interval_text(score.map50_interval),
            drawn,
            f"{score.map:.3f}",
            f"{score.cpm:.3f}",
            f"{score.training_steps:,}",
        )
    return table


def _rounds(report: Report) -> Table:
    table = Table(title="Rounds", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("round", "updates"):
        table.add_column(heading)
    for heading in ("mAP@.5", "time", "bytes", "blocks"):
        table.add_column(heading, justify="right")
    for played in report.rounds:
        table.add_row(
            str(played.round_index),
            _fates(played),
            "–" if played.map50 is None else f"{played.map50:.3f}",
            words.seconds_text(played.seconds),
            words.bytes_text(played.bytes),
            f"{played.block_opened}–{played.block_closed}",
        )
    return table


def _hospitals(report: Report) -> Table:
    table = Table(title="Hospitals", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("hospital")
    for heading in ("studies used", "skipped", "examples", "blocks", "share (ether)", "for blocks (ether)"):
        table.add_column(heading, justify="right")
    sites = {site.hospital: site for site in report.data}
    for reward in report.rewards:
        site = sites.get(reward.hospital)
        table.add_row(
            Styled(reward.hospital),
            str(site.studies_used) if site else "–",
            str(site.studies_skipped) if site else "–",
            f"{reward.num_examples:,}",
            str(_blocks(report, reward.hospital)),
            words.ether_text(reward.share_wei) + ("" if reward.claimed else " (not claimed)"),
            words.ether_text(reward.block_reward_wei),
        )
    return table


def _fates(played: Round) -> str:
    """How many updates met which fate: "3 included, 1 late"."""
    counts = Counter(update.status for update in played.updates)
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "no updates"


def _blocks(report: Report, hospital: str) -> int:
    return sum(miner.blocks for miner in report.ledger.blocks_by_miner if miner.hospital == hospital)


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]


def _time_line(report: Report) -> str:
    spent = [
        f"{_lower(name.en)} {words.seconds_text(getattr(report.seconds, phase))}"
        for phase, name in words.PHASES.items()
        if getattr(report.seconds, phase)
    ]
    return f"time: {words.seconds_text(report.seconds.total)} in all; " + "; ".join(spent)


def _bytes_line(report: Report) -> str:
    sizes = [
        f"{_lower(name.en)} {words.bytes_text(getattr(report.bytes, kind))}"
        for kind, name in words.BYTE_KINDS.items()
        if getattr(report.bytes, kind)
    ]
    return "bytes: " + "; ".join(sizes)


def _chain_line(report: Report) -> str:
    ledger = report.ledger
    return (
        f"chain: {ledger.height} blocks, {ledger.transactions} transactions, {ledger.gas_used:,} gas, "
        f"{ledger.reorgs} re-organisations; {report.store.envelopes} of {report.store.objects} objects in "
        "the store are sealed envelopes"
    )


def _audit_lines(report: Report) -> tuple[str, ...]:
    if report.audit is None:
        return ()
    audit = report.audit
    found = f": {audit.message}" if audit.message else ""
    return (f"audit: {audit.command}", f"audit: exit code {audit.exit_code}{found}")
