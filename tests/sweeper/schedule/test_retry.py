"""Failures as torch, CUDA, Linux and plug-ins raise them, and what becomes of their trials."""

import errno
import itertools
import os
import pickle
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sweeper import errors
from sweeper.config import TrialConfig
from sweeper.schedule.retry import (
    BREAK_AFTER,
    BUDGETS,
    MESSAGE_LENGTH,
    Breaker,
    Failure,
    Retries,
    backoff,
    classify,
    signature,
)

CUDA_ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
TORCH_OOM = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 4.00 MiB is free. Process 4711 has 79.10 GiB memory in use."
)

# As they were raised: the device's by name and number of the error in CUDA's header.
BY_TEXT = {
    "oom": [
        TORCH_OOM,
        "CUDA error: out of memory" + CUDA_ADVICE,
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "GET was unable to find an engine to execute this computation",
    ],
    "lost": [
        "CUDA error: uncorrectable ECC error encountered" + CUDA_ADVICE,
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable" + CUDA_ADVICE,
        "CUDA error: all CUDA-capable devices are busy or unavailable",
        "CUDA error: no CUDA-capable device is detected",
        "CUDA error: system not yet initialized",
        "CUDA error: unknown error" + CUDA_ADVICE,
        "GPU 0000:3D:00.0: GPU has fallen off the bus.",
        "CUDA driver initialization failed, you might not have a CUDA gpu.",
        "DataLoader worker (pid 1) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 12, 13) exited unexpectedly",
        "unable to mmap 4096 bytes from file </torch_1_2_3>: Cannot allocate memory (12)",
    ],
    "bug": [
        "CUDA error: device-side assert triggered" + CUDA_ADVICE,
        "CUDA error: an illegal memory access was encountered" + CUDA_ADVICE,
        "CUDA error: invalid device ordinal" + CUDA_ADVICE,
        "cuDNN error: CUDNN_STATUS_BAD_PARAM",
        "mat1 and mat2 shapes cannot be multiplied (4x5 and 2x3)",
        "out of memory of what it was about",
    ],
}


def no(number, kind=OSError):
    return kind(number, os.strerror(number), "/data/x")


def raised(error):
    try:
        raise error
    except BaseException as found:
        return found


def from_cause(error, cause):
    try:
        try:
            raise cause
        except BaseException as found:
            raise error from found
    except BaseException as found:
        return found


def in_handler(error, first):
    try:
        try:
            raise first
        except BaseException:
            raise error  # noqa: B904  # what is wanted
    except BaseException as found:
        return found


# --- what kind of failure -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in BY_TEXT.items() for text in texts]
)
@pytest.mark.parametrize("error", [RuntimeError, torch.AcceleratorError])
def test_errors_of_devices_are_told_by_their_text(error, kind, text):
    assert classify(error(text)) == kind


class OutOfMemoryError(RuntimeError):  # as Ray and others call theirs
    pass


def test_torch_s_own_errors_are_told_apart():
    assert classify(OutOfMemoryError("of the node")) == "bug"
    assert classify(torch.OutOfMemoryError("whatever it says")) == "oom"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**17)
    assert classify(caught.value) == "lost"  # of the host's memory
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(2, 3)(torch.zeros(4, 5))
    assert classify(caught.value) == "bug"


@pytest.mark.parametrize("text", BY_TEXT["oom"] + BY_TEXT["lost"])
def test_only_errors_of_a_run_are_read(text):
    assert classify(ValueError(text)) == "bug"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("storage", "EIO ENOSPC EDQUOT EROFS ESTALE EREMOTEIO ETIMEDOUT EHOSTUNREACH EMFILE"),
        ("storage", "ECONNRESET ECONNREFUSED EPIPE EAGAIN EBUSY"),
        ("bug", "ENOENT EACCES EEXIST ENOTDIR EISDIR EINVAL"),
        ("lost", "ENOMEM"),
    ],
)
def test_system_errors_are_told_by_their_number(kind, names):
    for name in names.split():
        assert classify(no(getattr(errno, name))) == kind, name
    assert classify(OSError("without a number")) == "bug"


def test_host_memory_counts_as_lost():
    assert classify(MemoryError()) == "lost"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ConfigError", "invalid"),
        ("DataError", "data"),
        ("StoreError", "storage"),
        ("UnavailableStoreError", "storage"),
        ("HoleError", "storage"),
        ("MissingStoreError", "storage"),
        ("CheckpointError", "storage"),
        ("GridError", "bug"),
    ],
)
@pytest.mark.parametrize("wrap", [from_cause, in_handler], ids=["from", "context"])
def test_our_own_errors_are_told_by_type_wrapped_or_not(name, kind, wrap):
    error = getattr(errors, name)("here", "is something wrong")
    assert classify(error) == kind
    assert classify(wrap(RuntimeError("it did not work"), error)) == kind


@pytest.mark.parametrize("wrap", [from_cause, in_handler], ids=["from", "context"])
@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (torch.OutOfMemoryError(TORCH_OOM), "oom"),
        (RuntimeError(BY_TEXT["lost"][0]), "lost"),
        (MemoryError(), "lost"),
        (no(errno.ENOSPC), "storage"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("outer", [ValueError, errors.ConfigError])
def test_what_caused_an_error_counts_before_what_it_is(wrap, cause, kind, outer):
    wrapped = wrap(outer("a model", "cannot be made"), cause)
    assert classify(wrapped) == kind
    assert classify(wrap(KeyError("further out"), wrapped)) == kind


def test_the_outermost_of_our_own_errors_counts():
    config, store = errors.ConfigError("c", "x"), errors.StoreError("s", "x")
    assert classify(from_cause(config, store)) == "invalid"
    config, store = errors.ConfigError("c", "x"), errors.StoreError("s", "x")
    assert classify(from_cause(store, config)) == "storage"


def test_a_context_that_was_denied_does_not_count():
    def fail():
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("all is well with the memory") from None

    with pytest.raises(ValueError, match="all is well") as caught:
        fail()
    assert classify(caught.value) == "bug"


class _FalsyError(Exception):
    def __bool__(self):
        raise RuntimeError("neither")

    def __len__(self):
        return 0


def test_a_chain_may_be_a_circle_and_its_errors_odd():
    one, other = ValueError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    assert classify(one) == "bug"
    assert signature(one)
    falsy = from_cause(_FalsyError(), no(errno.EIO))
    assert classify(from_cause(ValueError("x"), falsy)) == "storage"


# --- what is said of it ---------------------------------------------------------------------


class _MuteError(RuntimeError):
    def __str__(self):
        raise RuntimeError("not even this")


class _NoTextError(RuntimeError):
    def __str__(self):
        return 3


ODD = [
    (ValueError("x" * 10_000_000), "the rest is in the trial's log"),
    (ValueError("a lone \udc80 surrogate"), "a lone \\udc80 surrogate"),
    (errors.StoreError("here", "lost", hint="look at \udcff"), "(hint: look at \\udcff)"),
    (_MuteError(), "its message cannot be shown"),
    (_NoTextError(), "its message cannot be shown"),
    (AssertionError(), ""),
    (ValueError("one\ntwo\0three"), "one\ntwo\0three"),
    (KeyError("\u2028"), "\\u2028"),
]


@pytest.mark.parametrize(("error", "said"), ODD, ids=range(len(ODD)))
def test_any_error_can_be_carried(error, said):
    failure = Failure.of("t1", raised(error))
    assert said in failure.message
    assert len(failure.message) < MESSAGE_LENGTH + 50
    assert (failure.trial_id, failure.error) == ("t1", type(error).__name__)
    assert failure.host
    assert len(failure.signature.encode()) < 1000
    assert pickle.loads(pickle.dumps(failure)) == failure


@given(st.text())
def test_any_text_can_be_a_message(text):
    failure = Failure.of("t1", ValueError(text))
    failure.message.encode()
    assert "\n" not in failure.signature


def test_a_worker_that_cannot_speak_is_lost_without_a_host():
    failure = Failure.lost("t1", "no sign of life for 121 s")
    assert (failure.kind, failure.error, failure.host) == ("lost", "WorkerDied", "")
    assert failure.signature == Failure.lost("t2", "no sign of life for 130 s").signature
    assert failure.signature != Failure.lost("t1", "its node is gone").signature


# --- what it is alike -----------------------------------------------------------------------

ALIKE = [
    "trial t0123456789ab: loss 1.5 at step 3 of 1,000 in /a/b/t0123456789ab/1.bin, pid 77, 0x7f3a",
    "trial tffffffffffff: loss -2e-07 at step 12345678 of 9 in /c/d/1.bin, pid 4711, 0xDEADBEEF",
    "trial tabcabcabcabc: loss 3.25 at step 0 of 12,345,678 in /c/3fa9c1d2e4b5.bin, pid 1, 0x1",
]


def of_text(text, kind=ValueError):
    def complain():
        raise kind(text)

    with pytest.raises(kind) as caught:
        complain()
    return signature(caught.value)


def test_alike_failures_have_one_signature_whatever_their_numbers_ids_and_places():
    first, second, third = map(of_text, ALIKE)
    assert first == second == third
    assert "complain" in first
    assert "loss # at step # of #" in first


@given(st.integers(0, 10**12), st.integers(-(10**12), 10**12))
def test_no_number_makes_failures_differ(one, other):
    for text in ("x is {:d}", "is {:,d} long", "{:d}.5GiB of {:d}", "({:d}, {:e})", "at {:#x}."):
        assert of_text(text.format(one, one)) == of_text(text.format(abs(other), other))


@given(st.uuids(), st.uuids())
def test_no_drawn_name_makes_failures_differ(one, other):
    texts = [f"no `c.0.{name.hex}a1.partial` there" for name in (one, other)]
    assert of_text(texts[0]) == of_text(texts[1])


def test_another_type_message_or_frame_is_another_failure():
    def elsewhere():
        raise ValueError("this")

    with pytest.raises(ValueError, match="this") as caught:
        elsewhere()
    found = {of_text("this"), of_text("that"), of_text("this", KeyError), signature(caught.value)}
    assert len(found) == 4


PLUG_IN = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 3))

        def forward(self, x):
            return self.inner(x)

    def build(x):
        return Block()(x)

    def wrapped(x):
        try:
            return build(x)
        except RuntimeError as error:
            raise ValueError("it does not fit") from error

    def told(x):
        raise ValueError("it does not fit") from KeyError("made up")
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "their_network.py").write_text(textwrap.dedent(PLUG_IN))
    monkeypatch.syspath_prepend(str(tmp_path))
    return __import__("their_network")


@pytest.mark.parametrize(
    ("name", "where"),
    [("build", "forward"), ("wrapped", "forward"), ("told", "told")],
)
def test_a_signature_names_the_innermost_frame_of_a_plug_in_and_not_of_torch(theirs, name, where):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        getattr(theirs, name)(torch.zeros(4, 5))
    files = [str(entry.path) for entry in caught.traceback]
    if name == "build":
        assert "torch" in files[-1]
    found = signature(caught.value)
    assert f" in their_network.py:{where}: " in found
    assert found.startswith(type(caught.value).__name__)


def test_a_signature_names_our_own_frame_where_no_plug_in_has_a_part():
    with pytest.raises(errors.ConfigError) as caught:
        TrialConfig.from_flat({"model.name": "no such network"})
    frames = [entry for entry in caught.traceback if "/sweeper/" in str(entry.path)]
    assert f" in {frames[-1].path.name}:{frames[-1].frame.code.raw.co_name}: " in signature(
        caught.value
    )


def test_a_signature_is_carried_to_the_driver_and_not_made_there(theirs):
    with pytest.raises(RuntimeError) as caught:
        theirs.build(torch.zeros(4, 5))
    failure = Failure.of("t1", caught.value)
    assert pickle.loads(pickle.dumps(failure)).signature == signature(caught.value)
    assert signature(pickle.loads(pickle.dumps(caught.value))) != failure.signature


# --- budgets --------------------------------------------------------------------------------


def failed(kind, trial="t1"):
    return Failure(trial, kind, "E", "m", "s")


def delay_of(retries, failure, node=""):
    return retries.delay(failure, is_larger_left=False, node=node)


@given(st.permutations([kind for kind, budget in BUDGETS.items() for _ in range(budget)]))
def test_each_kind_has_a_budget_of_its_own(order):
    retries = Retries()
    assert len(order) == 11  # five lost, five storage, one bug
    assert all(delay_of(retries, failed(kind)) is not None for kind in order)
    for kind in BUDGETS:
        assert delay_of(retries, failed(kind)) is None


def test_each_trial_has_budgets_of_its_own_and_new_ones_once_forgotten():
    retries = Retries()
    for trial in ("t1", "t2"):
        assert delay_of(retries, failed("bug", trial)) == 0.0
        assert delay_of(retries, failed("bug", trial)) is None
    retries.forget("t1")
    assert delay_of(retries, failed("bug", "t1")) == 0.0
    assert delay_of(retries, failed("bug", "t2")) is None


def test_what_was_used_up_on_one_node_can_be_given_back():
    retries = Retries()
    assert delay_of(retries, failed("bug"), "x") == 0.0
    assert delay_of(retries, failed("lost"), "x") is not None
    retries.forgive("x")
    assert delay_of(retries, failed("lost"), "y") == backoff("t1", "lost", 1)
    assert delay_of(retries, failed("bug"), "y") == 0.0
    retries.forgive("z")
    assert delay_of(retries, failed("bug"), "x") is None


def test_an_invalid_trial_is_tried_once():
    assert delay_of(Retries(), failed("invalid")) is None


def test_too_little_memory_is_for_good_only_where_there_is_no_more():
    retries = Retries()
    left = [retries.delay(failed("oom"), is_larger_left=left) for left in (True, True, False)]
    assert left == [0.0, 0.0, None]


def test_what_has_ended_is_not_remembered():
    retries, breaker = Retries(), Breaker()
    empty = len(pickle.dumps(retries))
    for i in range(1000):
        for kind in ("lost", "storage", "bug"):
            delay_of(retries, failed(kind, f"t{i}"))
        breaker.failed(failed("bug", f"t{i}"))
        retries.forget(f"t{i}")
    assert len(pickle.dumps(retries)) == empty
    assert len(pickle.dumps(breaker)) < 500


# --- backoff --------------------------------------------------------------------------------

TRIALS = [f"t{i:012x}" for i in range(200)]


@pytest.mark.parametrize(("kind", "first"), [("lost", 1.0), ("storage", 15.0)])
def test_waits_double_and_are_spread_by_half_to_either_side(kind, first):
    for n in range(1, BUDGETS[kind] + 1):
        factors = [backoff(trial, kind, n) / (first * 2 ** (n - 1)) for trial in TRIALS]
        assert all(0.5 <= factor < 1.5 for factor in factors)
        assert 0.9 < sum(factors) / len(factors) < 1.1
        assert len(set(factors)) > 80  # not all together again


def test_a_wait_is_the_same_each_time_and_a_bug_has_none():
    assert [backoff("t1", "lost", n) for n in (1, 2, 3)] == [
        backoff("t1", "lost", n) for n in (1, 2, 3)
    ]
    assert len({backoff("t1", "lost", n) / 2**n for n in range(1, 6)}) > 1
    assert backoff("t1", "bug", 1) == 0.0
    retries = Retries()
    assert delay_of(retries, failed("lost")) == backoff("t1", "lost", 1)
    assert delay_of(retries, failed("storage")) == backoff("t1", "storage", 1)
    assert delay_of(retries, failed("lost")) == backoff("t1", "lost", 2)


def test_what_failed_on_an_excused_node_counts_as_soon_as_that_is_not_excused_any_more():
    retries = Retries()
    for _ in range(5):
        assert retries.delay(failed("bug"), is_larger_left=False, node="x", excused={"x"}) == 0.0
    assert retries.delay(failed("bug"), is_larger_left=False, node="y", excused={"x"}) == 0.0
    assert retries.delay(failed("bug"), is_larger_left=False, node="y", excused={"x"}) is None
    assert retries.delay(failed("bug"), is_larger_left=False, node="z") is None


def test_waits_grow_no_further_than_the_budget_where_nothing_counts():
    retries = Retries()
    delays = [
        retries.delay(failed("lost"), is_larger_left=False, node="x", excused={"x"})
        for _ in range(30)
    ]
    assert max(delays) == backoff("t1", "lost", BUDGETS["lost"])


# --- the breaker ----------------------------------------------------------------------------


def alike(signature):
    return Failure("t", "bug", "E", "m", signature)


def test_ten_alike_in_a_row_are_too_many_and_that_is_said_once():
    breaker = Breaker()
    said = [breaker.failed(alike("a")) for _ in range(2 * BREAK_AFTER)]
    assert said == [None] * 9 + [10] + [None] * 10


def test_a_success_or_another_failure_begins_the_count_again():
    for interrupt in (lambda b: b.completed(), lambda b: b.failed(alike("b"))):
        breaker = Breaker()
        said = [breaker.failed(alike("a")) for _ in range(9)]
        interrupt(breaker)
        said += [breaker.failed(alike("a")) for _ in range(10)]
        assert said == [None] * 18 + [10]


@given(st.lists(st.sampled_from(["a", "b", "ok"]), max_size=60))
def test_the_breaker_counts_the_length_of_the_run_that_it_is_in(seen):
    breaker = Breaker()
    runs = [len(list(run)) for _, run in itertools.groupby(seen)]
    kinds = [kind for kind, _ in itertools.groupby(seen)]
    said = sum(
        (breaker.completed() if kind == "ok" else breaker.failed(alike(kind))) is not None
        for kind in seen
    )
    assert said == sum(n >= 10 and kind != "ok" for n, kind in zip(runs, kinds, strict=True))
