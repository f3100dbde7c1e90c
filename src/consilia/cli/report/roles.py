"""What each role can and cannot see in a run: a task in the transparent mode, and a second opinion (docs/protocols)."""

from __future__ import annotations

from consilia.cli.report.report import RoleSight, StoreSight
from consilia.cli.report.results import Text


def _text(en: str, zh: str) -> Text:
    return Text(en=en, zh=zh)


_OF_A_QUERY = (
    _text(
        "the images of a second opinion, and afterwards the diagnoses of those that were audits",
        "第二意见查询中的全部影像，以及事后公开的审计影像的诊断",
    ),
)
_HIDDEN_IN_A_QUERY = (
    _text("which image of a second opinion is the real case", "第二意见查询中哪一张是真实病例"),
)


def sights_of_a_run(store: StoreSight, consulted: bool) -> tuple[RoleSight, ...]:
    """The table of roles.

    Args:
        store: as the run left it, looked at object by object.
        consulted: a hospital asked for a second opinion.
    """
    sealed = store.envelopes == store.objects
    return (
        RoleSight(
            role="hospital",
            could_see=(
                _text("its own images, boxes, updates and keys", "本院的影像、标注框、更新和密钥"),
                _text("every global model", "每一轮的全局模型"),
            ),
            could_not_see=(
                _text("another hospital's images or boxes", "其他医院的影像和标注框"),
                _text("another hospital's update", "其他医院的更新"),
            ),
        ),
        RoleSight(
            role="server",
            could_see=(
                _text(
                    "each hospital's update (transparent mode), which can leak traces of its images",
                    "每家医院的更新（透明模式）：更新可能泄露训练影像的痕迹",
                ),
                _text("how many examples each hospital trained on", "每家医院参与训练的样本数"),
                *(_OF_A_QUERY if consulted else ()),
            ),
            could_not_see=(
                _text("any training image or box", "任何训练影像和标注框"),
                _text("any hospital's long-term secret key", "任何医院的长期私钥"),
                *(_HIDDEN_IN_A_QUERY if consulted else ()),
            ),
        ),
        RoleSight(
            role="ledger",
            could_see=(
                _text("digests, sizes, public keys and signatures", "摘要、大小、公钥和签名"),
                _text("rounds, example counts, shares and money", "轮次、样本数、份额和金额"),
            ),
            could_not_see=(_text("any image, box or model weight", "任何影像、标注框或模型权重"),),
        ),
        RoleSight(
            role="store",
            could_see=(
                _text(
                    f"{store.envelopes} of {store.objects} objects as sealed envelopes, and their sizes",
                    f"{store.objects} 个对象中有 {store.envelopes} 个为密封信封，以及它们的大小",
                ),
            ),
            could_not_see=(
                _text("the content of an envelope", "信封里的内容"),
                *(() if sealed else (_text("(but some objects are not sealed)", "（但有对象未密封）"),)),
            ),
        ),
        RoleSight(
            role="auditor",
            could_see=(
                _text("the whole ledger, and every envelope's digest", "整个账本，以及每个信封的摘要"),
                _text("the updates, once handed a task key", "在获得任务密钥后，可见各更新"),
            ),
            could_not_see=(_text("any training image or box", "任何训练影像和标注框"),),
        ),
    )
