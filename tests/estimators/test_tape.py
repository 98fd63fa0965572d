"""The tape's own rules, on graphs small enough to count by hand. Sizes in bytes a token unless said otherwise."""

from estimators.tape import Tape, upper_envelope


def test_envelope_drops_what_is_never_highest() -> None:
    assert upper_envelope([(1.0, 5.0), (2.0, 5.0), (2.0, 1.0), (0.0, 9.0)]) == ((2.0, 5.0), (0.0, 9.0))


def test_an_unsaved_input_is_freed_and_a_saved_one_is_not() -> None:
    tape = Tape()
    x = tape.tensor(4, 2, True)
    y = tape.op(x, width=4, itemsize=2)
    tape.drop(x)
    assert tape.per_token == 8
    z = tape.op(y, width=4, itemsize=2, saved=[y.buffer])
    tape.drop(y)
    assert tape.per_token == 16
    z.grad = tape.alloc(8)
    tape.drop(z)
    tape.backward()
    assert tape.per_token == 8  # the gradient of x


def test_nothing_is_saved_where_nothing_needs_a_gradient() -> None:
    tape = Tape()
    x = tape.tensor(4, 2, False)
    y = tape.op(x, width=4, itemsize=2, saved=[x.buffer])
    tape.drop(x)
    assert tape.per_token == 8
    assert not tape.nodes
    assert not y.requires_grad


def test_peaks_are_noted_before_memory_falls() -> None:
    tape = Tape()
    tape.mark()
    first = tape.alloc(10)
    second = tape.alloc(5)
    tape.release(first)
    third = tape.alloc(3)
    assert tape.envelope() == ((15, 0),)
    tape.scratch((1, 100))
    assert tape.envelope() == ((15, 0), (9, 100))
    tape.release(second)
    tape.release(third)
    assert (tape.per_token, tape.constant) == (0, 0)


def test_gradients_written_over_their_inputs_take_no_room() -> None:
    peaks = []
    for over in (False, True):
        tape = Tape()
        x, y = tape.tensor(3, 2, True), tape.tensor(5, 2, True)
        out = tape.op(x, y, width=5, itemsize=2, saved=[x.buffer, y.buffer], over_inputs=over)
        tape.drop(x, y, out)
        out.grad = tape.alloc(10)
        tape.mark()
        tape.backward()
        peaks.append(tape.envelope()[0][0])
        assert x.grad is not None
        assert y.grad is not None
        assert tape.per_token == 16
    assert peaks == [16 + 10 + 16, 16 + 10]


def test_an_addition_passes_its_gradient_on_and_the_engine_adds_in_place() -> None:
    tape = Tape()
    x = tape.tensor(4, 2, True)
    left = tape.op(x, width=4, itemsize=2)
    right = tape.op(x, width=4, itemsize=2)
    total = tape.op(left, right, width=4, itemsize=2, passes=[left, right])
    tape.drop(x, left, right, total)
    total.grad = tape.alloc(8)
    tape.mark()
    tape.backward()
    assert tape.envelope() == ((24, 0),)  # one gradient for both branches, and what each makes of it
    assert tape.per_token == 8


def test_a_weight_sized_tensor_has_a_weight_sized_gradient() -> None:
    tape = Tape()
    x = tape.tensor(4, 2, True)
    delta = tape.op(width=0.0, fixed=100.0, itemsize=4, trains=True, weight_grad=12.0)
    y = tape.op(x, delta, width=4, itemsize=2, saved=[x.buffer, delta.buffer])
    tape.drop(delta, x, y)
    assert (tape.per_token, tape.constant) == (8, 400)
    y.grad = tape.alloc(8)
    tape.mark()
    tape.backward()
    assert tape.envelope() == ((24, 800),)
    assert (tape.per_token, tape.constant) == (8, 12)


def test_backward_stops_before_the_first_node_that_reads() -> None:
    tape = Tape()
    x = tape.tensor(4, 2, True)
    y = tape.op(x, width=4, itemsize=2, saved=[x.buffer])
    z = tape.op(y, width=4, itemsize=2)
    z.grad = tape.alloc(8)
    tape.backward(until_saved=True)
    assert len(tape.nodes) == 1
    assert y.grad is not None


def test_a_checkpoint_stops_at_its_last_save() -> None:
    tape = Tape()
    x = tape.tensor(4, 2, True)
    tape.mark()
    y = tape.op(x, width=4, itemsize=2, saved=[x.buffer])
    tape.op(y, width=100, itemsize=2)
    assert tape.envelope_until_last_save() == ((8, 0),)
    assert tape.envelope() == ((216, 0),)
