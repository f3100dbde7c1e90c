"""The words and figures of the report, in English and Chinese, for the page and for the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from consilia.cli.report.report import HitRule, RoleName, Status
from consilia.cli.report.results import Interval, Results, Summary, Text

PHASES: dict[str, Text] = {
    "setup": Text(en="Keys, genesis, store", zh="密钥、创世块、存储"),
    "data": Text(en="Reading or making the images", zh="读取或生成影像"),
    "start_up": Text(en="Starting every process", zh="启动各进程"),
    "enrol": Text(en="Publishing the task, enrolling", zh="发布任务与报名"),
    "rounds": Text(en="Rounds of training", zh="各轮训练"),
    "settle": Text(en="Paying the rewards", zh="结算奖励"),
    "consultation": Text(en="One second opinion", zh="一次第二意见"),
    "yardsticks": Text(en="Yardsticks: alone and pooled", zh="对照训练：单独与集中"),
    "evaluation": Text(en="Scoring on held-out patients", zh="在留出患者上评估"),
    "audit": Text(en="Audit", zh="审计"),
}

BYTE_KINDS: dict[str, Text] = {
    "models": Text(en="Global models", zh="全局模型"),
    "updates": Text(en="Updates, sealed", zh="更新（密封）"),
    "key_strings": Text(en="Key strings, sealed", zh="密钥串（密封）"),
    "other": Text(en="Other objects", zh="其他对象"),
    "chain": Text(en="Chain, on one node's disk", zh="区块链（单个节点磁盘）"),
}

ROLES: dict[RoleName, Text] = {
    "hospital": Text(en="Hospital", zh="医院"),
    "server": Text(en="Server", zh="服务器"),
    "ledger": Text(en="Ledger (everyone)", zh="账本（所有人可见）"),
    "store": Text(en="Store", zh="存储"),
    "auditor": Text(en="Auditor", zh="审计方"),
}

STATUSES: dict[Status, Text] = {
    "included": Text(en="included", zh="已纳入"),
    "late": Text(en="late", zh="迟到"),
    "rejected": Text(en="rejected", zh="被拒绝"),
    "missing": Text(en="missing", zh="缺席"),
}

FEDERATED = Text(en="Federated", zh="联邦学习")
POOLED = Text(en="Pooled", zh="集中训练")
MEAN_LOCAL = Text(en="Mean of the hospitals alone", zh="各医院单独训练的平均值")


def alone(hospital: str) -> Text:
    """The name of the model that `hospital` trained by itself."""
    return Text(en=f"{hospital} alone", zh=f"{hospital} 单独训练")


def seconds_text(seconds: float) -> str:
    """A duration as people write it: 0.42 s, 12.3 s, 4 min 12 s, 1 h 3 min."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def bytes_text(count: int) -> str:
    """A size in decimal units: 912 B, 4.1 kB, 37.2 MB, 1.20 GB."""
    if count < 1_000:
        return f"{count} B"
    for limit, divisor, unit in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
        if count < limit:
            return f"{count / divisor:.1f} {unit}"
    return f"{count / 1e9:.2f} GB"


def ether_text(wei: int) -> str:
    """An amount in the chain's own coin, 10^18 wei, to six places; an ellipsis says that there is more."""
    whole, rest = divmod(wei, 10**18)
    micro, more = divmod(rest, 10**12)
    if more:
        return f"{whole:,}.{micro:06d}…" if wei > 10**12 else f"{wei:,} wei"
    return f"{whole:,}.{micro:06d}".rstrip("0").rstrip(".")


def amount_text(wei: int) -> str:
    """An amount with its unit, for sentences: ether, or wei where it is less than a millionth of one."""
    text = ether_text(wei)
    return text if text.endswith("wei") else f"{text} ether"


def interval_text(interval: Interval | None, signed: bool = False) -> str:
    """An interval as it stands behind its figure: 0.712 … 0.880, or a dash where there is none."""
    if interval is None:
        return "–"
    form = "{:+.3f}" if signed else "{:.3f}"
    return f"{form.format(interval.low)} … {form.format(interval.high)}"


@dataclass(frozen=True)
class Verdict:
    """What the run showed: one sentence with the two numbers that matter, and a second that qualifies it."""

    headline: Text
    detail: Text


def verdict(results: Results) -> Verdict:
    """What training together gave, in numbers, also when it gave nothing."""
    federated, pooled, summary = results.federated, results.pooled, results.summary
    share = round(100 * summary.ratio_to_pooled_map50)
    helped = summary.beats_mean_local
    against_best = _against_the_best(summary)
    doubt = _doubt(results.differences.map50_minus_mean_local)
    headline = Text(
        en=f"Training together {'paid off' if helped else 'did not pay off'}: mAP@.5 of "
        f"{federated.map50:.3f}, against {summary.mean_local_map50:.3f} for the average hospital alone.",
        zh=f"联合训练{'有效' if helped else '未见收益'}：mAP@.5 为 {federated.map50:.3f}，"
        f"各医院单独训练平均为 {summary.mean_local_map50:.3f}。",
    )
    detail = Text(
        en=f"The shared detector reaches {share}% of one trained on all the data in one place "
        f"({pooled.map50:.3f}); {against_best.en}{doubt.en}",
        zh=f"共享检测器达到数据集中训练（{pooled.map50:.3f}）的 {share}%；{against_best.zh}{doubt.zh}",
    )
    return Verdict(headline, detail)


def _against_the_best(summary: Summary) -> Text:
    best = f"{summary.best_local_map50:.3f}"
    if summary.beats_every_local:
        return Text(
            en=f"it also beats the best hospital alone ({best}).",
            zh=f"也优于单独训练中最好的一家医院（{best}）。",
        )
    return Text(
        en=f"it does not beat the best hospital alone ({best}).",
        zh=f"但未超过单独训练中最好的一家医院（{best}）。",
    )


def _doubt(gain: Interval | None) -> Text:
    """Whether other patients could have turned the comparison round."""
    if gain is None:
        return Text(
            en=" There are too few held-out patients to say how sure that is.",
            zh="留出患者太少，无法给出置信区间。",
        )
    if gain.low <= 0 <= gain.high:
        return Text(
            en=f" The gain could be chance: its 95% interval over patients is {interval_text(gain, True)}.",
            zh=f"该增益可能出于偶然：其患者自助法 95% 区间为 {interval_text(gain, True)}。",
        )
    return Text(
        en=f" The 95% interval of the gain over patients is {interval_text(gain, True)}.",
        zh=f"增益的患者自助法 95% 区间为 {interval_text(gain, True)}。",
    )


def data_source_text(source: str) -> Text:
    """Where the images came from; the generated phantom has a name in both languages."""
    return Text(en=source, zh="仿真体模 CT" if source == "phantom CT" else source)


def hit_rule_text(rule: HitRule) -> Text:
    """When a prediction counts as a hit, in words."""
    if rule.kind == "centre_in_box":
        return Text(
            en="a prediction is a hit when its centre lies in the box of a lesion",
            zh="预测框的中心落在病灶框内即为命中",
        )
    return Text(
        en=f"a prediction is a hit when its overlap with a lesion (IoU) is at least {rule.min_iou:g}",
        zh=f"预测框与病灶框的交并比（IoU）不低于 {rule.min_iou:g} 即为命中",
    )
