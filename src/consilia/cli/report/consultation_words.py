"""What a second opinion says in words, in English and Chinese: the answer, or ERROR with its reason and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consilia.cli.report.consultation import ConsultationReport
from consilia.cli.report.results import Text
from consilia.cli.report.words import amount_text


@dataclass(frozen=True)
class Opinion:
    """Headline, what it rests on, and what to do next."""

    headline: Text
    detail: Text
    to_do: tuple[Text, ...] = ()


STEPS: dict[str, Text] = {
    "Asked": Text(en="asked", zh="提问"),
    "Answered": Text(en="answered, sealed", zh="作答（密封）"),
    "AuditOpened": Text(en="audit images opened", zh="公开审计影像"),
    "Scored": Text(en="answers to them counted", zh="统计审计答案"),
    "Challenged": Text(en="a box challenged", zh="质疑位置"),
    "Accepted": Text(en="accepted", zh="接受评分"),
    "AnswersReleased": Text(en="diagnosis released", zh="释放诊断"),
    "QueryClosed": Text(en="settled", zh="结算"),
}
"""The events of a query, by their names in the contract."""

SERVER_STEPS: dict[str, Text] = {
    "no answer": Text(en="answer", zh="作答"),
    "no score": Text(en="score", zh="统计审计答案"),
    "no release": Text(en="release the diagnosis", zh="释放诊断"),
}
"""What the contract says of a silent server: the step that it did not take."""

HOSPITAL_SILENT, NOT_ACTIVE = "audit not opened", "party not active"
"""What the contract says of a silent hospital, and of a party that may not act."""

STANDINGS: dict[str, Text] = {
    "undecided": Text(en="undecided", zh="尚无结论"),
    "certified": Text(en="certified", zh="已认证"),
    "revoked": Text(en="revoked", zh="已撤销"),
}


def opinion(shown: ConsultationReport) -> Opinion:
    """The outcome in words."""
    tell = {
        "answer": _answer,
        "failed": _failed,
        "stopped": _stopped,
        "spoilt": _spoilt,
        "waiting": _waiting,
    }[shown.outcome]
    return tell(shown)


def _answer(shown: ConsultationReport) -> Opinion:
    found = [box for case in shown.cases for box in case.findings]
    names = list(dict.fromkeys((box.en, box.zh) for box in found))
    if names:
        headline = Text(
            en=f"The model found: {', '.join(en for en, _ in names)}.",
            zh=f"模型检出：{'、'.join(zh for _, zh in names)}。",
        )
    else:
        headline = Text(en="The model found nothing.", zh="模型未检出异常。")
    return Opinion(
        headline,
        Text(
            en=f"It passed the audit: {_counted(shown).en}, {shown.required} were needed.",
            zh=f"审计通过：{_counted(shown).zh}，要求至少 {shown.required} 例。",
        ),
        (
            Text(
                en="A second opinion for research, verified by nobody. The decision is the physician's.",
                zh="本意见仅供科研，未经任何人核实。诊断由医师作出。",
            ),
        ),
    )


def _failed(shown: ConsultationReport) -> Opinion:
    return Opinion(
        Text(en="ERROR: no diagnosis.", zh="ERROR：不给出诊断。"),
        Text(
            en=f"The server fell below the threshold: {_counted(shown).en}, {shown.required} were needed. "
            f"{_apart(shown).en}Its answer to your case was never opened, and is worth nothing.",
            zh=f"服务器未达到门槛：{_counted(shown).zh}，要求至少 {shown.required} 例。"
            f"{_apart(shown).zh}它对您病例的回答从未打开，也没有价值。",
        ),
        (
            _refund(shown),
            Text(
                en="Ask another model: consilia consult ask STUDY --offer. Compare their records first: consilia model "
                "certificate DIGEST.",
                zh="可换一个模型：consilia consult ask STUDY --offer。"
                "请先比较记录：consilia model certificate DIGEST。",
            ),
            Text(
                en="Ask about another slice: an image is sent once ever, since a server that saw its audits opened "
                "would know them again.",
                zh="请换一张切片：每张影像只发送一次，因为见过审计公开的服务器会再次认出它们。",
            ),
        ),
    )


def _stopped(shown: ConsultationReport) -> Opinion:
    """Somebody was silent, or said no: whose step it was, what that cost, and what to do."""
    name = Text(en="The query was stopped: ", zh="查询已中止：")
    why, to_do = _stop(shown)
    paid = Text(
        en=f"The server was paid {amount_text(shown.server_wei)}, its bond included.",
        zh=f"服务器获得 {amount_text(shown.server_wei)}（含其押金）。",
    )
    cost = paid if shown.reason == HOSPITAL_SILENT else _refund(shown)
    return Opinion(
        Text(en="ERROR: no diagnosis.", zh="ERROR：不给出诊断。"),
        Text(en=f"{name.en}{why.en}", zh=f"{name.zh}{why.zh}"),
        (cost, to_do),
    )


def _stop(shown: ConsultationReport) -> tuple[Text, Text]:
    """Why a query was stopped, and what to do."""
    missed = SERVER_STEPS.get(shown.reason)
    if missed is not None:
        return (
            Text(
                en=f"the server did not take its step in time ({missed.en}).",
                zh=f"服务器未按时完成其步骤（{missed.zh}）。",
            ),
            Text(en="Ask a server that answers.", zh="请选择能及时作答的服务器。"),
        )
    if shown.reason == HOSPITAL_SILENT:
        return (
            Text(
                en="this hospital did not take its step in time (open the audit images).",
                zh="本院未按时完成其步骤（公开审计影像）。",
            ),
            Text(
                en="Keep `consilia hospital run` at work while a query is open: silence is paid for.",
                zh="查询期间请保持 `consilia hospital run` 运行：不作回应要付费。",
            ),
        )
    if shown.reason == NOT_ACTIVE:
        return (
            Text(en="one of the two is suspended, or has left.", zh="双方之一已被暂停或已退出。"),
            Text(en="See who: consilia network members.", zh="请查看成员状态：consilia network members。"),
        )
    if shown.ended_in == "answered":
        return (
            Text(
                en="this hospital declined the answer, which it could not read.",
                zh="本院拒收了无法读取的答复。",
            ),
            Text(
                en="If the store is well, ask another server.",
                zh="若存储正常，请换一个服务器。",
            ),
        )
    return (
        Text(en="the server refused it.", zh="服务器拒绝了查询。"),
        Text(
            en="Its reason is below; ask another offer, or have the reason removed.",
            zh="原因见下；请换一个模型，或先排除该原因。",
        ),
    )


def _spoilt(shown: ConsultationReport) -> Opinion:
    return Opinion(
        Text(en="ERROR: no diagnosis.", zh="ERROR：不给出诊断。"),
        Text(
            en="The server passed the audit and was paid, but its report of your case cannot be read.",
            zh="服务器通过了审计并已获得费用，但其对您病例的报告无法读取。",
        ),
        (
            Text(
                en="Complain to the consortium: the ledger shows that the server committed to this report.",
                zh="请向联合体投诉：账本可证明该报告是服务器承诺的内容。",
            ),
        ),
    )


def _waiting(shown: ConsultationReport) -> Opinion:
    return Opinion(
        Text(en="No answer yet.", zh="尚未得到答复。"),
        Text(
            en="The query is on the ledger; each step has its deadline, after which the silent side pays.",
            zh="查询已登记在账本上；每一步都有期限，逾期不作回应的一方承担损失。",
        ),
        (
            Text(
                en=f"Look again: consilia consult show {shown.query[:8]}",
                zh=f"稍后查看：consilia consult show {shown.query[:8]}",
            ),
        ),
    )


def _counted(shown: ConsultationReport) -> Text:
    return Text(
        en=f"{shown.matches} of {shown.audits} known cases were answered rightly",
        zh=f"{shown.audits} 例已知病例中答对 {shown.matches} 例",
    )


def _apart(shown: ConsultationReport) -> Text:
    """Why fewer count than had the right codes."""
    if not shown.boxes_apart:
        return Text(en="", zh="")
    codes = (shown.matches or 0) + shown.boxes_apart
    return Text(
        en=f"Its codes were right in {codes}; in {shown.boxes_apart} of them the contract found its boxes elsewhere "
        "than the known ones (as many as it takes to fall below). ",
        zh=f"其中编码正确 {codes} 例，但合约判定有 {shown.boxes_apart} 例的标注框不在已知位置（验证到低于门槛为止）。",
    )


def _refund(shown: ConsultationReport) -> Text:
    bond = shown.hospital_wei - shown.price_wei
    more = f", and the server's bond of {amount_text(bond)}" if bond > 0 else ""
    more_zh = f"，另得服务器押金 {amount_text(bond)}" if bond > 0 else ""
    return Text(
        en=f"Your fee of {amount_text(shown.price_wei)} came back{more}.",
        zh=f"费用 {amount_text(shown.price_wei)} 已退回{more_zh}。",
    )


def bound_text(shown: ConsultationReport) -> Text:
    """The interval in words: what m of n means, and no more."""
    return Text(
        en=f"With 95 % confidence the model is right in at least {shown.low:.1%} of such cases, and with 95 % "
        f"confidence in at most {shown.high:.1%} (Clopper-Pearson).",
        zh=f"以 95% 的置信度，模型在此类病例上的正确率不低于 {shown.low:.1%}；以 95% 的置信度，不高于 {shown.high:.1%}"
        "（Clopper-Pearson）。",
    )


def hiding_text(shown: ConsultationReport) -> Text:
    """What the server could tell about which image was real."""
    worst = max(shown.hiding, key=lambda item: item.guess, default=None)
    one_in = Text(
        en=f"{shown.images} images went to the server; {shown.hidden} of them are never opened, the real one among "
        "them.",
        zh=f"共向服务器发送 {shown.images} 张影像，其中 {shown.hidden} 张始终不公开，真实病例就在其中。",
    )
    if worst is None:
        return one_in
    return Text(
        en=f"{one_in.en} The best guess at it would be right in about {worst.guess:.0%} of such queries"
        + (f" (what stands out: {worst.feature})." if worst.verdict != "admit" else "."),
        zh=f"{one_in.zh}在这样的查询中，服务器最佳猜测的命中率约为 {worst.guess:.0%}"
        + (f"（最突出的差异：{worst.feature}）。" if worst.verdict != "admit" else "。"),
    )


def plain_lines(shown: ConsultationReport) -> Iterator[str]:
    """The same on a terminal or in a log: one fact a line."""
    told = opinion(shown)
    yield told.headline.en
    yield told.detail.en
    for case in shown.cases:
        for box in case.findings:
            where = "" if box.xyxy is None else " at " + ", ".join(f"{edge:.0f}" for edge in box.xyxy)
            yield f"  {case.name}: {box.en} (code {box.code}), score {box.score:.2f}{where}"
        if not case.readable:
            yield f"  {case.name}: ERROR, no diagnosis: the server's report of it cannot be read"
        elif shown.outcome == "answer" and not case.findings:
            yield f"  {case.name}: no finding"
    if shown.matches is not None:
        yield (
            f"audits: {shown.matches} of {shown.audits} matched, threshold {shown.required} "
            f"(T = {shown.required / shown.audits:.2f})"
        )
        yield bound_text(shown).en
    yield hiding_text(shown).en
    yield f"model: {shown.model.title or 'no title'}, digest {shown.model.digest}"
    if shown.model.record is not None:
        record = shown.model.record
        yield (
            f"record: {record.standing}; {record.matches} of {record.audits} audits, queries: {record.queries}, "
            f"accuracy {record.low:.3f} to {record.high:.3f}"
        )
    yield (
        f"money: fee {amount_text(shown.price_wei)}, back to you {amount_text(shown.hospital_wei)}, "
        f"to the server {amount_text(shown.server_wei)} (its bond among it)"
    )
    for item in shown.transactions:
        yield f"ledger: {STEPS[item.step].en if item.step in STEPS else item.step}, transaction {item.hash}"
    yield from (line.en for line in told.to_do)
