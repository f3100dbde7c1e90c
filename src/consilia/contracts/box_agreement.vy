# pragma version 0.4.3
# pragma evm-version london
"""
@title When reported boxes agree with true ones, in integers
@notice A finding is a word: score | code | x1 | y1 | x2 | y2, 16 bits each, the last one lowest; zero is none.
        The same rule in Python: `localised` of protocols/findings.py. Nothing here may revert on a liar's words.
"""

BOX: constant(uint256) = 2**64 - 1


@internal
@pure
def _codes(words: uint256[8]) -> uint256:
    """
    @notice The codes of sorted words, each once, 16 bits each.
    """
    codes: uint256 = 0
    last: uint256 = 0
    for word: uint256 in words:
        code: uint256 = (word >> 64) & 65535
        if code != last and word != 0:
            codes = codes << 16 | code
            last = code
    return codes


@internal
@pure
def _agree(truth: uint256[8], reported: uint256[8]) -> bool:
    """
    @notice Whether each true box is met by a reported one of its code with IoU of 1/2 or more, one to one, the codes
            are the same, and at most one reported finding is beside them.
    """
    if self._codes(truth) != self._codes(reported):
        return False
    used: uint256 = 0
    surplus: uint256 = 0
    for word: uint256 in reported:
        if word >> 96 != 0:
            return False
        if word != 0:
            surplus += 1
    for word: uint256 in truth:
        if word == 0:
            continue
        met: bool = False
        for j: uint256 in range(8):
            if (used >> j) & 1 == 0 and reported[j] != 0 and self._overlap(word, reported[j]):
                used |= 1 << j
                met = True
                break
        if not met:
            return False
        surplus -= 1
    return surplus <= 1


@internal
@pure
def _overlap(a: uint256, b: uint256) -> bool:
    if (a >> 64) & 65535 != (b >> 64) & 65535:
        return False
    if a & BOX == 0:
        return True  # a finding of the image as a whole
    ax1: uint256 = (a >> 48) & 65535
    ay1: uint256 = (a >> 32) & 65535
    ax2: uint256 = (a >> 16) & 65535
    ay2: uint256 = a & 65535
    bx1: uint256 = (b >> 48) & 65535
    by1: uint256 = (b >> 32) & 65535
    bx2: uint256 = (b >> 16) & 65535
    by2: uint256 = b & 65535
    x1: uint256 = max(ax1, bx1)
    y1: uint256 = max(ay1, by1)
    x2: uint256 = min(ax2, bx2)
    y2: uint256 = min(ay2, by2)
    # a box that is turned inside out has no such corner between its own
    if x1 >= x2 or y1 >= y2:
        return False
    # IoU >= 1/2: 2 * inter >= area_a + area_b - inter
    return 3 * (x2 - x1) * (y2 - y1) >= (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
