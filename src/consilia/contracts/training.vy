# pragma version 0.4.3
# pragma evm-version london
# pragma nonreentrancy on
"""
@title A training task from its publication to the hospitals' reward (docs/contracts.md, section 2)
@notice ENROLLING -> TRAINING (rounds 0 .. rounds - 1) -> FINISHED, or DEAD from either of the first two; phases
        never go back. A deadline is the first second at which it is too late. Artifacts are named by root and
        size, their bytes are in the store; what only a reader of the history needs is in the events alone. A
        call's gas does not depend on how many hospitals take part, but batches have up to 64 entries.

        A chain may re-organise: signed calls then run again, perhaps in another order, and anybody may send them.
        So a call names what it was decided on, and is refused where that is not so. A task's id follows from its
        server and its spec: an enrolment never lands in another task. A round is closed over a trail of exactly the
        updates that were judged.
"""

import escrow
import position_bits
import registry

event TaskPublished:
    task_id: indexed(uint256)
    server: indexed(address)
    spec_digest: bytes32
    spec: Bytes[8192]
    rounds: uint256
    quorum: uint256
    max_hospitals: uint256
    enrol_deadline: uint256
    round_seconds: uint256
    reward_wei: uint256

event Enrolled:
    task_id: indexed(uint256)
    hospital: indexed(address)
    index: uint256

event TaskKeyIssued:
    task_id: indexed(uint256)
    hospital: indexed(address)
    task_key: bytes32

event TaskStarted:
    task_id: indexed(uint256)
    key_string_root: bytes32
    key_string_size: uint256

event RoundOpened:
    task_id: indexed(uint256)
    round_index: indexed(uint256)
    model_root: bytes32
    model_size: uint256
    model_digest: bytes32
    deadline: uint256

event UpdateRegistered:
    task_id: indexed(uint256)
    round_index: indexed(uint256)
    hospital: indexed(address)
    position: uint256
    root: bytes32
    key_hash: bytes32
    size: uint256
    num_examples: uint64
    metrics_digest: bytes32
    trail: bytes32

event RoundClosed:
    task_id: indexed(uint256)
    round_index: indexed(uint256)
    registered: uint256
    included: uint256[2]
    report_root: bytes32
    report_size: uint256
    report_digest: bytes32
    model_root: bytes32
    model_size: uint256
    model_digest: bytes32

event TaskFinished:
    task_id: indexed(uint256)
    model_root: bytes32
    model_digest: bytes32

event TaskDied:
    task_id: indexed(uint256)
    reason: String[32]
    paid_rounds: uint256
    refund_wei: uint256

struct Task:
    server: address
    phase: uint8
    spec_digest: bytes32
    rounds: uint256
    quorum: uint256
    max_hospitals: uint256
    round_seconds: uint256
    reward_wei: uint256
    enrolled: uint256
    keyed: uint256
    round_index: uint256
    registered: uint256  # updates in the open round
    updates: uint256  # updates in all rounds
    deadline: uint256  # of the enrolment, of the open round, then of the server's settlement
    earned_wei: uint256  # what the hospitals are owed, once the task is over

struct Enrolment:
    position: uint256  # index + 1; 0: not enrolled
    keyed: bool
    next_round: uint256  # the first round for which no update was registered yet
    updates: uint256

ENROLLING: public(constant(uint8)) = 1
TRAINING: public(constant(uint8)) = 2
FINISHED: public(constant(uint8)) = 3
DEAD: public(constant(uint8)) = 4

MAX_BATCH: constant(uint256) = 64
MAX_HOSPITALS: constant(uint256) = 512  # the bits of `included`
MAX_ROUNDS: constant(uint256) = 10_000
MAX_SECONDS: constant(uint256) = 365 * 86400
# How long a silent server is waited for before its task is declared dead: a long weekend's outage is no death.
SERVER_GRACE_SECONDS: public(constant(uint256)) = 3 * 86400
# How long the server has to set the shares before each hospital may draw its own by updates handed in.
SETTLE_SECONDS: public(constant(uint256)) = 7 * 86400

REGISTRY: immutable(registry.__interface__)
ESCROW: immutable(escrow.__interface__)

task_count: public(uint256)
published: HashMap[address, uint256]  # how many tasks of each server
tasks: HashMap[uint256, Task]
enrolments: HashMap[uint256, HashMap[address, Enrolment]]
# Task, position in the open round: names the updates at this position and at all before, in their order.
trails: public(HashMap[uint256, HashMap[uint256, bytes32]])


@deploy
def __init__(registry_: address, escrow_: address):
    REGISTRY = registry.__interface__(registry_)
    ESCROW = escrow.__interface__(escrow_)
    assert staticcall ESCROW.controller() == self, "training: escrow of another controller"


@external
@payable
def publish(
    spec: Bytes[8192],
    rounds: uint256,
    quorum: uint256,
    max_hospitals: uint256,
    enrol_seconds: uint256,
    round_seconds: uint256,
) -> uint256:
    """
    @notice Step 0: a server offers a task; the wei sent along are the hospitals' reward.
    @param spec The TaskSpec in canonical JSON; its SHA-256 is the name under which hospitals agree to it.
    @return The task's id: 52 bits, which every reader of JSON keeps exact, of a hash over server and spec.
    """
    assert staticcall REGISTRY.is_active(msg.sender, registry.SERVER), "training: not an active server"
    assert len(spec) > 0, "training: empty spec"
    assert rounds > 0 and rounds <= MAX_ROUNDS, "training: rounds out of range"
    assert quorum > 0 and quorum <= max_hospitals, "training: quorum out of range"
    assert max_hospitals <= MAX_HOSPITALS, "training: too many hospitals"
    assert enrol_seconds > 0 and enrol_seconds <= MAX_SECONDS, "training: enrol time out of range"
    assert round_seconds > 0 and round_seconds <= MAX_SECONDS, "training: round time out of range"
    task_id: uint256 = convert(
        keccak256(abi_encode(msg.sender, self.published[msg.sender], sha256(spec))), uint256
    ) >> 204
    assert self.tasks[task_id].phase == 0, "training: id taken"
    self.published[msg.sender] += 1
    self.task_count += 1
    self.tasks[task_id] = Task(
        server=msg.sender,
        phase=ENROLLING,
        spec_digest=sha256(spec),
        rounds=rounds,
        quorum=quorum,
        max_hospitals=max_hospitals,
        round_seconds=round_seconds,
        reward_wei=msg.value,
        enrolled=0,
        keyed=0,
        round_index=0,
        registered=0,
        updates=0,
        deadline=block.timestamp + enrol_seconds,
        earned_wei=0,
    )
    log TaskPublished(
        task_id=task_id,
        server=msg.sender,
        spec_digest=sha256(spec),
        spec=spec,
        rounds=rounds,
        quorum=quorum,
        max_hospitals=max_hospitals,
        enrol_deadline=block.timestamp + enrol_seconds,
        round_seconds=round_seconds,
        reward_wei=msg.value,
    )
    extcall ESCROW.fund(task_id, msg.sender, value=msg.value)
    return task_id


@external
def enrol(task_id: uint256):
    """
    @notice Step 1: a hospital takes part.
    """
    assert self.tasks[task_id].phase == ENROLLING, "training: enrolment closed"
    assert block.timestamp < self.tasks[task_id].deadline, "training: enrolment closed"
    assert staticcall REGISTRY.is_active(msg.sender, registry.HOSPITAL), "training: not an active hospital"
    assert self.enrolments[task_id][msg.sender].position == 0, "training: already enrolled"
    index: uint256 = self.tasks[task_id].enrolled
    assert index < self.tasks[task_id].max_hospitals, "training: task is full"
    self.tasks[task_id].enrolled = index + 1
    self.enrolments[task_id][msg.sender].position = index + 1
    log Enrolled(task_id=task_id, hospital=msg.sender, index=index)


@external
def issue_keys(task_id: uint256, hospitals: DynArray[address, MAX_BATCH], task_keys: DynArray[bytes32, MAX_BATCH]):
    """
    @notice Step 1: the server registers the public task key of some hospitals, each once.
    """
    self._only_server(task_id)
    assert self.tasks[task_id].phase == ENROLLING, "training: already started"
    assert len(hospitals) == len(task_keys), "training: lengths differ"
    for i: uint256 in range(len(hospitals), bound=MAX_BATCH):
        assert self.enrolments[task_id][hospitals[i]].position > 0, "training: not enrolled"
        assert not self.enrolments[task_id][hospitals[i]].keyed, "training: task key already issued"
        assert task_keys[i] != empty(bytes32), "training: empty task key"
        self.enrolments[task_id][hospitals[i]].keyed = True
        log TaskKeyIssued(task_id=task_id, hospital=hospitals[i], task_key=task_keys[i])
    self.tasks[task_id].keyed += len(hospitals)


@external
def start(
    task_id: uint256,
    key_string_root: bytes32,
    key_string_size: uint256,
    model_root: bytes32,
    model_size: uint256,
    model_digest: bytes32,
):
    """
    @notice Step 1: the server hands out the sealed task keys and the initial model; round 0 opens. It need not
            wait for the enrolment's end.
    """
    self._only_server(task_id)
    assert self.tasks[task_id].phase == ENROLLING, "training: already started"
    assert self.tasks[task_id].enrolled >= self.tasks[task_id].quorum, "training: too few hospitals"
    assert self.tasks[task_id].keyed == self.tasks[task_id].enrolled, "training: task keys missing"
    self.tasks[task_id].phase = TRAINING
    log TaskStarted(task_id=task_id, key_string_root=key_string_root, key_string_size=key_string_size)
    self._open_round(task_id, 0, model_root, model_size, model_digest)


@external
def register_update(
    task_id: uint256,
    round_index: uint256,
    root: bytes32,
    key_hash: bytes32,
    size: uint256,
    num_examples: uint64,
    metrics_digest: bytes32,
):
    """
    @notice Step 2: a hospital registers the envelope of its update, once a round.
    @param key_hash keccak256 of the envelope's sigma * G (docs/formats/envelope.md).
    """
    assert self.tasks[task_id].phase == TRAINING, "training: round closed"
    assert round_index == self.tasks[task_id].round_index, "training: round closed"
    assert block.timestamp < self.tasks[task_id].deadline, "training: round closed"
    assert self.enrolments[task_id][msg.sender].position > 0, "training: not enrolled"
    assert self.enrolments[task_id][msg.sender].next_round <= round_index, "training: update already registered"
    assert staticcall REGISTRY.is_active(msg.sender, registry.HOSPITAL), "training: not an active hospital"
    assert num_examples > 0, "training: no examples"
    position: uint256 = self.tasks[task_id].registered
    self.tasks[task_id].registered = position + 1
    self.tasks[task_id].updates += 1
    self.enrolments[task_id][msg.sender].next_round = round_index + 1
    self.enrolments[task_id][msg.sender].updates += 1
    before: bytes32 = empty(bytes32)
    if position > 0:
        before = self.trails[task_id][position - 1]
    trail: bytes32 = keccak256(abi_encode(before, round_index, msg.sender, root))
    self.trails[task_id][position] = trail
    log UpdateRegistered(
        task_id=task_id,
        round_index=round_index,
        hospital=msg.sender,
        position=position,
        root=root,
        key_hash=key_hash,
        size=size,
        num_examples=num_examples,
        metrics_digest=metrics_digest,
        trail=trail,
    )


@external
def close_round(
    task_id: uint256,
    round_index: uint256,
    trail: bytes32,
    counted: uint256,
    included: uint256[2],
    report_root: bytes32,
    report_size: uint256,
    report_digest: bytes32,
    model_root: bytes32,
    model_size: uint256,
    model_digest: bytes32,
):
    """
    @notice Step 3: the server registers the new global model and which updates are in it; the next round opens,
            or the task is finished.
    @param trail That of the last update that was judged.
    @param counted How many updates were judged; those after them came too late.
    @param included Bit p (word p // 256) is set if the update at position p was aggregated.
    """
    self._only_server(task_id)
    assert self.tasks[task_id].phase == TRAINING, "training: round closed"
    assert round_index == self.tasks[task_id].round_index, "training: round closed"
    registered: uint256 = self.tasks[task_id].registered
    assert counted > 0 and counted <= registered, "training: other updates than judged"
    assert self.trails[task_id][counted - 1] == trail, "training: other updates than judged"
    assert position_bits._all_below(included, counted), "training: included was never registered"
    assert position_bits._count(included) >= self.tasks[task_id].quorum, "training: too few updates"
    log RoundClosed(
        task_id=task_id,
        round_index=round_index,
        registered=registered,
        included=included,
        report_root=report_root,
        report_size=report_size,
        report_digest=report_digest,
        model_root=model_root,
        model_size=model_size,
        model_digest=model_digest,
    )
    if round_index + 1 < self.tasks[task_id].rounds:
        self._open_round(task_id, round_index + 1, model_root, model_size, model_digest)
    else:
        self.tasks[task_id].earned_wei = self.tasks[task_id].reward_wei
        self._end(task_id, FINISHED)
        log TaskFinished(task_id=task_id, model_root=model_root, model_digest=model_digest)


@external
def abort(task_id: uint256):
    """
    @notice Anybody declares a task dead that cannot go on; what nobody earned goes back to the server.
    """
    # The hospitals are paid for each closed round: the server has its model. A round that the server left open
    # although enough updates came is paid as well: it can open them, and must not save money by falling silent.
    # A round that failed for want of updates made no model and is paid to nobody.
    reason: String[32] = ""
    paid_rounds: uint256 = self.tasks[task_id].round_index
    late: bool = block.timestamp >= self.tasks[task_id].deadline
    very_late: bool = block.timestamp >= self.tasks[task_id].deadline + SERVER_GRACE_SECONDS
    quorum: uint256 = self.tasks[task_id].quorum
    if self.tasks[task_id].phase == ENROLLING:
        if late and self.tasks[task_id].enrolled < quorum:
            reason = "too few hospitals"
        elif very_late:
            reason = "never started"
    else:
        assert self.tasks[task_id].phase == TRAINING, "training: not running"
        if late and self.tasks[task_id].registered < quorum:
            reason = "too few updates"
        elif very_late:
            reason = "server silent"
            paid_rounds += 1
    assert len(reason) > 0, "training: still alive"
    reward_wei: uint256 = self.tasks[task_id].reward_wei
    earned_wei: uint256 = reward_wei * paid_rounds // self.tasks[task_id].rounds
    self.tasks[task_id].earned_wei = earned_wei
    self._end(task_id, DEAD)
    log TaskDied(task_id=task_id, reason=reason, paid_rounds=paid_rounds, refund_wei=reward_wei - earned_wei)
    extcall ESCROW.release(task_id, reward_wei - earned_wei)


@external
def settle(task_id: uint256, hospitals: DynArray[address, MAX_BATCH], shares_wei: DynArray[uint256, MAX_BATCH]):
    """
    @notice Step 5: the server divides what was earned by contribution, in batches; each hospital gets one share.
    """
    self._only_server(task_id)
    self._only_over(task_id)
    for hospital: address in hospitals:
        assert self.enrolments[task_id][hospital].position > 0, "training: not enrolled"
    extcall ESCROW.share(task_id, hospitals, shares_wei)


@external
def settle_by_updates(task_id: uint256, hospital: address):
    """
    @notice Step 5 without the server: after its time to settle, anybody may give a hospital that has no share yet
            its part by updates handed in, for then nobody has judged them.
    """
    self._only_over(task_id)
    assert block.timestamp >= self.tasks[task_id].deadline, "training: the server may still settle"
    updates: uint256 = self.enrolments[task_id][hospital].updates
    assert updates > 0, "training: no updates"
    part_wei: uint256 = self.tasks[task_id].earned_wei * updates // self.tasks[task_id].updates
    pool: escrow.Pool = staticcall ESCROW.pool(task_id)
    # less is left where the server had begun to settle otherwise
    extcall ESCROW.share(task_id, [hospital], [min(part_wei, pool.unshared_wei)])


@external
@view
def task(task_id: uint256) -> Task:
    """
    @notice The state of a task; all zero if there is none of this id.
    """
    return self.tasks[task_id]


@external
@view
def enrolment(task_id: uint256, hospital: address) -> Enrolment:
    """
    @notice A hospital's part in a task; all zero if it is not enrolled.
    """
    return self.enrolments[task_id][hospital]


@internal
@view
def _only_server(task_id: uint256):
    assert msg.sender == self.tasks[task_id].server, "training: not the task's server"
    assert staticcall REGISTRY.is_active(msg.sender, registry.SERVER), "training: not an active server"


@internal
@view
def _only_over(task_id: uint256):
    phase: uint8 = self.tasks[task_id].phase
    assert phase == FINISHED or phase == DEAD, "training: not over"


@internal
def _open_round(
    task_id: uint256, round_index: uint256, model_root: bytes32, model_size: uint256, model_digest: bytes32
):
    deadline: uint256 = block.timestamp + self.tasks[task_id].round_seconds
    self.tasks[task_id].round_index = round_index
    self.tasks[task_id].registered = 0
    self.tasks[task_id].deadline = deadline
    log RoundOpened(
        task_id=task_id,
        round_index=round_index,
        model_root=model_root,
        model_size=model_size,
        model_digest=model_digest,
        deadline=deadline,
    )


@internal
def _end(task_id: uint256, phase: uint8):
    self.tasks[task_id].phase = phase
    self.tasks[task_id].deadline = block.timestamp + SETTLE_SECONDS
