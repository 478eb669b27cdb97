"""Signals: the first asks for a checkpoint, the second stops at once."""

import os
import signal

import pytest

from hf_xlt.training.interruption import InterruptionFlag


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def test_the_first_signal_in_training_raises_the_flag_and_the_second_stops(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    flag = InterruptionFlag()
    flag.training = True
    with flag.listen():
        send()
        assert flag.raised and "saving a checkpoint" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_outside_training_the_first_signal_stops():
    with InterruptionFlag().listen(), pytest.raises(KeyboardInterrupt):
        send()


def test_a_launchers_echo_of_the_signal_does_not_stop_the_save(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    flag = InterruptionFlag()
    flag.training = True
    with flag.listen():
        send()
        send(signal.SIGTERM)
        assert flag.raised
        flag._since -= 60
        with pytest.raises(KeyboardInterrupt):
            send()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with InterruptionFlag().listen():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
