"""Boards on Ethernet that come and go: real sockets, the real process that asks them, a whole daemon that has none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from edged.devices.boards import BoardProbe
from edged.devices.probe import Verdict
from edged.devices.prober import as_json, of_json
from edged.devices.reach import reach
from edged.devices.watch import Watch
from edged.hardware_config import Board
from edged.status import DeviceFacts
from tests.support.boards import SpinnakerBoard, TcpBoard
from tests.support.descriptors import open_descriptors
from tests.support.device import BUNDLE, ROOT, wait_until

LOST = "it no longer answers: 127.0.0.1 port {port}: Connection refused"


def board(port: int, probe: Literal["tcp", "spinnaker"] = "tcp", address: str = "127.0.0.1", **more: Any) -> Board:
    return Board(name="rack", address=address, port=port, probe=probe, every_s=0.1, deadline_s=0.6, **more)


@asynccontextmanager
async def watching(board: Board, place: Path | None = None) -> AsyncIterator[tuple[Watch, list[DeviceFacts]]]:
    moves: list[DeviceFacts] = []
    watch = Watch(on_move=moves.append, boards=[board], place=place)
    task = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(20):
            await watch.surveyed.wait()
        yield watch, moves
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def states(moves: list[DeviceFacts]) -> list[str]:
    return [facts.state for facts in moves]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_board_that_goes_away_is_lost_and_returns_as_the_same(address: str) -> None:
    async def main() -> None:
        with TcpBoard(address) as there:
            async with watching(board(there.port, address=address, engine="lava-loihi2")) as (watch, moves):
                files = open_descriptors()
                assert watch.missing("rack") == watch.missing("accelerator") == ""
                for _ in range(5):
                    there.down()
                    await until(lambda: watch.facts()[0].state == "lost")
                    assert watch.missing("rack").startswith("the device rack is lost: it no longer answers: ")
                    there.up()
                    await until(lambda: watch.facts()[0].state == "ready")
                    assert len(watch.facts()) == 1
                assert open_descriptors() == files
                assert states(moves) == [
                    *["seen", "probing", "ready"],
                    *["lost", "returned", "probing", "ready"] * 5,
                ]
                (facts,) = watch.facts()
                assert (facts.link, facts.engine, facts.path) == ("rack", "lava-loihi2", "/ethernet/rack")
                assert facts.node == f"tcp:{address}:{there.port}"

    asyncio.run(main())


def test_a_board_that_was_never_there_is_unusable_with_its_reason_until_it_comes() -> None:
    async def main() -> None:
        with TcpBoard() as there:
            there.down()
            async with watching(board(there.port)) as (watch, moves):
                await asyncio.sleep(0.5)  # asked again and again, and told once
                assert states(moves) == ["seen", "probing", "unusable"]
                assert watch.missing("rack") == (
                    f"the device rack is unusable: 127.0.0.1 port {there.port}: Connection refused"
                )
                there.up()
                await until(lambda: watch.facts()[0].state == "ready")

    asyncio.run(main())


def test_what_is_in_use_is_asked_quietly_and_says_who_had_it() -> None:
    async def main() -> None:
        with TcpBoard() as there:
            async with watching(board(there.port)) as (watch, moves):
                watch.assign({"rack": "engine lava"})
                await asyncio.sleep(0.5)
                assert states(moves) == ["seen", "probing", "ready", "in-use"]
                there.down()
                await until(lambda: watch.facts()[0].state == "lost")
                told = f"{LOST.format(port=there.port)} while engine lava had it"
                assert watch.facts()[0].reason == told

    asyncio.run(main())


# What a probe believes


def asked(board: Board) -> Verdict:
    return asyncio.run(reach(board.probe, board.address, board.at, board.deadline_s))


def test_a_spinnaker_board_tells_its_version_though_a_datagram_gets_lost() -> None:
    with SpinnakerBoard(losses=1) as there:
        assert asked(board(there.port, "spinnaker")) == Verdict(note="SC&MP/SpiNNaker 3.4.2")
        # As Application Notes 4 and 5 have it: reply expected, no tag, monitor, host, nearest chip; command 0.
        assert there.requests[0].hex() == "0000" + "87ff00ff" + "ffff0000" + "0000" + "0100" + "00" * 12
        assert there.requests[1][12:14] == b"\x02\x00"


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (lambda: SpinnakerBoard(answer=b"HTTP/1.1 400"), "what answers is no SpiNNaker board"),
        (lambda: SpinnakerBoard(code=0x87), "the board answers with the error 0x87"),
        (lambda: SpinnakerBoard(losses=99), "no answer from 127.0.0.1 port {port} within 0.6 s"),
    ],
    ids=["something else", "an error", "silence"],
)
def test_what_is_no_answer_of_a_board_is_told(there: Callable[[], SpinnakerBoard], problem: str) -> None:
    with there() as made:
        assert problem.format(port=made.port) in asked(board(made.port, "spinnaker")).problem


def test_a_board_that_accepts_nobody_is_given_up_at_the_deadline() -> None:
    with TcpBoard(crowded=True) as there:
        assert asked(board(there.port)).problem == f"no answer from 127.0.0.1 port {there.port} within 0.6 s"


# The process that asks


def test_a_process_that_is_killed_is_replaced_and_the_board_is_not_lost_for_that() -> None:
    async def main() -> None:
        with TcpBoard() as there:
            asking = board(there.port)
            probe = BoardProbe([asking])
            assert await probe.ask(asking) == Verdict()
            assert probe._process is not None
            first = probe._process.pid
            os.kill(first, signal.SIGKILL)
            assert "the process that asks it" in (await probe.ask(asking)).problem
            assert await probe.ask(asking) == Verdict()
            assert probe._process.pid != first
            probe.close()

    asyncio.run(main())


def test_a_daemon_cannot_have_another_address_asked() -> None:
    async def main() -> None:
        with TcpBoard() as there:
            probe = BoardProbe([board(there.port)])
            other = Board(name="other", address="127.0.0.1", port=there.port)
            assert (await probe.ask(other)).problem == "it is not in the configuration of edged-boards"
            probe.close()

    asyncio.run(main())


def test_boards_come_through_a_command_line_as_they_are() -> None:
    boards = (board(22, engine='a "quoted" one'), board(0, "spinnaker"))
    script = "import sys; from edged.devices.prober import as_json, of_json; print(as_json(of_json(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", script, as_json(boards)], capture_output=True, text=True, check=True)
    assert of_json(done.stdout) == boards


CONFIG = """
[device]
id = "scenario"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[http]
port = 0
[engines.onnxruntime]
device = "rack"
[[board]]
name = "rack"
title = "Rack of Loihi 2"
address = "127.0.0.1"
port = {port}
every_s = 0.2
[[pipeline]]
name = "digits"
model = "{model}"
source = [{{ type = "http", name = "asked" }}]
"""


AS_SYSTEMD_STARTS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execv(sys.executable, [sys.executable, "-m", "edged.devices.prober", "--config", sys.argv[2]])
"""


@contextmanager
def as_systemd_listens(place: Path, config: Path) -> Iterator[list[int]]:
    """A socket with Accept=yes: each connection is the descriptor 3 of a process of its own. Yields their numbers."""
    pids: list[int] = []
    place.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(place))
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                child = subprocess.Popen(
                    [sys.executable, "-c", AS_SYSTEMD_STARTS, str(connection.fileno()), str(config)],
                    cwd=ROOT,
                    pass_fds=[connection.fileno()],
                )
                connection.close()
                pids.append(child.pid)
                child.wait()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield pids
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def config_of(folder: Path, port: int) -> Path:
    config = folder / "edged.toml"
    config.write_text(CONFIG.format(folder=folder, port=port, model=BUNDLE))
    return config


def test_where_systemd_listens_it_starts_the_process_that_asks(tmp_path: Path) -> None:
    place = tmp_path / "worker/boards.sock"

    async def main(asking: Board, pids: list[int]) -> None:
        probe = BoardProbe([asking], place)
        assert await probe.ask(asking) == Verdict()
        assert probe._process is None and len(pids) == 1
        probe.close()

    with TcpBoard() as there:
        config = config_of(tmp_path, there.port)
        config.write_text(config.read_text().replace(str(BUNDLE), "/nowhere/that/it/may/see"))
        with as_systemd_listens(place, config) as pids:
            asyncio.run(main(board(there.port), pids))


def test_where_systemd_listens_at_last_the_own_process_is_let_go(tmp_path: Path) -> None:
    place = tmp_path / "worker/boards.sock"

    async def main(asking: Board, config: Path) -> None:
        probe = BoardProbe([asking], place)
        assert await probe.ask(asking) == Verdict()
        assert probe._process is not None
        with as_systemd_listens(place, config) as pids:
            assert await probe.ask(asking) == Verdict()
            assert probe._process is None and len(pids) == 1
            probe.close()

    with TcpBoard() as there:
        asyncio.run(main(board(there.port), config_of(tmp_path, there.port)))


def test_the_process_says_what_is_wrong_with_a_board(tmp_path: Path) -> None:
    config = tmp_path / "edged.toml"
    config.write_text('[[board]]\nname = "rack"\naddress = "rack.local"\nport = 22\n')
    command = [sys.executable, "-m", "edged.devices.prober", "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "board[0].address = 'rack.local': must be an IP address" in done.stderr


def test_check_names_a_board_that_does_not_answer(tmp_path: Path) -> None:
    with TcpBoard() as there:
        command = [sys.executable, "-m", "edged", "check", "--config", str(config_of(tmp_path, there.port))]
        well = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        there.down()
        away = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "ok      board rack at 127.0.0.1\n" in well.stdout, well
    assert f"PROBLEM board rack at 127.0.0.1\n        127.0.0.1 port {there.port}: Connection refused\n" in away.stdout
    assert (well.returncode, away.returncode) == (0, 1)


@pytest.mark.slow
def test_a_daemon_whose_engine_needs_a_board_waits_for_it_and_says_so(tmp_path: Path) -> None:
    def shown(device: str, placement: str) -> Callable[[], bool]:
        def is_so() -> bool:
            try:
                status = json.loads((tmp_path / "run/status.json").read_text())
            except OSError:
                return False
            places = [engine["placement"] for engine in status["engines"]]
            return [one["state"] for one in status["devices"]] == [device] and places == [placement]

        return is_so

    with TcpBoard() as there:
        there.down()
        command = [sys.executable, "-m", "edged"]
        config = ["--config", str(config_of(tmp_path, there.port))]
        daemon = subprocess.Popen([*command, "run", *config], cwd=ROOT)
        try:
            for away in ("unusable", "lost"):
                there.down()
                wait_until(shown(away, "absent"), 40)
                there.up()
                wait_until(shown("in-use", "serving"), 40)
            told = subprocess.run([*command, "devices", *config], cwd=ROOT, capture_output=True, text=True, check=False)
            assert f"rack    accelerator  in-use  -   tcp:127.0.0.1:{there.port}" in told.stdout, told
            assert "because: engine onnxruntime has it" in told.stdout
        finally:
            daemon.terminate()
            assert daemon.wait(20) == 0
