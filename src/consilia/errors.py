"""Every error that Consilia raises on purpose, grouped by whose fault it is.

A message says what was expected, what came, and what to do. The command line turns each group into an exit code:
1 failed, 2 usage, 3 unreachable, 4 refused by policy, 5 verification failed, 6 not yet: the same command again later.
"""


class ConsiliaError(Exception):
    """The root of them all; catching it catches whatever Consilia means to say to a person."""

    exit_code = 1


# The user's input


class InputError(ConsiliaError):
    """Something that a person wrote or pointed at cannot be used as it is."""

    exit_code = 2


class SettingsError(InputError):
    """A settings file has an unknown key, a missing one, or a value out of range."""


class SpecError(InputError):
    """A TaskSpec is malformed; the message names the path of the key."""


class DatasetError(InputError):
    """A data set cannot be read at all; single bad files are reported and skipped instead."""


class UnusableImageError(DatasetError):
    """One image cannot be used; the message is the reason that goes into the report, and names no person."""


class KeyFileError(InputError):
    """A key file is missing, damaged, or its password is wrong."""


class KeyTokenError(InputError):
    """A PKCS#11 token is not there, does not take its PIN, or cannot do what a key has to."""


class HomeError(InputError):
    """A home directory holds something else than what was asked for."""


# A hospital's PACS


class PacsError(ConsiliaError):
    """The hospital's PACS refuses, or answers with something else than DICOM."""


class PacsUnreachableError(PacsError):
    """Nobody answers at the PACS's address."""

    exit_code = 3


# A policy said no


class PolicyError(ConsiliaError):
    """The local policy does not admit this task."""

    exit_code = 4


class ArchiveError(PolicyError):
    """The hospital's archive cannot hide a case: too few matched images, or images that differ from it visibly."""


# Another member's turn


class NotYetError(ConsiliaError):
    """Nothing is wrong: somebody else has to act first, and the same command goes on later."""

    exit_code = 6


# A peer's misbehaviour


class VerificationError(ConsiliaError):
    """Something that a peer handed in is not what was registered or promised."""

    exit_code = 5


class EnvelopeError(VerificationError):
    """An envelope is malformed, damaged, for somebody else, or bound to another context."""


class WeightsError(VerificationError):
    """A weights file has wrong names, shapes or types, or holds a number that is not finite."""


class UpdateRejectedError(VerificationError):
    """An update was registered but cannot be included; the message is the reason that goes into the round report."""


class ChainError(VerificationError):
    """A block breaks a rule of the chain: link, seal, difficulty, time, miner or state."""


class UnknownParentError(ChainError):
    """A block's parent is not stored here yet; its ancestors must be fetched first."""


class UntimelyBlockError(ChainError):
    """A block comes from the future or lies far below the head: not a proof of malice, clocks and links differ."""


class MessageError(VerificationError):
    """A message between nodes is malformed, forged, for somebody else, or not fresh."""


class AuditError(VerificationError):
    """The audit found something wrong; the message names the block, transaction or object."""


# The ledger


class LedgerError(ConsiliaError):
    """The ledger refused a request."""


class LedgerUnreachableError(LedgerError):
    """Nobody answers at the ledger's URL."""

    exit_code = 3


class TransactionRefusedError(LedgerError):
    """A transaction can never enter a block as it stands: wrong chain, nonce, signature, gas or funds."""


class PeerRefusedError(LedgerError):
    """Another node answers, and says that it will not do what it was asked."""


class NodeStorageError(ConsiliaError):
    """The node's disk takes or gives nothing; the change at hand was not kept, all before it was."""


class RpcError(LedgerError):
    """A JSON-RPC request cannot be answered; `code` and `data` go into the reply's error object."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class TransactionRevertedError(LedgerError):
    """A contract refused a transaction; `reason` is its revert text, such as "training: round closed"."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class TransactionTimeoutError(LedgerError):
    """A transaction was sent, and sent again, but no block took it; the same call later goes on with it."""

    exit_code = 3


class HistoryChangedError(LedgerError):
    """A re-org took back what was decided upon; a party that meets it begins again from what the ledger tells now."""


class TaskFailedError(LedgerError):
    """A task ended without a result: too few hospitals enrolled, or too few updates arrived."""


# The store


class StoreError(ConsiliaError):
    """The store refused a request."""


class StoreUnreachableError(StoreError):
    """The store does not answer."""

    exit_code = 3


class ObjectMissingError(StoreError):
    """No object has this root."""

    exit_code = 5


class ObjectDamagedError(StoreError):
    """The bytes under this root do not hash to it."""

    exit_code = 5


def reason_of(error: OSError) -> str:
    """What the system says of a failure, without the path where it happened: reasons are logged and reported."""
    return error.strerror or type(error).__name__
